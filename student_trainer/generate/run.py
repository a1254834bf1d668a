"""`student-trainer generate`: OD pairs of a split -> trips.

OUT/trips.parquet   a trip per OD pair, whatever became of it; see `records.SCHEMA` and `found.Found`
OUT/trips.csv       the same in upstream's columns
OUT/summary.json    what was asked, how many arrived, what the search took
OUT/config.yaml     the settings
OUT/parts/          finished trips of a run that was stopped: the same command goes on from there
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
import torch

from shared import claims, cli, config, files, progress, provenance
from shared.errors import ConfigError, FileFormatError
from shared.store import Store
from student_trainer.data import graph
from student_trainer.data.generated import FORMAT
from student_trainer.data.network import RoadNetwork
from student_trainer.generate import records, workers
from student_trainer.generate.beam import BeamSearch
from student_trainer.generate.best_first import BestFirstSearch
from student_trainer.generate.config import LANES, LANES_FAR, THREADS_FAR, GenerateConfig, SearcherConfig
from student_trainer.generate.found import STATUSES, Found
from student_trainer.generate.pairs import Pairs, draw
from student_trainer.generate.records import Parts
from student_trainer.generate.shortest import ShortestPathSearch, class_paces
from student_trainer.model import device as devices
from student_trainer.model import students
from student_trainer.model.student import Decoder
from student_trainer.model.weights import load_model

log = logging.getLogger(__name__)

RESULTS = ("summary.json", "trips.parquet", "trips.csv", "config.yaml")
DIGESTED = ("trips.parquet", "trips.csv")
"""Results whose SHA-256 the summary holds."""
NOT_DECIDING = {"data", "weights", "out", "name", "batch_trips", "block_trips", "threads", "cache", "replace", "device"}
"""Settings that no trip depends on; data and weights count by their content, the device by its kind."""


class Search(Protocol):
    """A way to find trips."""

    def run(self, todo: Iterable[int]) -> Iterator[Found]:
        """The trips of these pairs, in the order in which they are found."""
        ...


def run(settings: GenerateConfig) -> int:
    """Generates and writes, or finds it done; prints the summary as one line of JSON on stdout.

    Raises:
        ConfigError: settings do not fit the data, OUT holds something else, or another job writes there.
        CompatibilityError: the weights are of another network or store.
        DataError, FileFormatError: a file is missing or damaged, or the split is empty.
    """
    print(json.dumps(generate(settings)), flush=True)
    log.info("next: %s", _next(settings))
    return 0


def _next(settings: GenerateConfig) -> str:
    beside = settings.out.with_name(f"eval-{settings.out.name.removeprefix('trips-')}")
    weights = ("--weights", str(settings.weights)) if settings.has_weights else ()
    places = ("--data", str(settings.data), "--trips", str(settings.out), *weights, "--out", str(beside))
    return cli.command("student-trainer", "evaluate", *places)


def generate(settings: GenerateConfig) -> dict[str, Any]:
    """Generates and writes, or finds it done; returns the summary. Raises as `run`."""
    with claims.directory(settings.out):
        return _generate(settings)


def _generate(settings: GenerateConfig) -> dict[str, Any]:
    store = Store(settings.data)
    parts = Parts(settings.out)
    weights = _weights(settings)
    device = devices.pick_device(settings.device if settings.has_weights else "cpu")
    fingerprint = _fingerprint(settings, store, weights, device)
    if (done := _finished(settings, fingerprint)) is not None:
        return done
    _check_target(settings, parts, fingerprint)
    trips = store.trips(settings.split, settings.cache)
    pairs = draw(trips, settings.pairs, settings.seed, settings.split)
    searcher = Searcher(settings, store, pairs, _student(settings, store, device))  # before anything is written
    if parts.fingerprint != fingerprint:
        parts.remove()
        for name in RESULTS:  # nobody may take what is replaced for what is asked
            files.remove(settings.out / name)
        parts.start(fingerprint)
    found, took = _search(settings, searcher, pairs, parts)
    summary = _summary(settings, store, weights, found, took)
    summary |= {"device": devices.describe(device), "fingerprint": fingerprint}
    config.save(settings, "generate", settings.out / "config.yaml")
    records.write_csv(settings.out / "trips.csv", found)
    records.write_parquet(settings.out / "trips.parquet", found)
    summary["files"] = {name: files.file_digest(settings.out / name) for name in DIGESTED}
    files.write_json(settings.out / "summary.json", summary)
    parts.remove()
    log.info("wrote %s (searched on %s): %s", settings.out, summary["device"], _counted(summary["statuses"]))
    return summary


def _weights(settings: GenerateConfig) -> dict[str, str] | None:
    """The file of the weights and its digest."""
    if not settings.has_weights:
        return None
    try:
        return {"file": str(settings.weights), "sha256": files.file_digest(Path(settings.weights))}
    except OSError as error:
        raise FileFormatError(f"cannot read the weights {settings.weights}: {error.strerror}") from None


def _fingerprint(settings: GenerateConfig, store: Store, weights: dict[str, str] | None, device: torch.device) -> str:
    """Digest of all that decides the trips; places and pace do not."""
    values = settings.model_dump(mode="json", exclude=NOT_DECIDING)
    sha = weights and weights["sha256"]
    decides = [FORMAT, code_version(), store.fingerprint, sha, device.type, values]
    return files.digest(json.dumps(decides, sort_keys=True))


def code_version() -> str:
    """Digest of the source that decides what is generated."""
    return provenance.source_digest(__name__)


def _finished(settings: GenerateConfig, fingerprint: str) -> dict[str, Any] | None:
    """The summary in OUT if it is of these settings, under the name that they give.

    Raises:
        FileFormatError: its trips have changed since, and may not be replaced.
    """
    path = settings.out / "summary.json"
    if records.fingerprint_of(path) != fingerprint or not all((settings.out / name).is_file() for name in RESULTS):
        return None
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for name, sha in summary.get("files", {}).items():
        if files.file_digest(settings.out / name) != sha:
            if not settings.replace:
                raise FileFormatError(
                    f"{settings.out / name} is not as `generate` wrote it (damaged, or edited); "
                    "replace=true makes it again"
                )
            log.warning("%s is not as it was written; generating again", settings.out / name)
            return None
    if summary["name"] != _name(settings):
        summary["name"] = _name(settings)
        files.write_json(path, summary)
    Parts(settings.out).remove()
    log.info("%s is up to date", settings.out)
    return summary


def _check_target(settings: GenerateConfig, parts: Parts, fingerprint: str) -> None:
    """Refuses to replace what the user may still want."""
    out = settings.out
    if parts.fingerprint == fingerprint:
        return
    has_trips = records.fingerprint_of(out / "summary.json") is not None
    claims.check(out, "a directory of generated trips", lambda _: parts.fingerprint is not None or has_trips)
    if (has_trips or parts.holds_trips) and not settings.replace:
        raise ConfigError(
            f"{out} holds trips of other settings, weights, data or software; choose another --out, or replace=true"
        )


def _name(settings: GenerateConfig) -> str:
    return settings.name or settings.out.resolve().name


def _student(settings: GenerateConfig, store: Store, device: torch.device) -> Decoder | None:
    if not settings.has_weights:
        return None
    model, scale = load_model(Path(settings.weights), store)
    parts = students.architecture_of(model)
    return parts.decoder(model.to(device), RoadNetwork.load(store), scale, settings.candidate_top_k)


class Searcher:
    """The search of the settings, and the pairs that need none.

    Attributes:
        student: the model, if there is one.
    """

    def __init__(self, settings: SearcherConfig, store: Store, pairs: Pairs, student: Decoder | None) -> None:
        """Without a student the only method is shortest_path; the others compute on the student's device."""
        self._device = torch.device("cpu") if student is None else student.device
        is_far = self._device.type != "cpu"
        usual = settings.batch_trips or (LANES_FAR if is_far else LANES)
        self._lanes = min(usual, len(pairs))  # what a lane needs grows with the network
        self._pairs, self._has_choice, self.student = pairs, settings.method != "shortest_path", student
        network = RoadNetwork.load(store) if student is None else student.network
        self._here = pairs.origin == pairs.destination
        self._open = graph.reachable(network, pairs.origin, pairs.destination)
        usual = settings.threads or (THREADS_FAR if is_far else provenance.cores())
        threads = usual if self.student is not None else 1
        self._searches = [self._make(settings, store, network) for _ in range(threads)]

    def _make(self, settings: SearcherConfig, store: Store, network: RoadNetwork) -> Search:
        pairs, student = self._pairs, self.student
        if settings.method == "shortest_path":
            length = store.network("length").astype(np.float64)
            seconds = np.zeros(network.num_roads)
            if student is None:
                seconds = length * class_paces(network, length, store.trips("train", settings.cache))
            return ShortestPathSearch(network, length, pairs, seconds, student, self._lanes)
        assert student is not None
        if settings.method == "best_first":
            return BestFirstSearch(student, pairs, settings.search, self._lanes)
        search = settings.search
        if settings.method == "greedy":
            search = search.model_copy(update={"width": 1, "finish": "first"})
        return BeamSearch(student, pairs, search, self._lanes)

    def run(self, todo: Sequence[int]) -> Iterator[Found]:
        """The trips of these pairs; those that begin where they end, and those without a way, need no search."""
        log_prob = 0.0 if self._has_choice else None
        for pair in todo:
            if self._here[pair] or not self._open[pair]:
                roads, times = self._pairs.origin[[pair]], self._pairs.departure[[pair]]
                yield Found(pair, "arrived" if self._here[pair] else "unreachable", roads, times, log_prob, 0)
        runs = [functools.partial(self._search_there, search) for search in self._searches]
        with devices.float32_products(self._device, tf32=False):
            yield from workers.search(runs, [pair for pair in todo if self._open[pair] and not self._here[pair]])

    def _search_there(self, search: Search, todo: Iterable[int]) -> Iterator[Found]:
        devices.make_current(self._device)  # of a worker's thread
        yield from search.run(todo)


def _search(
    settings: GenerateConfig, searcher: Searcher, pairs: Pairs, parts: Parts
) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    """All trips, those of an earlier run of the same settings included, and what each part took."""
    known = parts.read()[0]["pair"].to_list()
    if known:
        log.info("%s: going on from %d finished trips", parts.folder, len(known))
    todo = np.setdiff1d(np.arange(len(pairs)), np.array(known, np.int64)).tolist()
    block = _Block(parts, pairs, searcher.student)
    arrived = 0
    with progress.bar(total=len(pairs), initial=len(known), unit="trip") as bar:
        try:
            for number, found in enumerate(searcher.run(todo), 1):
                block.add(found)
                if len(block) >= settings.block_trips:
                    block.write()
                arrived += found.status == "arrived"
                bar.set_postfix(arrived=f"{100 * arrived / number:.1f} %", refresh=False)
                bar.update()
        finally:
            block.write()
    return parts.read()


class _Block:
    """Finished trips that are not on disk yet, and what they have taken."""

    def __init__(self, parts: Parts, pairs: Pairs, student: Decoder | None) -> None:
        self._parts, self._pairs, self._student = parts, pairs, student
        self._found: list[Found] = []
        self._start = self._state()

    def __len__(self) -> int:
        return len(self._found)

    def add(self, found: Found) -> None:
        """Adds a trip."""
        self._found.append(found)

    def write(self) -> None:
        """Writes them as a part."""
        if not self._found:
            return
        state = self._state()
        self._parts.write(
            records.table(self._found, self._pairs), {name: state[name] - self._start[name] for name in state}
        )
        self._found, self._start = [], state

    def _state(self) -> dict[str, float]:
        calls, rows = (self._student.forward_calls, self._student.forward_rows) if self._student else (0, 0)
        return {"seconds": time.perf_counter(), "forward_calls": calls, "forward_rows": rows}


def _counted(statuses: Mapping[str, int]) -> str:
    """How many trips ended how, for people: those that did."""
    ended = [f"{count} {status.replace('_', ' ')}" for status, count in statuses.items() if count]
    return f"{sum(statuses.values())} trips: {', '.join(ended)}"


def _summary(
    settings: GenerateConfig,
    store: Store,
    weights: dict[str, str] | None,
    found: pl.DataFrame,
    took: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    statuses = Counter(found["status"].to_list())
    totals = {name: sum(part[name] for part in took) for name in ("seconds", "forward_calls", "forward_rows")}
    seconds = totals.pop("seconds")
    expanded, steps = found["expanded"].to_numpy(), found["steps"].to_numpy()
    return {
        "format": FORMAT,
        "name": _name(settings),
        "store": store.fingerprint,
        "split": settings.split,
        "method": settings.method,
        "weights": weights,
        "settings": settings.model_dump(mode="json"),
        "code_version": code_version(),
        "pairs": len(found),
        "statuses": {status: statuses[status] for status in STATUSES},
        "seconds": seconds,
        "trips_per_s": len(found) / seconds,
        "search": {
            **totals,
            "expanded": int(expanded.sum()),
            "expanded_per_trip": {
                "mean": float(expanded.mean()),
                **{f"p{share}": float(np.percentile(expanded, share)) for share in (5, 50, 95, 100)},
            },
            "steps_per_trip": float(steps.mean()),
        },
        "environment": provenance.environment(),
    }
