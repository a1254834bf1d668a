"""The terms of the distillation loss: what a step minimises, what is reported, and what a further one takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.fakes import FakeTeacher
from support.random_city import write_random_store
from support.runs import records

from shared.store import Store
from student_trainer.distill import loss as terms
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.kl import forward_kl
from student_trainer.distill.loss import Comparison, Distillation, Term, answer_of
from student_trainer.model.hoser import StudentOutput
from student_trainer.train.config import TrainConfig
from student_trainer.train.feed import Feed, Prepared
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
    answer = answer_of(item.reply.result().log_probs, None, item.batch)
    found = Distillation(config).measure(Comparison.of(item.batch, output, answer))
    kl = forward_kl(output.logits, found.comparison.target, 2.0, "marginal").sum()
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
