"""Compares the trips of every arm with those of labels alone, pair by pair, and writes the tables.

    python -m benchmarks.regimes.pairs [RUNS ...]

Reads what `pool` left: RUNS/TEACHER/TRIPS/ARM-SEED/evaluation. A pair's value is the mean over an arm's seeds; p-values
are of Wilcoxon's test, corrected by Holm over the metrics of an arm, as `student-trainer compare` does. The evaluations
are too large to be kept, so the comparisons are (regimes_pairs.jsonl): of the same one, that of more seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.regimes import arms, runs
from benchmarks.regimes.runs import HIGHER_IS_BETTER, RESULTS, TRIPS
from benchmarks.regimes.tables import FREE, SIGNIFICANCE, TITLES, header, row
from shared import files
from student_trainer.compare import differences
from student_trainer.compare.arms import Arm
from student_trainer.compare.config import CompareConfig
from student_trainer.compare.differences import Difference
from student_trainer.evaluate.evaluation import Evaluation, check_same, read

TABLE = RESULTS / "regimes_pairs.md"
KEPT = RESULTS / "regimes_pairs.jsonl"

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


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An arm minus a base.

    Attributes:
        seeds: that both have, or of the arm where there are none such.
        metrics: mean difference over pairs and Holm's p-value of each metric of whole trips.
    """

    teacher: str
    trips: int
    base: str
    arm: str
    seeds: int
    metrics: Mapping[str, tuple[float, float]]

    @property
    def key(self) -> tuple[str, int, str, str]:
        """What is compared."""
        return self.teacher, self.trips, self.base, self.arm


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
    evaluations = [list(side.by_seed.values()) for side in sides]
    for other in itertools.chain(*evaluations):
        check_same(evaluations[0][0], other)
    settings = CompareConfig(evaluations=(Path("one"), Path("other")), out=Path("unwritten"), significance=SIGNIFICANCE)
    both = sides[0].as_arm(names[0]), sides[1].as_arm(names[1])
    compared = differences.between(both, (evaluations[0], evaluations[1]), settings)
    return [one for one in compared if one.metric in TRIPS]


def _is_compared(teacher: str, arm: str, base: str) -> bool:
    is_other = teacher != "all" and arm in FREE
    return not is_other and arm != base and (base == "vanilla" or arms.arm(arm).is_long)


def compared(judged: Mapping[Key, Judged]) -> Iterator[Comparison]:
    """Each arm with each base of its regime."""
    for (teacher, trips, arm), mine in judged.items():
        for name in BASES:
            base = judged.get(("all", trips, name))
            if base is None or not _is_compared(teacher, arm, name):
                continue
            seeds = len(base.by_seed.keys() & mine.by_seed.keys()) or len(mine.by_seed)
            metrics = {one.metric: (one.trips.difference, one.trips.p_holm) for one in between(base, mine, (name, arm))}
            yield Comparison(teacher, trips, name, arm, seeds, metrics)


def kept(path: Path = KEPT) -> list[Comparison]:
    """Those that are kept."""
    return [Comparison(**line) for line in runs.read(path)]


def merged(known: Iterable[Comparison], new: Iterable[Comparison]) -> list[Comparison]:
    """Of the same comparison that of more seeds, or the newer one; sorted."""
    by_key: dict[Any, Comparison] = {}
    for one in [*known, *new]:
        if one.key not in by_key or by_key[one.key].seeds <= one.seeds:
            by_key[one.key] = one
    return [by_key[key] for key in sorted(by_key)]


def _row(one: Comparison) -> str:
    cells = []
    for metric, (_, scale, digits) in TRIPS.items():
        if metric not in one.metrics:
            cells.append("")
            continue
        difference, p = one.metrics[metric]
        cell = f"{scale * difference:+.{digits}f}"
        better = "better" if (difference > 0) == (metric in HIGHER_IS_BETTER) else "worse"
        cells.append(f"**{cell}** {better}, p {p:.1g}" if p < SIGNIFICANCE else f"{cell} (p {p:.2g})")
    return row(arms.arm(one.arm).text, one.seeds, *cells)


def page(comparisons: Iterable[Comparison]) -> str:
    """Tables for each teacher and number of labelled trips: against labels alone, and for as many steps."""
    by_key = {one.key: one for one in comparisons}
    labels = [label for label, _, _ in TRIPS.values()]
    lines = ["<!-- python -m benchmarks.regimes.pairs RUNS -->", ""]
    for teacher, title in TITLES.items():
        for trips in sorted({one.trips for one in by_key.values() if one.teacher == teacher}):
            lines += [f"### {title}, {trips:,} labelled trips", ""]
            for base, text in BASES.items():
                keys = ((teacher, trips, base, arm.name) for arm in arms.ALL)
                if rows := [_row(by_key[key]) for key in keys if key in by_key]:
                    lines += [*header(f"arm, minus {text}", "seeds", *labels), *rows, ""]
    return "\n".join(lines)


def main() -> int:
    """Compares evaluations, adds the comparisons to those that are kept, and writes the tables."""
    parser = argparse.ArgumentParser("benchmarks.regimes.pairs", description=main.__doc__)
    parser.add_argument("runs", type=Path, nargs="*")
    comparisons = merged(kept(), compared(found(parser.parse_args().runs)))
    files.write_text(KEPT, "".join(json.dumps(dataclasses.asdict(one)) + "\n" for one in comparisons))
    text = page(comparisons)
    files.write_text(TABLE, text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
