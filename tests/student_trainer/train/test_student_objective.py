"""What a step minimises, against its definition in float64; with trips that were sampled from the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import definitions
from support.fakes import FakeTeacher
from support.random_city import random_network, random_trips, write_random_store
from support.recipes import variants

from student_trainer.data.batch import Batch, build_batch
from student_trainer.data.mixed import MixedTrips
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.loss import Answer
from student_trainer.model.student import StudentOutput
from student_trainer.model.time_scale import TimeScale
from student_trainer.train.config import RecipeConfig, TrainConfig
from student_trainer.train.feed import Feed
from student_trainer.train.objective import Divisors, Objective
from student_trainer.train.optim import distill_share
from student_trainer.train.runtime import Runtime
from student_trainer.train.schedule import prepare_step
from student_trainer.train.session import Session

CPU, SCALE = torch.device("cpu"), TimeScale(3.5, 0.8)
NETWORK, _ = random_network()
MIXED = MixedTrips(random_trips(NETWORK, 20), random_trips(NETWORK, 20, seed=1))
INDEX = np.array([3, 25, 7, 39, 0, 22])
"""Three labelled trips and three sampled ones."""
DIVISORS = Divisors(positions=70.0, labels=50.0, timed=40.0, share=0.25)


class Case:
    """A batch of both kinds of trips, whose candidates are cut so that some positions have no label."""

    def __init__(self, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.batch: Batch = build_batch(NETWORK, MIXED, INDEX, 2)
        self.lengths, self.label = self.batch.candidate_length.numpy(), self.batch.label.numpy()
        self.flat = random.normal(0, 2, len(self.batch.candidate_road)).astype(np.float32)
        self.times = random.normal(0, 1, len(self.lengths)).astype(np.float32)
        self.answer = Answer(*(torch.from_numpy(random.normal(0, 1, len(self.flat)).astype("f4")) for _ in range(2)))
        self.is_sampled = np.repeat(INDEX >= 20, self.batch.length.numpy())
        logits = self.batch.layout.pad(torch.from_numpy(self.flat), -torch.inf)
        self.output = StudentOutput(logits, torch.zeros(len(self.lengths), 1), logits + 0)

    def of(self, objective: Objective, answer: Answer | None = None) -> dict[str, float]:
        found = objective.of(self.batch, self.output, torch.from_numpy(self.times), answer, DIVISORS)
        return {"backward": found.loss.item(), **{name: value.item() for name, value in found.sums.items()}}

    def cross_entropies(self, smoothing: float) -> np.ndarray:
        rows = zip(definitions.split(self.flat.tolist(), self.lengths.tolist()), self.label, strict=True)
        return np.array([definitions.cross_entropy(row, mine, smoothing) if mine >= 0 else 0.0 for row, mine in rows])

    def time_errors(self) -> np.ndarray:
        x = np.log1p(self.batch.seconds.double().numpy())
        errors = np.abs(self.times.astype(np.float64) * SCALE.sigma + SCALE.mu - x) / np.maximum(x, 1)
        return np.where(self.label >= 0, errors, 0)


@pytest.mark.parametrize("first_sampled", [20, None])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("sampled_labels", [0.0, 0.6])
def test_labels_teach_by_their_weights(sampled_labels: float, smoothing: float, first_sampled: int | None) -> None:
    """Of sampled trips the next road counts by its weight or not at all, the travel time never."""
    case = Case()
    is_real = ~case.is_sampled if first_sampled else np.ones_like(case.is_sampled)
    assert bool((case.label < 0).any()) and 0 < case.is_sampled.sum() < len(case.is_sampled)
    objective = Objective(DistillConfig(sampled_labels=sampled_labels), 0.5, SCALE, smoothing, first_sampled)
    found, entropies, errors = case.of(objective), case.cross_entropies(smoothing), case.time_errors()
    hits = np.array([np.argmax(row) for row in definitions.split(case.flat.tolist(), case.lengths.tolist())])
    assert found["loss_next_road"] == pytest.approx(entropies[is_real].sum(), rel=1e-5)
    assert found["loss_time"] == pytest.approx(errors[is_real].sum(), rel=1e-5)
    assert found["accuracy"] == ((hits == case.label) & is_real).sum()
    expected = entropies[is_real].sum() / 50 + 0.5 * errors[is_real].sum() / 40
    if first_sampled and sampled_labels:
        assert found["loss_hindsight"] == pytest.approx(entropies[~is_real].sum(), rel=1e-5)
        expected += sampled_labels * entropies[~is_real].sum() / 50
    else:
        assert "loss_hindsight" not in found
    assert found["backward"] == pytest.approx(expected, rel=1e-5)
    assert found["loss"] == pytest.approx(70 * expected, rel=1e-5)


def test_the_teacher_s_terms_are_means_over_all_positions() -> None:
    """Of both kinds of trips, by their weights; what fades by its share."""
    case = Case(1)
    config = DistillConfig(weight=2.0, sampled_weight=0.5, head=0.75)
    with_it = case.of(Objective(config, 1.0, SCALE, first_sampled=20), case.answer)
    without = case.of(Objective(config, 1.0, SCALE, first_sampled=20))
    scores = definitions.split(case.answer.scores.tolist(), case.lengths.tolist())  # type: ignore[union-attr]
    rows = zip(definitions.split(case.flat.tolist(), case.lengths.tolist()), scores, strict=True)
    kl = np.array(
        [definitions.kl(p, list(q - np.log(np.exp(q).sum())), range(len(q)), 1.0, "duplicate") for p, q in rows]
    )
    weights = np.where(case.is_sampled, 0.5, 2.0)
    expected = (0.25 * (weights * kl).sum() + 0.75 * with_it["loss_head_kl"]) / 70
    assert with_it["loss_kl"] == pytest.approx(kl.sum(), rel=1e-5)
    assert with_it["backward"] - without["backward"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("top_k", [0, 2])
def test_sums_are_divided_by_what_they_are_over(top_k: int) -> None:
    """Positions of labelled trips, their labels, and the labels of sampled ones; all positions for the rest."""
    recipe = RecipeConfig.model_validate({"batch": {"candidate_top_k": top_k}})
    item = Feed(NETWORK, MIXED, recipe, None, CPU).prepare(INDEX)
    is_sampled = np.repeat(INDEX >= 20, item.batch.length.numpy())
    has_label = item.batch.label.numpy() >= 0
    assert has_label.all() == (top_k == 0)
    assert (item.labelled, item.labels, item.hindsight) == (
        (~is_sampled).sum(), (has_label & ~is_sampled).sum(), (has_label & is_sampled).sum(),
    )  # fmt: skip
    counts = {name: item.count(name) for name in ("loss_next_road", "loss_time", "loss_hindsight")}
    assert counts == {"loss_next_road": item.labels, "loss_time": item.labels, "loss_hindsight": item.hindsight}
    judged = ("accuracy", "teacher_accuracy", "target_accuracy", "target_nll")
    assert {item.count(name) for name in judged} == {item.labelled}
    assert {item.count(name) for name in ("loss", "loss_kl", "loss_head_kl", "agreement")} == {len(is_sampled)}
    alone = Feed(NETWORK, MIXED.labelled, recipe, None, CPU).prepare(np.array([3, 7, 0]))
    assert (alone.labelled, alone.hindsight) == (alone.batch.positions, 0)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_step_s_divisors_are_of_all_its_micro_batches(tmp_path: Path, accumulation: int) -> None:
    store = write_random_store(tmp_path / "store")
    changed: dict[str, Any] = variants(tmp_path, store)["sampled"]
    changed["optim"] = {"epochs": 2, "batch_size": 8, "accumulation": accumulation}
    given = {
        "data": store.path,
        "out": tmp_path / "run",
        "teacher": "fake:1",
        "model": {"road_id_dim": 8, "road_attr_dim": 2},
    }
    settings = TrainConfig.model_validate({**given, **changed})
    session = Session(settings, store, Runtime.of(settings.runtime, CPU), FakeTeacher())
    for plan in list(session.schedule.from_step(0))[:4]:
        step = prepare_step(session.feed, session.model.graph, plan)
        found, trips = session.trainer._count(step), np.concatenate(plan.micro_batches)
        positions = session.feed.lengths(trips) - 1
        assert found.positions == positions.sum()
        assert found.timed == positions[trips < 60].sum()
        assert found.labels == found.timed + 0.75 * positions[trips >= 60].sum()
        assert found.share == distill_share(plan.number, session.schedule.total_steps, settings.distill)
