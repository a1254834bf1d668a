"""Section `fairness`: what a light client's latency becomes beside one that saturates the teacher.

The light client has one request of 16 positions in flight and thinks 20 ms between them; the heavy one has four of
2,000, about contexts that nobody has seen. `cold`: the light one's contexts are new, too; `warm`: it asks the same
few requests again and again.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

from benchmarks import cities, daemon, load, meters
from benchmarks.common import Options, Result, Table, rotated, spread
from benchmarks.daemon import Daemon
from benchmarks.load import Load
from benchmarks.teacher import CITY, GRID
from benchmarks.weights import write_teacher
from shared.store import Store

KINDS = {"cold": "random", "warm": "trips"}
"""The light client's rows, and the contexts that they come from."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        n_layer, n_embd: of the teacher.
        rounds: how often every case has its turn.
        seconds: of a turn of the light client.
        lead: seconds that the heavy client has before it.
        heavy: positions of the heavy client's requests.
    """

    n_layer: int = 4
    n_embd: int = 256
    rounds: int = 3
    seconds: float = 10.0
    lead: float = 3.0
    heavy: int = 2000


QUICK = Size(n_layer=2, n_embd=32, rounds=1, seconds=0.5, lead=0.5, heavy=500)


def run(options: Options) -> Result:
    """Measures; raises `ConfigError` if a client was not served."""
    size = QUICK if options.quick else Size()
    store = cities.open_store(options, CITY, GRID)
    teacher = write_teacher(options.work / "teacher.safetensors", store, size.n_layer, size.n_embd)
    theirs, ours = daemon.two_cores()
    rounds = []
    with daemon.serve(teacher, "engine.threads=1", cores=theirs) as server, meters.pinned(ours):
        for number in range(size.rounds):
            cases = [(kind, with_heavy) for kind in KINDS for with_heavy in (False, True)]
            rounds.append({case: _turn(server, store, *case, size, number) for case in rotated(cases, number)})
    figures = {kind: _figures(kind, rounds) for kind in KINDS}
    settings = {
        **cities.facts(store),
        "cores": {"server": theirs, "clients": ours},
        **dataclasses.asdict(size),
    }
    return Result(
        "fairness", "A light client beside a heavy one", settings, figures, [_table(figures)], _notes(settings)
    )


def _turn(server: Daemon, store: Store, kind: str, with_heavy: bool, size: Size, number: int) -> dict[str, Any]:
    """The light client's latencies, and what else the server did meanwhile."""
    light = Load(
        server.address, store.path, positions=16, think=0.02, seconds=size.seconds, pool=20, contexts=KINDS[kind],
        name="light", seed=1 + 2 * number + with_heavy,
    )  # fmt: skip
    if kind == "warm":
        load.play(dataclasses.replace(light, think=0.0, once=True))
    if not with_heavy:
        return load.run(light, server.metrics)
    heavy = Load(
        server.address, store.path, positions=size.heavy, seconds=3600.0, in_flight=4, contexts="random", name="heavy",
        seed=1000 * (number + 1) + (kind == "cold"),
    )  # fmt: skip
    with load.beside(heavy, server.metrics):
        time.sleep(size.lead)
        return load.run(light, server.metrics)


def _figures(kind: str, rounds: list[dict[tuple[str, bool], dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the rounds; ratios within a round."""

    def latencies(with_heavy: bool, quantile: str) -> list[float]:
        return [turns[kind, with_heavy]["latency_ms"][quantile] for turns in rounds]

    figures: dict[str, Any] = {}
    for name, with_heavy in (("alone", False), ("beside", True)):
        figures[name] = {
            **{f"{quantile}_ms": spread(latencies(with_heavy, quantile)) for quantile in ("p50", "p99")},
            "requests": sum(turns[kind, with_heavy]["requests"] for turns in rounds),
            "batch_positions": statistics.median(turns[kind, with_heavy]["batch_positions"] or 0.0 for turns in rounds),
        }
    for quantile in ("p50", "p99"):
        pairs = zip(latencies(True, quantile), latencies(False, quantile), strict=True)
        figures[f"ratio_{quantile}"] = spread([beside / alone for beside, alone in pairs])
    return figures


def _table(figures: dict[str, Any]) -> Table:
    rows = []
    for kind, found in figures.items():
        for name in ("alone", "beside"):
            quantiles = [f"{found[name][f'{quantile}_ms']['median']:.2f}" for quantile in ("p50", "p99")]
            ratios = [""] * 3
            if name == "beside":
                p99 = found["ratio_p99"]
                ratios = [f"{found['ratio_p50']['median']:.2f}", f"{p99['median']:.2f}"]
                ratios.append(f"{p99['min']:.2f} to {p99['max']:.2f}")
            rows.append([f"{kind}, {name}", f"{found[name]['requests']:,}", *quantiles, *ratios])
    header = ["light client", "requests", "p50 ms", "p99 ms", "ratio of p50", "ratio of p99", "least to most"]
    return Table("16 positions a request, 20 ms between them", header, rows)


def _notes(settings: dict[str, Any]) -> list[str]:
    cores = settings["cores"]
    apart = (
        f"Server on core {cores['server'][0]}, clients on core {cores['clients'][0]}."
        if cores["server"]
        else ("One core for server and clients.")
    )
    return [
        f"Teacher of {settings['n_layer']} layers of {settings['n_embd']}, one thread, window 4; {settings['rounds']} "
        f"rounds by turns of {settings['seconds']:g} s, medians; ratios are taken within a round. {apart}",
        f"The heavy client: {settings['heavy']:,} positions a request of random cells, never the same, up to 4 in "
        "flight as the server grants. Cold: the light client's rows are new, too; warm: 20 "
        "requests again and again.",
    ]
