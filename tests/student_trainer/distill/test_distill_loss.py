"""The terms of the distillation loss: what a step minimises, what is reported, and what a further one takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import REPOSITORY
from support import definitions
from support.fakes import FakeTeacher
from support.random_city import random_network, random_trips, write_random_store
from support.recipes import HISTORY
from support.runs import records

from shared import ragged
from shared.store import Store
from student_trainer.data.batch import Batch, build_batch
from student_trainer.distill import loss as terms
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.kl import forward_kl
from student_trainer.distill.loss import Answer, Comparison, Distillation, Term, answer_of
from student_trainer.model.student import StudentOutput
from student_trainer.train.config import TrainConfig
from student_trainer.train.feed import Feed, Prepared
from student_trainer.train.optim import distill_share
from student_trainer.train.runtime import Runtime
from student_trainer.train.session import Session

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("random") / "store")


def session_of(store: Store, out: Path) -> Session:
    settings = TrainConfig.model_validate(
        {
            "data": store.path,
            "out": out,
            "teacher": "fake:1",
            "model": {"road_id_dim": 8, "road_attr_dim": 2},
            "optim": {"epochs": 1, "batch_size": 8},
            "log": {"tensorboard": False, "every": 1, "progress": False},
        }
    )
    return Session(settings, store, Runtime.of(settings.runtime, CPU), FakeTeacher())


def answered(feed: Feed, session: Session) -> tuple[Prepared, StudentOutput]:
    item = feed.prepare(np.arange(6))
    return item, session.model(item.batch, session.model.embed_network())


def to_the_uniform(of: Comparison) -> torch.Tensor:
    """Mean -log p of a position's candidates."""
    log_p = of.output.logits.log_softmax(-1)
    exists = of.batch.layout.exists
    return -log_p.masked_fill(~exists, 0).sum(-1) / exists.sum(-1)


@pytest.mark.parametrize(("tau_squared", "scale"), [(False, 1.0), (True, 4.0)])
def test_a_step_minimises_the_weighted_and_scaled_divergence(
    store: Store, tmp_path: Path, tau_squared: bool, scale: float
) -> None:
    session = session_of(store, tmp_path / "run")
    item, output = answered(session.feed, session)
    assert item.reply is not None
    config = DistillConfig(weight=0.5, target="history", head=0, temperature=2.0, tau_squared=tau_squared)
    answer = answer_of([item.reply.result().log_probs], item.batch)
    comparison = Comparison.of(item.batch, output, answer)
    found = Distillation(config).measure(comparison)
    kl = forward_kl(output.logits, comparison.target, 2.0, "marginal").sum()
    assert found.divergences == {"kl": kl} and kl > 0
    assert torch.equal(found.losses["kl"], kl * scale)
    assert torch.equal(found.loss, 0.5 * (kl * scale))


def test_a_further_term_is_trained_and_reported(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a function and a line: nothing else names the terms."""
    known = terms.terms_of
    alone = session_of(store, tmp_path / "alone")
    monkeypatch.setattr(
        terms, "terms_of", lambda config: (*known(config), Term("even", (2.0, 2.0), 1.0, to_the_uniform))
    )
    both = session_of(store, tmp_path / "both")
    for session in (alone, both):
        session.settings.out.mkdir()
        session.train()
    without, first = records(tmp_path / "alone")[0], records(tmp_path / "both")[0]
    assert "train/loss_even" not in without
    assert first["train/loss_even"] > 0
    assert first["train/loss"] == pytest.approx(without["train/loss"] + 2 * first["train/loss_even"], rel=1e-5)
    assert both.progress.history[-1]["even"] < first["train/loss_even"], "it has been learned"
    assert alone.progress.history[-1].keys() == both.progress.history[-1].keys() - {"even"}


NETWORK, _ = random_network()
TRIPS = random_trips(NETWORK, 40)


class Case:
    """A batch with made-up answers of all models, and what of them the definitions need.

    Attributes:
        comparison: of the batch.
        logits, history, log_q, log_aware, tokens: of each position's candidates.
        is_sampled: of each position.
    """

    def __init__(self, seed: int, is_aware: bool = True, some_sampled: bool = True) -> None:
        random = np.random.default_rng(seed)
        batch = build_batch(NETWORK, TRIPS, random.permutation(40)[:5], 0)
        lengths, tokens = batch.candidate_length.numpy(), batch.candidate_token.numpy()
        logits, history = (random.normal(0, 2, len(tokens)).astype(np.float32) for _ in range(2))
        mass = 1.0 + tokens % 7  # candidates of a cell share its mass
        log_q = np.log(mass / np.repeat(np.add.reduceat(mass, ragged.offsets(lengths)[:-1]), lengths))
        scores = random.normal(0, 3, len(tokens)).astype(np.float32)
        padded = [batch.layout.pad(torch.from_numpy(values), -torch.inf) for values in (logits, history)]
        output = StudentOutput(padded[0], torch.zeros(len(lengths), 1), padded[1])
        self.is_sampled = random.random(len(lengths)) < 0.5
        answer = Answer(torch.from_numpy(log_q.astype(np.float32)), torch.from_numpy(scores) if is_aware else None)
        sampled = torch.from_numpy(self.is_sampled) if some_sampled else None
        self.batch: Batch = batch
        self.comparison = Comparison.of(batch, output, answer, sampled)
        self.logits, self.history, self.log_q, self.tokens, scored = (
            definitions.split(values, lengths) for values in (logits, history, log_q, tokens, scores)
        )
        self.log_aware = [list(np.array(row) - np.log(np.exp(row).sum())) for row in scored]

    def kl(self, temperature: float, collisions: str, is_aware: bool) -> np.ndarray:
        """Of the student: towards the destination-aware target over candidates, or towards the teacher."""
        rows = zip(self.logits, self.log_aware if is_aware else self.log_q, self.tokens, strict=True)
        how = "duplicate" if is_aware else collisions
        return np.array([definitions.kl(p, q, tokens, temperature, how) for p, q, tokens in rows])

    def head_kl(self, temperature: float, collisions: str) -> np.ndarray:
        """Of the head, always towards the teacher."""
        rows = zip(self.history, self.log_q, self.tokens, strict=True)
        return np.array([definitions.kl(p, q, tokens, temperature, collisions) for p, q, tokens in rows])


@pytest.mark.parametrize("collisions", ["marginal", "duplicate"])
@pytest.mark.parametrize("is_aware", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_terms_are_those_of_the_formula(collisions: str, is_aware: bool, temperature: float) -> None:
    """KL(q' || student) over candidates and KL(q || head) over cells, each by its weights, kind of trip and share."""
    case = Case(3, is_aware)
    assert bool((case.comparison.target.same_cell.sum(-1) > 1).any()), "some candidates share a cell"
    config = DistillConfig.model_validate(
        {
            "weight": 0.75, "sampled_weight": 0.25, "head": 1.5, "temperature": temperature, "tau_squared": True,
            "collisions": collisions, "target": "destination" if is_aware else "history",
        }
    )  # fmt: skip
    kl, head = case.kl(temperature, collisions, is_aware), case.head_kl(temperature, collisions)
    scale, share = temperature**2, 0.4
    found = Distillation(config).measure(case.comparison, share)
    for name, values in (("kl", kl), ("head_kl", head)):
        assert found.divergences[name].item() == pytest.approx(values.sum(), rel=1e-5)
        assert found.losses[name].item() == pytest.approx(scale * values.sum(), rel=1e-5)
    weights = np.where(case.is_sampled, 0.25, 0.75)
    assert 0 < case.is_sampled.sum() < len(weights)
    expected = scale * (share * (weights * kl).sum() + 1.5 * head.sum())
    assert found.loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_share_is_of_what_fades_only() -> None:
    """The student's weight, not the head's."""
    case = Case(5)
    distillation = Distillation(DistillConfig(weight=2.0, head=0.5))
    whole, none = (distillation.measure(case.comparison, share) for share in (1.0, 0.0))
    head, kl = 0.5 * whole.losses["head_kl"].item(), 2.0 * whole.losses["kl"].item()
    assert whole.loss.item() == pytest.approx(head + kl, rel=1e-6)
    assert none.loss.item() == pytest.approx(head, rel=1e-6)
    assert torch.equal(none.losses["kl"], whole.losses["kl"])  # what is reported does not fade


@pytest.mark.parametrize(("weight", "sampled"), [(0.0, 1.0), (1.0, 0.0), (0.5, None)])
def test_one_kind_of_trip_may_pull_alone(weight: float, sampled: float | None) -> None:
    case = Case(7)
    found = Distillation(DistillConfig(weight=weight, sampled_weight=sampled, head=0)).measure(case.comparison)
    weights = np.where(case.is_sampled, weight if sampled is None else sampled, weight)
    assert found.loss.item() == pytest.approx((weights * case.kl(1.0, "marginal", True)).sum(), rel=1e-5)
    assert found.losses.keys() == {"kl"}
    alone = Case(7, some_sampled=False)
    found = Distillation(DistillConfig(weight=weight, sampled_weight=sampled, head=0)).measure(alone.comparison)
    assert found.loss.item() == pytest.approx(weight * alone.kl(1.0, "marginal", True).sum(), rel=1e-5, abs=1e-9)


def test_which_terms_there_are() -> None:
    """At least one, so that a run without weights still reports how far it is from the teacher."""
    for settings, names in (
        ({}, ["kl", "head_kl"]),
        ({"head": 0}, ["kl"]),
        ({"weight": 0}, ["head_kl"]),
        ({"weight": 0, "sampled_weight": 0.1}, ["kl", "head_kl"]),
        ({"weight": 0, "head": 0}, ["kl"]),
    ):
        config = DistillConfig.model_validate(settings)
        assert [term.name for term in terms.terms_of(config)] == names
        assert config.asks == (settings != {"weight": 0, "head": 0})


def test_the_target_is_reported_beside_the_teacher() -> None:
    case = Case(9)
    found, label = case.comparison.diagnostics(case.batch.label), case.batch.label.tolist()
    rows = [(row, mine) for row, mine in zip(case.log_aware, label, strict=True) if mine >= 0]
    assert found["target_accuracy"].item() == sum(int(np.argmax(row)) == mine for row, mine in rows)
    assert found["target_nll"].item() == pytest.approx(sum(-row[mine] for row, mine in rows), rel=1e-5)
    other = Case(9, is_aware=False)
    assert "target_nll" not in other.comparison.diagnostics(other.batch.label)


def test_the_design_document_s_settings_give_its_formula() -> None:
    """config/document.yaml: lambda KL(q^(1/tau) || p^(1/tau)), each candidate with its cell's mass, unscheduled."""
    given = yaml.safe_load((REPOSITORY / "config" / "document.yaml").read_text())["train"]["distill"]
    assert HISTORY.keys() <= given.keys()
    case = Case(11, is_aware=False, some_sampled=False)
    config = DistillConfig.model_validate(given)
    found = Distillation(config).measure(case.comparison, distill_share(9, 10, config))
    total = 0.0
    for logits, log_q in zip(case.logits, case.log_q, strict=True):
        q, p = (np.exp(np.array(values) / given["temperature"]) for values in (log_q, logits))
        q, p = q / q.sum(), p / p.sum()
        total += (q * np.log(q / p)).sum()
    assert list(found.losses) == ["kl"]
    assert found.loss.item() == pytest.approx(given["weight"] * total, rel=1e-5)
