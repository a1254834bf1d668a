"""`teacher-server pretrain`: open, train, measure, write, close.

OUT                            the teacher file: weights with the lowest held-out loss
OUT.run/config.yaml            resolved settings
OUT.run/metrics.jsonl          and tensorboard/, wandb/, wandb_run.json
OUT.run/checkpoints/last.pt    where to go on from, while the run is not finished; last.1.pt the one before it
OUT.run/summary.json           settings and result of a finished run
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from typing import Any

import torch

import shared
from shared import claims, cli, config, files, teacher_file
from shared.errors import CompatibilityError, ConfigError, FileFormatError
from shared.floors import COUNTED, RULES
from shared.sinks import check_tensorboard, check_wandb
from shared.store import Store
from shared.training import generations
from shared.training.stop import StopSignals
from shared.training.torch_ranks import Ranks, join
from teacher_server.lmtad import model as models
from teacher_server.lmtad.device import find_device
from teacher_server.lmtad.export import summary
from teacher_server.pretrain import candidates
from teacher_server.pretrain.candidates import Steps
from teacher_server.pretrain.checkpoint import Checkpoint, load_newest
from teacher_server.pretrain.config import PretrainConfig
from teacher_server.pretrain.corpus import fingerprint_of
from teacher_server.pretrain.layout import RunFiles, check_unused
from teacher_server.pretrain.session import Session
from teacher_server.pretrain.trainer import Surroundings

log = logging.getLogger(__name__)

FREE_TO_CHANGE = (
    *("resume", "overwrite", "data", "out", "device", "dtype", "threads", "micro_batch_tokens", "log", "patience"),
    *("checkpoint_minutes", "checkpoint_every", "keep_checkpoints", "candidate_trips", "candidate_windows"),
)
"""Settings that a resumed run may change: where and how it runs. Another arithmetic changes the last bits."""
EVALUATED_TOKENS = 16_384
"""Computed at once where candidates are compared."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run begins with on one rank.

    Attributes:
        device: this rank's.
        store: the data.
        steps: where candidates are compared at the end; None: nowhere, or on another rank.
        resumed: the checkpoint to go on from, on the first rank; the others get it from there.
        finished: the result of the run, if it is finished, on the first rank.
    """

    device: torch.device
    store: Store
    steps: Steps | None = None
    resumed: Checkpoint | None = None
    finished: dict[str, Any] | None = None


ADDRESSES = ("--listen", "127.0.0.1:50051", "--metrics-listen", "127.0.0.1:9464")
"""Of the daemon that is started next."""


def run(settings: PretrainConfig) -> int:
    """Trains, alone or as one of the ranks that `torchrun` started; rank 0 writes the teacher file and prints one line
    of JSON."""
    with join() as ranks, contextlib.ExitStack() as claimed:
        started = time.monotonic()
        if ranks.is_first:
            log.info("settings: %s", config.in_force(settings))
        inputs = ranks.together(lambda: open_inputs(settings, ranks, claimed))
        result = ranks.broadcast(inputs.finished)
        if result is None:
            resumed = ranks.broadcast(inputs.resumed)
            with StopSignals() as stop:
                session = Session(settings, inputs.store, Surroundings(inputs.device, ranks, stop), resumed)
                session.train()
            if ranks.is_first:
                result = publish(settings, inputs, session, time.monotonic() - started)
        if ranks.is_first:
            print(json.dumps(result))
            log.info("next: %s", cli.command("teacher-server", "serve", "--teacher", str(settings.out), *ADDRESSES))
    return 0


def open_inputs(settings: PretrainConfig, ranks: Ranks, claimed: contextlib.ExitStack) -> Inputs:
    """Opens device and data of this rank; the first one claims OUT, while `claimed` is open, and looks what is there.

    Raises:
        ConfigError: what the settings name is not there, not usable or in use.
        CompatibilityError: the run in OUT.run was trained on another store.
        FileFormatError: the store, or every checkpoint, is damaged.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device, store = device_of(settings.device, ranks), Store(settings.data)
    if not ranks.is_first:
        return Inputs(device, store)
    check_tensorboard(settings.log.tensorboard)
    check_wandb(settings.log.wandb)
    claimed.enter_context(claims.file(settings.out))
    check_unused(settings)
    steps = candidates.read_steps(store, settings.candidate_trips) if settings.candidate_trips else None
    found = RunFiles(settings.out)
    if not settings.resume:
        return Inputs(device, store, steps)
    finished = read_finished(settings, store)
    generations.remove_halves(found.last)
    resumed = load_newest(found.last) if finished is None else None
    if resumed is not None:
        check_resumable(settings, store, resumed.config, resumed.store)
    elif finished is None:
        log.info("%s has no checkpoint yet; starting at step 0", found.folder)
    return Inputs(device, store, steps, resumed, finished)


def device_of(name: str, ranks: Ranks) -> torch.device:
    """The device of a setting on this rank; raises `ConfigError` if there is none such."""
    if ranks.world == 1:
        return find_device(name)
    if name.startswith("cuda:"):
        raise ConfigError(f"device={name} is one device; {ranks.world} ranks take one each with device=cuda")
    if find_device(name).type == "cpu":
        return torch.device("cpu")
    device = find_device(f"cuda:{ranks.local}")
    torch.cuda.set_device(device)
    return device


def read_finished(settings: PretrainConfig, store: Store) -> dict[str, Any] | None:
    """The result of the run, if it is finished.

    Raises:
        ConfigError: its teacher file is gone, or it had other settings.
        CompatibilityError: it was trained on another store.
        FileFormatError: its summary is damaged.
    """
    path = RunFiles(settings.out).summary
    if not path.exists():
        return None
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        result: dict[str, Any] = dict(known["result"])
        check_resumable(settings, store, dict(known["settings"]), str(known["store"]))
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise FileFormatError(f"{path} is damaged: {error}") from None
    if not settings.out.exists():
        raise ConfigError(f"the run is finished, and its teacher file {settings.out} is gone; make it anew elsewhere")
    log.info("the run is finished; nothing is left to do")
    return result


def check_resumable(settings: PretrainConfig, store: Store, config: dict[str, Any], fingerprint: str) -> None:
    """Whether a run with these settings and this store can go on.

    Raises:
        ConfigError: it had other settings.
        CompatibilityError: it had another store.
    """
    folder = RunFiles(settings.out).folder
    if fingerprint != fingerprint_of(store):
        raise CompatibilityError(f"the run in {folder} was trained on another store, or other cells, than {store.path}")
    now = settings.model_dump(mode="json")
    defaults = {name: field.default for name, field in PretrainConfig.model_fields.items()}
    before = defaults | config  # a version that did not know a setting did what its default does
    changed = [key for key in now if key not in FREE_TO_CHANGE and now[key] != before[key]]
    if changed:
        told = "; ".join(f"{key} is {before[key]} there, {now[key]} here" for key in changed)
        raise ConfigError(
            f"cannot resume {folder} with other settings: {told}. Give it the settings of its config.yaml, or begin a "
            "run in another --out"
        )


def publish(settings: PretrainConfig, inputs: Inputs, session: Session, seconds: float) -> dict[str, Any]:
    """Measures the best weights among the students' candidates, writes the teacher file, and returns the result."""
    store, progress, weights = inputs.store, session.progress, session.best_weights()
    reached: dict[str, Any] = {
        "held_out_loss": progress.best_loss,
        "next_cell_accuracy": progress.best_accuracy,
        "best_epoch": progress.best_epoch,
        "steps": progress.step,
        "seconds": round(seconds, 1),
    }
    if inputs.steps is not None:
        model = models.LMTAD.from_weights(session.architecture, weights).to(inputs.device)
        sot = store.tokeniser.vocabulary.sot
        reached["next_road_accuracy"] = candidates.measure(
            model, inputs.steps, sot, settings.candidate_windows, EVALUATED_TOKENS, inputs.device
        )
        reached["floors"] = candidates.floors_of(store)
        log.info("next road among the successors: %s", _told(reached["next_road_accuracy"], reached["floors"]))
        if (best := _worse_than_counting(reached["next_road_accuracy"], reached["floors"])) is not None:
            log.warning("%s is right more often than this teacher: train it for more epochs before you distil", best)
    provenance = {
        "made_by": f"pretrain {shared.__version__}",
        "store_fingerprint": store.fingerprint,
        **reached,
        "settings": settings.model_dump(mode="json", exclude={"data", "out", "overwrite", "resume", "log"}),
    }
    header = teacher_file.write(settings.out, weights, session.architecture.to_dict(), store.tokeniser, provenance)
    result = {**reached, "epochs": progress.epoch, **summary(settings.out, header, session.trainer.parameters)}
    run_files = RunFiles(settings.out)
    kept = {"settings": settings.model_dump(mode="json"), "store": fingerprint_of(store), "result": result}
    files.write_json(run_files.summary, kept)
    run_files.remove_checkpoints()
    return result


def _worse_than_counting(accuracies: dict[str, float | None], floors: dict[str, float]) -> str | None:
    """The rule that a teacher should beat whatever it was trained on, if this one does not, for people."""
    rule = COUNTED[0]
    known = [value for value in accuracies.values() if value is not None]
    return RULES[rule] if known and max(known) < floors.get(rule, 0.0) else None


def _told(accuracies: dict[str, float | None], floors: dict[str, float]) -> str:
    """Accuracies of the teacher beside those of rules, for people."""
    names = {window: f"window {window}" if int(window) else "whole history" for window in accuracies}
    told = [f"{names[w]} {100 * value:.1f} %" for w, value in accuracies.items() if value is not None]
    rules = {name: f"{RULES[name]} {100 * value:.1f} %" for name, value in floors.items()}
    plain = [text for name, text in rules.items() if name not in COUNTED]
    counted = [text for name, text in rules.items() if name in COUNTED]
    parts = [f"teacher: {', '.join(told) or 'no step'}"]
    parts += [f"rule: {', '.join(plain)}"] if plain else []
    parts += [f"rules counted in the whole training split: {', '.join(counted)}"] if counted else []
    return "; ".join(parts)
