"""The models in a directory, those of a store among them, and the arms that they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from shared import files
from shared.errors import ConfigError
from shared.store import Store
from student_trainer.compare import arms
from student_trainer.compare.arms import Arm
from student_trainer.evaluate import training
from student_trainer.evaluate.training import Training
from student_trainer.runs.layout import BEST, RunFiles

TRIALS = "optuna_trials"
"""Where `tune` keeps the runs of its trials."""


@dataclasses.dataclass(frozen=True)
class Model:
    """Weights under a name.

    Attributes:
        weights: their file; None: shortest paths, which need none.
        sha256: of the file's bytes.
        run: the directory that `train` wrote, if they are from one.
        training: how they were trained, if it is known.
    """

    name: str
    weights: Path | None
    sha256: str
    run: Path | None
    training: Training | None = None

    def as_arms(self) -> arms.Model:
        """What arms are made of."""
        known = None if self.training is None else self.training.as_dict()
        source = arms.weights_of(known, self.sha256)
        return arms.Model(self.name, known, is_reference=self.weights is None, weights=source)


SHORTEST = Model("shortest-path", None, "", None)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a directory holds.

    Attributes:
        models: the baseline's first, arm by arm.
        arms: the baseline first.
        left_out: a line about each thing that is no model of the store or is one twice, or that has not finished.
    """

    models: Sequence[Model]
    arms: Sequence[Arm]
    left_out: Sequence[str]

    def lines(self) -> list[str]:
        """For people: arms, the baseline, what was left out."""
        told = []
        for arm in self.arms:
            known = [str(seed) for seed in arm.seeds if seed is not None]
            seeds = f", seed{'s' if len(known) > 1 else ''} {' '.join(known)}" if known else ""
            told.append(f"arm {arm.name}: {', '.join(arm.models)}{seeds}")
        note = arms.steps_note(self.arms)
        return [*told, arms.sentence(self.arms[0]), *([f"note: {note}"] if note else []), *self.left_out]


def find(folder: Path, store: Store, baseline: str, shortest_path: bool) -> Found:
    """The models of a store in a directory.

    Runs on other stores are left out, and so are trials of studies, and copies: of models of the same weights the
    baseline's is taken, or the first by name. Weights that are damaged, or of which nothing is
    known, are models: who loads them says what is wrong with them.

    Raises:
        ConfigError: there is none, two have the same name, or none has the baseline's.
    """
    every = [path.parents[1] for path in sorted(folder.rglob(str(BEST)))]
    runs = [run for run in every if TRIALS not in run.relative_to(folder).parts]
    left_out = [f"left out: {len(every) - len(runs)} trials of studies"] if len(runs) < len(every) else []
    candidates: list[tuple[str, Path, Path | None]] = [(_name(run, folder), run / BEST, run) for run in runs]
    public = [path for path in sorted(folder.glob("*.pth")) if path.parent in runs and training.is_published(path)]
    candidates += [(path.stem, path, None) for path in sorted(folder.glob("*.pth")) if path not in public]
    models, unfinished = dict[str, Model](), list[str]()
    for name, path, run in candidates:
        if name in models:
            raise ConfigError(f"{models[name].weights} and {path} would both be called {name}; rename one")
        known = training.read(path)
        if known is not None and known.store not in ("", store.fingerprint):
            left_out.append(f"left out: {name} ({path}), trained on another store than {store.path}")
            continue
        models[name] = Model(name, path, files.file_digest(path), run, known)
        if run is not None and not RunFiles(run).summary.exists():
            unfinished.append(name)
    for name, first in _copies(models, baseline).items():
        left_out.append(f"left out: {name}, whose weights are those of {first}")
        del models[name]
    notes = [
        f"note: {name} has not finished, its best weights so far are taken; go on with --resume"
        for name in unfinished
        if name in models
    ]
    if not models:
        said = f" of {store.path}: {'; '.join(left_out)}" if left_out else f": neither RUN/{BEST} nor a .pth file"
        raise ConfigError(f"{folder} holds no model{said}")
    if shortest_path:
        models[SHORTEST.name] = SHORTEST
    grouped = arms.group([models[name].as_arms() for name in sorted(models)])
    ordered = arms.in_order(grouped, arms.choose_baseline(grouped, baseline))
    return Found([models[name] for arm in ordered for name in arm.models], ordered, [*left_out, *notes])


def _copies(models: Mapping[str, Model], baseline: str) -> dict[str, str]:
    """Models whose weights another one has, too, and which that is."""
    first: dict[str, str] = {}
    copies = {}
    for name in sorted(models, key=lambda name: (name != baseline, name)):
        kept = first.setdefault(models[name].as_arms().weights, name)
        if kept != name:
            copies[name] = kept
    return copies


def _name(run: Path, folder: Path) -> str:
    return "-".join(run.relative_to(folder).parts) or run.resolve().name
