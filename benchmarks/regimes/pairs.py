"""Compares the trips of every arm with those of labels alone, pair by pair, and writes the tables.

    python -m benchmarks.regimes.pairs RUNS [RUNS ...]

Reads what `pool` left: RUNS/TEACHER/TRIPS/ARM-SEED/evaluation. A pair's value is the mean over an arm's seeds; p-values
are of Wilcoxon's test, corrected by Holm over the metrics of an arm, as `student-trainer compare` does.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.regimes import arms
from benchmarks.regimes.runs import RESULTS, TRIPS
from benchmarks.regimes.tables import FREE, SIGNIFICANCE, TITLES, header, row
from shared import files
from student_trainer.evaluate import differences
from student_trainer.evaluate.arms import Arm
from student_trainer.evaluate.config import CompareConfig
from student_trainer.evaluate.differences import Difference
from student_trainer.evaluate.evaluation import Evaluation, check_same, read

TABLE = RESULTS / "regimes_pairs.md"

BASES = {"vanilla": "labels alone", "long": "labels alone for as many steps"}
"""Arms that others are compared with."""

Key = tuple[str, int, str]
"""Teacher, labelled trips, arm."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """The evaluations of an arm, by seed."""

    by_seed: Mapping[int, Evaluation]

    def as_arm(self, name: str) -> Arm:
        """For `differences.between`."""
        return Arm(name, "unknown", tuple(f"{name}-{seed}" for seed in self.by_seed), tuple(self.by_seed), {})


def found(roots: Iterable[Path]) -> dict[Key, Judged]:
    """All evaluations of known arms; of the same run in several places, the first."""
    paths: dict[Key, dict[int, Path]] = {}
    for path in itertools.chain.from_iterable(sorted(root.glob("*/*/*/evaluation")) for root in roots):
        teacher, trips, run = path.parts[-4:-1]
        arm, _, seed = run.rpartition("-")
        if arm in arms.BY_NAME:
            paths.setdefault((teacher, int(trips), arm), {}).setdefault(int(seed), path)
    return {key: Judged({seed: read(path) for seed, path in sorted(of.items())}) for key, of in paths.items()}


def between(before: Judged, after: Judged, names: tuple[str, str]) -> list[Difference]:
    """An arm minus another, of the metrics of whole trips; over the seeds that both have, if there are such."""
    common = sorted(before.by_seed.keys() & after.by_seed.keys()) or None
    sides = [Judged({seed: side.by_seed[seed] for seed in common}) if common else side for side in (before, after)]
    runs = [list(side.by_seed.values()) for side in sides]
    for other in itertools.chain(*runs):
        check_same(runs[0][0], other)
    settings = CompareConfig(evaluations=(Path("one"), Path("other")), out=Path("unwritten"), significance=SIGNIFICANCE)
    both = sides[0].as_arm(names[0]), sides[1].as_arm(names[1])
    return [one for one in differences.between(both, (runs[0], runs[1]), settings) if one.metric in TRIPS]


def _row(text: str, seeds: int, compared: Sequence[Difference]) -> str:
    cells = []
    by_metric = {one.metric: one for one in compared}
    for metric, (_, scale, digits) in TRIPS.items():
        if metric not in by_metric:
            cells.append("")
            continue
        one = by_metric[metric]
        cell = f"{scale * one.trips.difference:+.{digits}f}"
        is_shown = one.trips.p_holm < SIGNIFICANCE
        better = one.question.direction(one.trips.difference)
        cells.append(
            f"**{cell}** {better}, p {one.trips.p_holm:.1g}" if is_shown else f"{cell} (p {one.trips.p_holm:.2g})"
        )
    return row(text, seeds, *cells)


def _is_compared(arm: arms.Arm, base: str) -> bool:
    return arm.name != base and (base == "vanilla" or arm.is_long)


def page(judged: Mapping[Key, Judged]) -> str:
    """Tables for each teacher and number of labelled trips: against labels alone, and for as many steps."""
    lines = ["<!-- python -m benchmarks.regimes.pairs RUNS -->", ""]
    for teacher, title in TITLES.items():
        for trips in sorted({key[1] for key in judged if key[0] == teacher}):
            found = []
            for name, text in BASES.items():
                base = judged.get(("all", trips, name))
                rows = []
                for arm in arms.ALL:
                    mine = judged.get((teacher, trips, arm.name))
                    is_other = teacher == "own" and arm.name in FREE
                    if base is None or mine is None or is_other or not _is_compared(arm, name):
                        continue
                    seeds = len(base.by_seed.keys() & mine.by_seed.keys()) or len(mine.by_seed)
                    rows.append(_row(arm.text, seeds, between(base, mine, (name, arm.name))))
                if rows:
                    labels = (label for label, _, _ in TRIPS.values())
                    found += [*header(f"arm, minus {text}", "seeds", *labels), *rows, ""]
            if found:
                lines += [f"### {title}, {trips:,} labelled trips", "", *found]
    return "\n".join(lines)


def main() -> int:
    """Reads evaluations, writes the table."""
    parser = argparse.ArgumentParser("benchmarks.regimes.pairs", description=main.__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    text = page(found(parser.parse_args().runs))
    files.write_text(TABLE, text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
