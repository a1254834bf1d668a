"""The regimes' runs: what arms are told, what controls answer, what tables say."""

from __future__ import annotations

import dataclasses
import itertools
import json
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from support.random_city import write_random_store

from benchmarks.regimes import arms, cells, costs, page, pairs, pool, runs, tables
from benchmarks.regimes.one import ControlTeacher
from shared import config, ragged
from shared.grid import Grid
from shared.wire import HistoryMode, ScoreQuery, ScoreReply
from student_trainer.data.network import RoadNetwork
from student_trainer.distill.teacher import FailureStats
from student_trainer.train.config import TrainConfig


class Counting:
    """Answers each candidate with its place in the request."""

    def __init__(self) -> None:
        self.revision, self.failure_stats = "r", FailureStats()

    def submit(self, query: ScoreQuery) -> Future[ScoreReply]:
        done: Future[ScoreReply] = Future()
        values = -np.arange(len(query.candidate_tokens), dtype=np.float16)
        done.set_result(ScoreReply(values, None, "r", 1, 1))
        return done

    def close(self) -> None: ...


def query(lengths: list[int], seed: int = 0) -> ScoreQuery:
    candidates = np.random.default_rng(seed).integers(0, 3000, sum(lengths)).astype(np.int32)
    rows = np.ones(len(lengths), np.int32)
    return ScoreQuery(HistoryMode.WINDOW, rows, rows, candidates, np.array(lengths, np.int32))


def answered(control: arms.Control, asked: ScoreQuery) -> np.ndarray:
    return np.asarray(ControlTeacher(Counting(), control).submit(asked).result(1).log_probs)


LENGTHS = [3, 1, 4, 2, 5] * 40


def test_shuffled_answers_are_those_of_the_position_in_another_order() -> None:
    asked = query(LENGTHS)
    found, row = answered("shuffled", asked), ragged.rows(np.array(LENGTHS))
    before = -np.arange(len(row), dtype=np.float16)
    assert [sorted(found[row == i]) for i in range(len(LENGTHS))] == [
        sorted(before[row == i]) for i in range(len(LENGTHS))
    ]
    moved = [bool((found[row == i] != before[row == i]).any()) for i in range(len(LENGTHS)) if LENGTHS[i] == 5]
    assert np.mean(moved) > 0.9  # 1 of 120 orders is the first
    swapped = np.diff(answered("shuffled", query([2] * 1000)).reshape(-1, 2)) > 0
    assert 0.45 < swapped.mean() < 0.55


def test_shuffled_answers_are_the_same_whenever_asked() -> None:
    """Alone, or behind others."""
    asked = query([4, 5])
    both = np.concatenate([query([3, 3]).candidate_tokens, asked.candidate_tokens])
    rows = np.ones(4, np.int32)
    behind = answered("shuffled", ScoreQuery(asked.mode, rows, rows, both, np.array([3, 3, 4, 5], np.int32)))
    np.testing.assert_array_equal(behind[6:] + 6, answered("shuffled", asked))


def test_even_answers_are_even() -> None:
    found, row = np.exp(answered("uniform", query(LENGTHS)).astype(np.float64)), ragged.rows(np.array(LENGTHS))
    np.testing.assert_allclose(np.bincount(row, weights=found), 1, atol=2e-3)
    np.testing.assert_allclose(found, 1 / np.array(LENGTHS)[row], atol=1e-3)


@pytest.mark.parametrize("regime", arms.REGIMES, ids=lambda regime: str(regime.trips))
def test_every_arm_is_a_recipe(regime: arms.Regime) -> None:
    for arm in arms.ALL:
        told = [*arms.overrides(arm, regime, 3, arm.samples), "data=d", "out=o"]
        given = [*told, "teacher=h:1"] if arm.teaches else told
        found = config.load(TrainConfig, "train", [], [*given, *(["batch.sampled=s"] if arm.samples else [])])
        assert (found.seed, found.batch.train_trips) == (3, regime.trips)


def test_equal_steps_are_equal() -> None:
    """To half an epoch, whether `train` leaves the default's sampled trips out or not."""
    for regime, is_mixed in itertools.product(arms.REGIMES, (False, True)):
        epochs, per_epoch = {}, {}
        for name, has_sampled in (("passes-1", True), ("default", is_mixed), ("long", False)):
            extra = arms.SAMPLED_TRIPS if has_sampled else 0
            found = dict(text.split("=") for text in arms.overrides(arms.arm(name), regime, 0, has_sampled))
            trips = int(found.get("batch.labelled_passes", 1)) * regime.trips + extra
            per_epoch[name] = -(-trips // int(found["optim.batch_size"]))
            epochs[name] = int(found["optim.epochs"])
        for name in ("default", "long"):
            steps = [epochs[arm] * per_epoch[arm] for arm in ("passes-1", name)]
            assert abs(steps[0] - steps[1]) <= per_epoch[name] / 2


def run_of(arm: str, seed: int, accuracy: float) -> dict[str, Any]:
    test = {"accuracy": accuracy, "nll": 0.3, "ece": 0.01, "time_error": 0.1}
    return {"teacher": "all", "trips": 1000, "arm": arm, "seed": seed, "steps": 320, "device": "cpu", "test": test}


def test_the_table_says_what_differs() -> None:
    found = [run_of("vanilla", seed, value) for seed, value in enumerate((0.80, 0.82, 0.81))]
    found += [run_of("default", seed, value) for seed, value in enumerate((0.85, 0.871, 0.859))]
    found += [run_of("head", seed, value) for seed, value in enumerate((0.79, 0.84, 0.81))]
    rows = {line.split("|")[1].strip(): line for line in tables.table(found, "all", 1000)[2:]}
    assert "| 81.00 ± 1.00 |" in rows["labels alone"]
    assert "| **86.00 ± 1.05** |" in rows[arms.arm("default").text]
    assert "| 81.33 ± 2.52 |" in rows[arms.arm("head").text]
    assert tables.over_equal_steps(found, "all", 1000) == []


def test_arms_of_as_many_steps_are_compared_over_the_seeds_that_both_have() -> None:
    """Differences against their definition; an arm of fewer steps is not."""
    long, default = (0.80, 0.82, 0.81, 0.99), (0.85, 0.871, 0.859)
    found = [run_of("long", seed, value) for seed, value in enumerate(long)]
    found += [run_of("default", seed, value) for seed, value in enumerate(default)]
    found += [run_of("head", 0, 0.9), run_of("unsampled-long", 1, 0.83)]
    rows = tables.over_equal_steps(found, "all", 1000)[2:]
    differences = 100 * (np.array(default) - long[:3])
    p = stats.ttest_rel(default, long[:3]).pvalue
    text = f"+{differences.mean():.2f} ± {differences.std(ddof=1):.2f}"
    assert rows[0].startswith(f"| {arms.arm('default').text} | 3 | **{text}** (p {p:.1g}) | +0.0000 ± 0.0000 |")
    assert rows[1].startswith(f"| {arms.arm('unsampled-long').text} | 1 | +1.00 | +0.0000 |") and len(rows) == 2


def test_the_short_table_marks_the_best_of_a_regime() -> None:
    found = [run_of("vanilla", 0, 0.80), run_of("vanilla", 1, 0.82), run_of("default", 0, 0.86), run_of("head", 0, 0.9)]
    rows = tables.short(found).splitlines()
    assert len(rows) == 4 and rows[2].startswith("| 1,000 | labels alone (2) | 320 | 81.00 ± 1.41 | **0.300** |")
    assert rows[3].startswith("|  | the default (1) | 320 | **86.00** | **0.300** |")


def test_parts_are_compared_with_labels_alone_over_the_seeds_that_both_have() -> None:
    """Of fewer than five it says how many; bold is what a t-test finds unlikely to be chance."""
    vanilla, head = (0.80, 0.82, 0.81, 0.83, 0.8), (0.84, 0.861, 0.85, 0.872, 0.839)
    found = [run_of("vanilla", seed, value) for seed, value in enumerate(vanilla)]
    found += [run_of("head", seed, value) | {"teacher": tables.PARTS_TEACHER} for seed, value in enumerate(head)]
    found += [run_of("target", 7, 0.9) | {"teacher": tables.PARTS_TEACHER}]
    found += [run_of("former", seed, 0.79) | {"teacher": tables.PARTS_TEACHER} for seed in (0, 1, 7)]
    rows = {line.split(" | ")[0]: line for line in tables.parts(found).splitlines()[2:]}
    assert stats.ttest_rel(head, vanilla).pvalue < 0.01
    mean = 100 * np.mean(np.subtract(head, vanilla))
    assert rows["| head alone"].startswith(f"| head alone | **{mean:+.2f}** | +0.0000 | +0.0000 |  |  |")
    assert rows["| target alone"].startswith("| target alone |  |  |")
    assert rows[f"| {tables.PARTS['former']}"].startswith(f"| {tables.PARTS['former']} | -2.00 (2) | +0.0000 (2) |")


def test_what_the_default_gains_is_told_of_each_teacher_and_base() -> None:
    found = [run_of("vanilla", 0, 0.80), run_of("long", 0, 0.85), run_of("default", 0, 0.86)]
    found += [run_of("default", 0, 0.83) | {"teacher": "own"}, run_of("default", 0, 0.83) | {"trips": 6000}]
    rows = tables.gains(found).splitlines()[2:]
    assert [row.split(" | +0.0000")[0] for row in rows] == [
        "| all trips | 1,000 | as usual | +6.00 (1)",
        "| all trips | 1,000 | as many steps | +1.00 (1)",
        "| these trips alone | 1,000 | as usual | +3.00 (1)",
        "| these trips alone | 1,000 | as many steps | -2.00 (1)",
    ]


def test_runs_with_other_learning_rates_are_in_their_own_table_alone() -> None:
    usual = [run_of("vanilla", seed, 0.80) for seed in (0, 1)] + [run_of("default", 0, 0.86)]
    other = [run_of("vanilla", 0, 0.82) | {"rate": 0.004}, run_of("long", 0, 0.9) | {"rate": 0.002}]
    for make in (tables.page, tables.short, tables.gains, tables.parts):
        assert make(usual + other) == make(usual)
    rows = [line.split(" | 0.3000")[0] for line in tables.rates(usual + other).splitlines()[2:]]
    assert rows == [
        "| 1,000 | 0.001 | labels alone (2) | 80.00",
        "| 1,000 | 0.001 | the default (1) | 86.00",
        "| 1,000 | 0.002 | labels alone, as many steps (1) | 90.00",
        "| 1,000 | 0.004 | labels alone (1) | 82.00",
    ]


def test_tables_are_put_in_their_places() -> None:
    found = [run_of("vanilla", 0, 0.80), run_of("default", 0, 0.86)]
    places = [f"<!-- page make: {name} -->\n\n" for name in tables.PLACES]
    old = "".join(f"before\n\n{place}| a |\n|---|\n| b |\n\nafter\n" for place in places)
    new = [
        f"before\n\n{place}{make(found)}\nafter\n" for place, make in zip(places, tables.PLACES.values(), strict=True)
    ]
    assert tables.filled(old, found) == "".join(new) == tables.filled("".join(new), found)
    with pytest.raises(ValueError, match="0 places for learning rates"):
        tables.filled(old[: old.rindex("| a |")], found)
    with pytest.raises(ValueError, match="no table 'others', but the short table, "):
        tables.filled(old.replace("parts", "others"), found)


def test_pages_have_the_tables_of_the_runs_that_are_kept() -> None:
    kept, texts = runs.read(runs.RUNS), [path.read_text(encoding="utf-8") for path in page.PAGES]
    assert [tables.filled(text, kept) for text in texts] == texts
    assert sorted(name for text in texts for name in tables.MARKER.findall(text)) == sorted(tables.PLACES)
    assert page.TABLE.read_text(encoding="utf-8") == tables.page(kept)


def test_results_are_kept_under_their_teacher_s_cells_and_those_without_a_teacher_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size, name in ((0.000125, ""), (0.0005, "-0.0005"), (0.0000625, "-0.0000625")):
        grid = Grid.from_bounds((1.0, 2.0, 1.1, 2.1), size, size, "vertex_mean")
        store = SimpleNamespace(tokeniser=SimpleNamespace(grid=grid))
        monkeypatch.setattr(pool, "Store", lambda path, store=store: store)
        assert pool.cells_of(tmp_path) == name
    place = pool.Place("all-0.0005", "teacher:1", None)
    found = {one.arm.name: one.teacher for one in pool.tasks({("all", 1_000): place}, set(), range(1))}
    assert found.keys() == {arm.name for arm in arms.ARMS}
    assert {name for name, teacher in found.items() if teacher == "all"} == {"vanilla", "long", "smoothing"}
    assert set(found.values()) == {"all", "all-0.0005"} <= tables.TITLES.keys()


@pytest.mark.parametrize("window", [1, 3])
def test_windows_are_counted_once_each(tmp_path: Path, window: int) -> None:
    store = write_random_store(tmp_path / "store")
    token, trips = RoadNetwork.load(store).road_token, store.trips("train")
    all_of = [tuple(token[trip[max(0, end - window) : end]]) for trip in np.split(trips.roads, trips.offsets[1:-1])
              for end in range(1, len(trip) + 1)]  # fmt: skip
    assert 0 < len(set(all_of)) < len(all_of)
    assert cells.distinct_windows(store, window) == pytest.approx(len(set(all_of)) / len(all_of), abs=1e-12)


def test_runs_are_gathered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RUNS", tmp_path / "regimes.jsonl")
    run = run_of("default", 0, 0.85) | {"target": None, "best": {"epoch": 2}}
    judged = tmp_path / "runs" / "all" / "1000" / "default-0" / "evaluation" / "metrics.json"
    judged.parent.mkdir(parents=True)
    judged.write_text(json.dumps({"metrics": {name: {"value": 0.5} for name in runs.TRIPS}}))
    found = {"ceiling": "stacked", "arms": {"stacked": {"accuracy": 0.9, "nll": 0.2, "coefficients": {}}}}
    (judged.parent.parent / "headroom.json").write_text(json.dumps(found))
    (tmp_path / "runs" / "results.jsonl").write_text(json.dumps(run) + "\n")
    assert [runs.gather(tmp_path / "runs") for _ in range(2)] == [1, 1]
    (kept,) = runs.read(runs.RUNS)
    assert kept["whole"]["edr"] == 0.5 and kept["best_epoch"] == 2 and "rate" not in kept
    assert kept["ceiling"] == {"accuracy": 0.9, "nll": 0.2}
    (tmp_path / "runs" / "results.jsonl").write_text(json.dumps(run | {"rate": 0.004}) + "\n")
    runs.gather(tmp_path / "runs")
    assert [runs.rate_of(one) for one in runs.read(runs.RUNS)] == [0.001, 0.004], "another run, not the same again"


def test_runs_of_other_steps_are_another_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RUNS", tmp_path / "regimes.jsonl")
    found = [run_of("default", seed, 0.85) | {"target": None, "best": {"epoch": 2}} for seed in (0, 1)]
    found[1]["steps"] = found[0]["steps"] + 1
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(run) + "\n" for run in found))
    with pytest.raises(ValueError, match=r"differ in their steps: .*default"):
        runs.gather(tmp_path)
    assert not runs.RUNS.exists()


def test_evaluations_are_found_by_the_names_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "read", lambda path: path)
    for root, name in (("a", "default-0"), ("b", "default-0"), ("b", "default-shuffled-12"), ("b", "another-1")):
        (tmp_path / root / "all" / "1000" / name / "evaluation").mkdir(parents=True)
    found = pairs.found([tmp_path / "a", tmp_path / "b"])
    where = {key: {s: str(path.relative_to(tmp_path)) for s, path in of.by_seed.items()} for key, of in found.items()}  # type: ignore[attr-defined]
    assert where == {
        ("all", 1000, "default"): {0: "a/all/1000/default-0/evaluation"},
        ("all", 1000, "default-shuffled"): {12: "b/all/1000/default-shuffled-12/evaluation"},
    }


def test_of_the_same_comparison_that_of_more_seeds_is_kept(tmp_path: Path) -> None:
    def one(arm: str, seeds: int, difference: float, p: float) -> pairs.Comparison:
        return pairs.Comparison("all", 1000, "vanilla", arm, seeds, {"dtw_km": (difference, p)})

    known = [one("default", 4, -0.5, 0.001), one("head", 1, 0.2, 0.002), one("target", 2, 0.1, 0.5)]
    new = [one("default", 3, -0.1, 0.9), one("head", 2, 0.3, 0.001), one("target", 2, 0.4, 0.5)]
    found = pairs.merged(known, new)
    assert found == [known[0], *new[1:]]
    path = tmp_path / "kept.jsonl"
    path.write_text("".join(json.dumps(dataclasses.asdict(each)) + "\n" for each in found))
    assert pairs.page(pairs.kept(path)) == pairs.page(found)
    rows = [line for line in pairs.page(found).splitlines() if line.startswith("| the default:")]
    assert rows == [f"| {arms.arm('default').text} | 4 |  |  |  | **-0.50** better, p 0.001 |  |  |  |"]
    assert "**+0.30** worse, p 0.001" in pairs.page(found) and "+0.40 (p 0.5)" in pairs.page(found)


def test_a_step_costs_the_median_of_its_lines_without_the_first() -> None:
    def line(step: float) -> dict[str, float]:
        return {"perf/step_ms": step, "perf/loss_ms": step / 10, "perf/positions_per_s": 1000 / step}

    lines = [line(500), {"val/accuracy": 0.5}, line(10), line(30), line(20)]
    assert costs.cost_of(lines) == costs.Cost(20, 0, 2, 50)
    with pytest.raises(ValueError, match="too few steps"):
        costs.cost_of(lines[:2])


def test_the_table_compares_arms_of_the_same_turn() -> None:
    turns = [
        {"vanilla": costs.Cost(10, 0, 1, 1000), "head": costs.Cost(12, 0.5, 2, 900)},
        {"vanilla": costs.Cost(20, 0, 1, 500), "head": costs.Cost(22, 0.5, 2, 450)},
        {"vanilla": costs.Cost(10, 0, 1, 1000), "head": costs.Cost(11.5, 0.5, 2, 900)},
    ]
    rows = costs.table(turns).splitlines()[2:]
    assert rows[0] == "| labels alone | 10.0 | 1.00 | 1.00 | 1.00 | 1.0 | 0.00 | 1,000 |"
    assert rows[1] == "| destination-free head alone | 12.0 | 1.15 | 1.10 | 1.20 | 2.0 | 0.50 | 900 |"
