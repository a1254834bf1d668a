"""Two arms, metric by metric: over the trips that both have made, and over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl

from shared.arrays import Float64
from student_trainer.compare import over_seeds, verdicts
from student_trainer.compare.arms import Arm
from student_trainer.compare.config import CompareConfig
from student_trainer.compare.over_seeds import OverSeeds
from student_trainer.compare.significance_tests import PairedTest, holm, mcnemar, wilcoxon
from student_trainer.compare.verdicts import OverTrips, Question
from student_trainer.evaluate import next_road, trip_metrics
from student_trainer.evaluate.bootstrap import Bootstrap, Estimate
from student_trainer.evaluate.evaluation import Evaluation, over_runs
from student_trainer.evaluate.next_road import StepMetric
from student_trainer.evaluate.trip_metrics import PairMetric

Runs = Sequence[Evaluation]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of one metric: an arm minus the baseline."""

    metric: str
    question: Question
    trips: OverTrips
    seeds: OverSeeds | None

    @property
    def claims_trips_alone(self) -> bool:
        """Whether it is shown on these trips, and nothing can be said of other seeds."""
        return self.seeds is None and verdicts.level(self.question, self.trips, self.seeds) == "trips"

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        level = verdicts.level(self.question, self.trips, self.seeds)
        by = self.seeds if level == "seeds" and self.seeds is not None else self.trips
        return {
            "difference": self.trips.difference,
            "level": level,
            "direction": "" if level == "none" else self.question.direction(by.difference),
            "verdict": verdicts.sentence(self.question, self.trips, self.seeds),
            "trips": dataclasses.asdict(self.trips),
            "seeds": None if self.seeds is None else dataclasses.asdict(self.seeds),
        }


def compared() -> list[PairMetric | StepMetric]:
    """The metrics that are tested, in the order of the questions: next roads, then trips; summaries' metrics first."""
    declared: list[PairMetric | StepMetric] = [*next_road.METRICS, *trip_metrics.METRICS]
    return sorted((metric for metric in declared if metric.is_compared), key=lambda metric: not metric.is_card)


def between(arms: tuple[Arm, Arm], runs: tuple[Runs, Runs], settings: CompareConfig) -> list[Difference]:
    """The differences of an arm from the baseline.

    Args:
        arms: the baseline and the other.
        runs: of both.
    """
    found = list(_over_trips(runs, settings))
    adjusted = holm([test.p for _, _, _, test in found])
    values = [np.array([_values(run, [metric.name for metric, *_ in found]) for run in side]) for side in runs]
    seeds = over_seeds.compare(values[0], values[1], (arms[0].seeds, arms[1].seeds), settings.bootstrap.confidence)
    differences = []
    for index, ((metric, means, estimate, test), p_holm) in enumerate(zip(found, adjusted, strict=True)):
        question = Question(
            metric.label, metric.unit, metric.better == "higher", arms[0].name, arms[1].name,
            (len(runs[0]), len(runs[1])), settings.bootstrap.confidence, settings.significance, len(found),
        )  # fmt: skip
        trips = OverTrips(
            *means, estimate.low, estimate.high, test.p, p_holm, test.name, test.effect_size, test.kind, estimate.n
        )
        differences.append(Difference(metric.name, question, trips, None if seeds is None else seeds[index]))
    return differences


def described(runs: Runs, settings: CompareConfig) -> dict[str, dict[str, Any]]:
    """Every metric of an arm; see `over_runs`. Those that are tested have an interval and a spread over trips, too."""
    found = over_runs(runs)
    for metric in compared():
        if metric.name not in found:
            continue
        if isinstance(metric, StepMetric):
            sums = _summed(runs, metric)
            bootstrap = Bootstrap(settings.bootstrap, len(sums))
            estimate = bootstrap.ratio(sums[:, 0], sums[:, 1], found[metric.name]["n"])
            with np.errstate(invalid="ignore"):
                values = sums[:, 0] / sums[:, 1]
        else:
            values = _averaged(runs, metric)
            estimate = Bootstrap(settings.bootstrap, len(values)).mean(values)
        known = values[np.isfinite(values)]
        spread = float(known.std(ddof=1)) if len(known) > 1 else None
        found[metric.name] |= {"low": estimate.low, "high": estimate.high, "sd_over_trips": spread}
    return found


Found = tuple[PairMetric | StepMetric, tuple[float, float], Estimate, PairedTest]


def _over_trips(runs: tuple[Runs, Runs], settings: CompareConfig) -> Iterator[Found]:
    """Of each metric: means of both, the interval of their difference, and the test."""
    has_steps = all(run.next_road is not None for side in runs for run in side)
    known = set.intersection(*(set(run.document["metrics"]) for side in runs for run in side))
    for metric in compared():
        if metric.name not in known:  # durations that are placeholders, or next roads that one has not measured
            continue
        if isinstance(metric, PairMetric):
            before, after = (_averaged(side, metric) for side in runs)
            is_plain = metric.is_flag and len(runs[0]) == len(runs[1]) == 1
            test = mcnemar(before > 0, after > 0) if is_plain else wilcoxon(after - before)
            estimate = Bootstrap(settings.bootstrap, len(before)).mean(after - before)
            yield metric, (float(before.mean()), float(after.mean())), estimate, test
        elif has_steps:
            yield _of_steps(metric, np.concatenate([_summed(side, metric) for side in runs], axis=1), settings)


def _of_steps(metric: StepMetric, sums: Float64, settings: CompareConfig) -> Found:
    """Means over steps, resampled by trip; the test compares the trips' own means."""
    with np.errstate(invalid="ignore", divide="ignore"):
        trip_means = sums[:, [0, 2]] / sums[:, [1, 3]]

    def difference(totals: Float64) -> Float64:
        return np.asarray(totals[..., 2] / totals[..., 3] - totals[..., 0] / totals[..., 1])

    known = int(np.isfinite(trip_means).all(axis=1).sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate = Bootstrap(settings.bootstrap, len(sums)).statistic(sums, difference, known)
        totals = sums.sum(axis=0)
        means = float(totals[0] / totals[1]), float(totals[2] / totals[3])
    return metric, means, estimate, wilcoxon(trip_means[:, 1] - trip_means[:, 0])


def _averaged(runs: Runs, metric: PairMetric) -> Float64:
    """Of each pair, the mean over an arm's runs: float64 [n]."""
    values = [run.pairs[metric.column].to_numpy().astype(np.float64) for run in runs]
    return np.asarray(np.mean(values, axis=0), np.float64)


def _summed(runs: Runs, metric: StepMetric) -> Float64:
    """Of each trip of the split, the sum over an arm's runs and steps, and how many: float64 [n, 2]."""
    columns = metric.column, f"{metric.column}_count"
    tables: list[pl.DataFrame] = [run.next_road for run in runs if run.next_road is not None]
    sums = [table.select(columns).to_numpy().astype(np.float64) for table in tables]
    return np.asarray(np.sum(sums, axis=0), np.float64)


def _values(run: Evaluation, metrics: Sequence[str]) -> list[float]:
    values = [run.document["metrics"][metric]["value"] for metric in metrics]
    return [np.nan if value is None else float(value) for value in values]
