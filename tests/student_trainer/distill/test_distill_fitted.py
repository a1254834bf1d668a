"""The sharpness of the teacher's answers, against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from support.fakes import scores_of
from support.random_city import write_random_store

from shared import ragged
from shared.store import Store
from student_trainer.data.batch import Batch, build_batch
from student_trainer.data.network import RoadNetwork
from student_trainer.distill.conditional_logit import Choices
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.destination import LEAST_LOG_Q
from student_trainer.distill.fitted import UNFITTED, Fitted, cells_of, fit_sharpness
from student_trainer.distill.query import build_query


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Batch, np.ndarray]:
    store: Store = write_random_store(tmp_path_factory.mktemp("random") / "store")
    network = RoadNetwork.load(store)
    batch = build_batch(network, store.trips("val"), np.arange(20))
    return batch, scores_of(build_query(batch, network, DistillConfig()))


def positions(batch: Batch, log_q: np.ndarray) -> list[tuple[dict[int, float], int | None]]:
    """Of each position the log-probability of every distinct cell, and the cell of the next road."""
    first = ragged.offsets(batch.candidate_length.numpy())
    found = []
    for begin, end, label in zip(first[:-1], first[1:], batch.label.tolist(), strict=True):
        tokens = batch.candidate_token[begin:end].tolist()
        cells = dict(zip(tokens, log_q[begin:end].astype(float).tolist(), strict=True))
        found.append((cells, tokens[label] if label >= 0 else None))
    return found


def test_candidates_of_one_cell_are_one_choice(answered: tuple[Batch, np.ndarray]) -> None:
    batch, _ = answered
    tokens = batch.candidate_token.numpy()
    log_q = (-(tokens % 7) - tokens / 1000).astype(np.float16)  # one value a cell
    batch.label[3] = -100
    found, expected = cells_of(batch, log_q), positions(batch, log_q)
    first = ragged.offsets(found.length)
    sharing = 0
    for number, (cells, chosen) in enumerate(expected):
        values = found.features[first[number] : first[number + 1], 0].tolist()
        assert sorted(values) == sorted(max(value, LEAST_LOG_Q) for value in cells.values())
        assert (found.label[number] < 0) == (chosen is None)
        if chosen is not None:
            assert values[found.label[number]] == max(cells[chosen], LEAST_LOG_Q)
        sharing += len(cells) < int(batch.candidate_length[number])
    assert sharing and found.length.tolist() == [len(cells) for cells, _ in expected]


def test_it_is_the_likeliest_power_of_the_answers(answered: tuple[Batch, np.ndarray]) -> None:
    """Over distinct cells, found by a search of one variable on the likelihood, written out."""
    batch, log_q = answered
    told = [(cells, chosen) for cells, chosen in positions(batch, log_q) if chosen is not None and len(cells) > 1]

    def nll(power: float) -> float:
        return sum(
            np.log(sum(np.exp(power * value) for value in cells.values())) - power * cells[chosen]
            for cells, chosen in told
        )

    best = minimize_scalar(nll, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9})
    sharpness, fit = fit_sharpness(cells_of(batch, log_q))
    assert fit.positions == len(told) > 20
    assert sharpness == pytest.approx(max(best.x, 0), abs=1e-3)
    assert nll(float(fit.coefficients[0])) <= best.fun + 1e-6


@given(power=st.floats(0.2, 1.5), seed=st.integers(0, 50))
def test_a_teacher_that_is_too_sure_is_taken_back_to_what_is_true(power: float, seed: int) -> None:
    """Choices by q^power: the sharpness is `power`, within what so many choices tell."""
    rng = np.random.default_rng(seed)
    log_q = np.log(rng.dirichlet(np.full(4, 0.5), 4_000)).clip(LEAST_LOG_Q)
    p = np.exp(power * log_q)
    p /= p.sum(1, keepdims=True)
    label = (p.cumsum(1) < rng.random((len(p), 1))).sum(1).clip(max=3)
    choices = Choices(log_q.reshape(-1, 1), np.full(len(p), 4), label)
    sharpness, _ = fit_sharpness(choices)
    assert sharpness == pytest.approx(power, abs=0.08)
    scaled, _ = fit_sharpness(Choices(choices.features * 2, choices.length, choices.label))
    assert scaled == pytest.approx(sharpness / 2, rel=1e-3)


def test_an_answer_that_misleads_is_made_even() -> None:
    features = np.tile([[0.0], [-3.0]], (50, 1))
    sharpness, fit = fit_sharpness(
        Choices(features, np.full(50, 2), np.r_[np.ones(45, np.int64), np.zeros(5, np.int64)])
    )
    assert sharpness == 0 and fit.coefficients[0] < 0
    assert np.array_equal(Fitted(sharpness).calibrated(np.array([0, -np.inf], np.float16)), [0, 0])


def test_what_is_not_fitted_leaves_the_answer_as_it_is() -> None:
    log_q = np.array([-1, -np.inf], np.float16)
    assert UNFITTED.calibrated(log_q) is log_q
    assert np.array_equal(Fitted(0.5).calibrated(log_q), np.array([-0.5, LEAST_LOG_Q / 2], np.float32))
