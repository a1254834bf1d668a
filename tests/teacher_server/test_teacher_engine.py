"""The engine against the plain model, one window after another in float64, and its independence of the batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import reference_path
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import ragged, teacher_file
from shared.errors import ConfigError, InternalError, InvalidRequest
from shared.grid import Grid
from shared.vocab import Tokeniser, Vocabulary
from shared.wire import HistoryMode, ScoreQuery
from teacher_server import engine, export
from teacher_server.config import EngineConfig, ExportConfig
from teacher_server.engine import Engine
from teacher_server.model import LMTAD, Architecture
from teacher_server.scorer import Scores

CPU = EngineConfig(device="cpu", threads=2, tile_tokens=64, cache_mib=0)
CELLS, BLOCK = 40, 12
VOCABULARY = Vocabulary.full(CELLS)


def make_model(seed: int = 0, tied_head: bool = True, n_embd: int = 24) -> LMTAD:
    torch.manual_seed(seed)
    model = LMTAD(Architecture(2, 3, n_embd, BLOCK, VOCABULARY.size, bias=True), tied_head=tied_head).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return model


def make_engine(model: LMTAD, config: EngineConfig = CPU) -> Engine:
    grid = Grid.from_bounds((0.0, 0.0, 0.45, 0.75), 0.1, 0.1)
    header = teacher_file.TeacherHeader(model.architecture.to_dict(), Tokeniser(VOCABULARY, grid), "revision", {})
    return Engine(header, LMTAD.from_weights(model.architecture, model.weights()), config)


MODEL = make_model()
ENGINE = make_engine(MODEL)
REMEMBERING = make_engine(MODEL, CPU.model_copy(update={"cache_mib": 1, "cache_window": 6}))


def make_query(
    mode: HistoryMode, rows: list[list[int]], candidates: list[list[int]], window: int = 0, mass: bool = False
) -> ScoreQuery:
    def flat(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        values = np.array([value for values in lists for value in values], np.int32)
        return values, np.array([len(values) for values in lists], np.int32)

    return ScoreQuery(mode, *flat(rows), *flat(candidates), window, mass)


def score(scorer: Engine, *queries: ScoreQuery) -> list[Scores]:
    for query in queries:
        scorer.check(query, 10_000)
    return scorer.score([scorer.prepare(query) for query in queries])


def context(query: ScoreQuery, position: int, sot: int, block: int) -> list[int]:
    """What the wire contract says a position is scored after."""
    starts = ragged.offsets(query.history_lengths)
    if query.mode is HistoryMode.WINDOW:
        return [sot, *query.history_tokens[starts[position] : starts[position + 1]].tolist()]
    row = ragged.rows(query.history_lengths)[position]
    before = query.history_tokens[starts[row] : position + 1].tolist()
    return [sot, *before[-(query.window or block - 1) :]]


def assert_by_definition(scores: Scores, query: ScoreQuery, model: LMTAD, vocabulary: Vocabulary) -> None:
    """One context at a time through the plain model; softmaxes in float64 over the whole vocabulary."""
    starts = ragged.offsets(query.candidate_lengths)
    for position in range(query.positions):
        part = slice(starts[position], starts[position + 1])
        cells = query.candidate_tokens[part]
        tokens = torch.tensor([context(query, position, vocabulary.sot, model.architecture.block_size)])
        with torch.no_grad():
            logits = model(tokens)[0, -1].double().numpy()
        log_probs = logits - np.logaddexp.reduce(logits)
        expected = log_probs[cells] - np.logaddexp.reduce(log_probs[cells]) if len(cells) else np.zeros(0)
        np.testing.assert_allclose(scores.log_probs[part].astype(np.float64), expected, rtol=1e-3, atol=2e-3)
        if query.include_candidate_mass:
            assert scores.candidate_mass is not None
            mass = np.exp(log_probs[np.unique(cells)]).sum()
            assert float(scores.candidate_mass[position]) == pytest.approx(mass, abs=1e-3)


cells = st.integers(0, CELLS - 1)


@st.composite
def queries(draw: st.DrawFn) -> ScoreQuery:
    mode = draw(st.sampled_from(HistoryMode))
    longest = BLOCK - 1 if mode is HistoryMode.WINDOW else 20
    rows = draw(st.lists(st.lists(cells, max_size=longest), max_size=5))
    positions = len(rows) if mode is HistoryMode.WINDOW else sum(map(len, rows))
    candidates = draw(st.lists(st.lists(cells, max_size=5), min_size=positions, max_size=positions))
    window = 0 if mode is HistoryMode.WINDOW else draw(st.sampled_from([0, 1, 2, 4, BLOCK - 1]))
    return make_query(mode, rows, candidates, window, mass=draw(st.booleans()))


@settings(deadline=None, max_examples=60)
@given(queries())
def test_scores_follow_the_definition(query: ScoreQuery) -> None:
    assert_by_definition(score(ENGINE, query)[0], query, MODEL, VOCABULARY)


@settings(deadline=None, max_examples=60)
@given(st.lists(queries(), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_bits_do_not_depend_on_the_batch(batch: list[ScoreQuery], random: object) -> None:
    alone = [score(ENGINE, query)[0] for query in batch]
    order = list(range(len(batch)))
    random.shuffle(order)  # type: ignore[attr-defined]
    together = score(ENGINE, *[batch[i] for i in order])
    for i, scores in zip(order, together, strict=True):
        assert scores.log_probs.tobytes() == alone[i].log_probs.tobytes()
        assert (scores.candidate_mass is None) == (alone[i].candidate_mass is None)
        if scores.candidate_mass is not None and alone[i].candidate_mass is not None:
            assert scores.candidate_mass.tobytes() == alone[i].candidate_mass.tobytes()


@pytest.mark.parametrize("n_embd", [24, 48, 96])
@pytest.mark.parametrize("tile_tokens", [64, 300, 512])
def test_hidden_states_do_not_depend_on_the_batch(n_embd: int, tile_tokens: int) -> None:
    """In float32, where rounding to float16 hides nothing; many contexts, any place in a tile."""
    scorer = make_engine(make_model(n_embd=n_embd), CPU.model_copy(update={"tile_tokens": tile_tokens}))
    random = np.random.default_rng(0)
    rows = [random.integers(0, CELLS, random.integers(0, BLOCK)).tolist() for _ in range(200)]
    query = make_query(HistoryMode.WINDOW, rows, [[0]] * len(rows))
    everything = scorer._hidden(scorer.prepare(query).plan)
    for _ in range(5):
        some = random.permutation(len(rows))[: random.integers(1, len(rows))]
        part = make_query(HistoryMode.WINDOW, [rows[i] for i in some], [[0]] * len(some))
        assert torch.equal(scorer._hidden(scorer.prepare(part).plan), everything[torch.from_numpy(some)])


def test_widths_that_processors_cannot_align_are_named(caplog: pytest.LogCaptureFixture) -> None:
    make_engine(make_model(n_embd=33))
    assert "n_embd 33 is no multiple of 8" in caplog.text


def test_threads_do_not_change_bits() -> None:
    random = np.random.default_rng(0)
    rows = [random.integers(0, CELLS, random.integers(0, BLOCK)).tolist() for _ in range(100)]
    query = make_query(HistoryMode.WINDOW, rows, [[1, 2, 3]] * 100, mass=True)
    one = score(make_engine(MODEL, CPU.model_copy(update={"threads": 1})), query)[0]
    three = score(make_engine(MODEL, CPU.model_copy(update={"threads": 3})), query)[0]
    assert one.log_probs.tobytes() == three.log_probs.tobytes()


@pytest.mark.parametrize("tied_head", [False, True])
def test_the_head_may_be_untied(tied_head: bool) -> None:
    model = make_model(tied_head=tied_head)
    query = make_query(HistoryMode.SEQUENCE, [[1, 2, 3]], [[4, 5], [], [6]], mass=True)
    assert_by_definition(score(make_engine(model), query)[0], query, model, VOCABULARY)


def test_a_trip_longer_than_the_block() -> None:
    trip = list(range(3 * BLOCK))
    query = make_query(HistoryMode.SEQUENCE, [trip, trip[5:]], [[1, 2, 3]] * (len(trip) * 2 - 5), mass=True)
    assert_by_definition(score(ENGINE, query)[0], query, MODEL, VOCABULARY)


def test_candidates_that_share_a_cell_each_carry_its_mass() -> None:
    query = make_query(HistoryMode.WINDOW, [[1]], [[7, 9, 7]], mass=True)
    scores = score(ENGINE, query)[0]
    assert scores.log_probs[0] == scores.log_probs[2]
    assert np.exp(scores.log_probs.astype(np.float64)).sum() == pytest.approx(1, abs=2e-3)
    distinct = score(ENGINE, make_query(HistoryMode.WINDOW, [[1]], [[7, 9]], mass=True))[0]
    assert scores.candidate_mass == distinct.candidate_mass


def test_a_single_candidate_is_certain() -> None:
    assert score(ENGINE, make_query(HistoryMode.WINDOW, [[]], [[3]]))[0].log_probs.tolist() == [0.0]


def test_the_whole_vocabulary_of_cells_as_candidates() -> None:
    query = make_query(HistoryMode.WINDOW, [[5, 6]], [list(range(CELLS))], mass=True)
    assert_by_definition(score(ENGINE, query)[0], query, MODEL, VOCABULARY)


def test_empty_requests() -> None:
    empty = make_query(HistoryMode.WINDOW, [], [], mass=True)
    no_candidates = make_query(HistoryMode.SEQUENCE, [[1, 2], []], [[], []], mass=True)
    first, second = score(ENGINE, empty, no_candidates)
    assert first.log_probs.shape == second.log_probs.shape == (0,)
    assert first.candidate_mass is not None
    assert second.candidate_mass is not None
    assert first.candidate_mass.shape == (0,)
    assert second.candidate_mass.tolist() == [0.0, 0.0]
    assert ENGINE.prepare(no_candidates).cost == 0
    assert ENGINE.score([]) == []


def test_equal_contexts_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = make_engine(MODEL)
    seen: list[int] = []
    hidden = scorer._model.hidden
    monkeypatch.setattr(scorer._model, "hidden", lambda tokens: seen.append(len(tokens)) or hidden(tokens))
    rows = [[1, 2, 3, 4]] * 500 + [[1, 2, 3, 5]]
    query = make_query(HistoryMode.WINDOW, rows, [[1, 2]] * len(rows))
    assert_by_definition(score(scorer, query)[0], query, MODEL, VOCABULARY)
    assert len(seen) == 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(queries(), min_size=1, max_size=3), min_size=1, max_size=5))
def test_remembered_answers_are_the_computed_ones(batches: list[list[ScoreQuery]]) -> None:
    for batch in batches + batches:
        for scores, query in zip(score(REMEMBERING, *batch), batch, strict=True):
            assert scores.log_probs.tobytes() == score(ENGINE, query)[0].log_probs.tobytes()


def test_remembered_contexts_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = make_engine(MODEL, CPU.model_copy(update={"cache_mib": 1, "cache_window": 4}))
    assert scorer.cache is not None
    short = make_query(HistoryMode.WINDOW, [[1, 2, 3], [4]], [[1, 2], [3, 4]], mass=True)
    first = score(scorer, short)[0]
    assert (scorer.cache.lookups, scorer.cache.hits) == (2, 0)
    score(scorer, make_query(HistoryMode.WINDOW, [[1] * 5], [[1, 2]]))  # too long to be remembered
    assert scorer.cache.lookups == 2
    monkeypatch.setattr(scorer._model, "hidden", None)
    second = score(scorer, short)[0]
    assert (scorer.cache.lookups, scorer.cache.hits) == (4, 2)
    assert first.log_probs.tobytes() == second.log_probs.tobytes()


def test_far_fetched_candidates_stay_finite() -> None:
    model = make_model()
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(1e5)
    scores = score(make_engine(model), make_query(HistoryMode.WINDOW, [[1]], [list(range(CELLS))]))[0]
    assert np.all(np.isfinite(scores.log_probs))
    assert scores.log_probs.min() == np.finfo(np.float16).min


def test_values_that_are_not_finite_are_an_error() -> None:
    model = make_model()
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(3e38)
    with pytest.raises(InternalError, match="not finite"):
        score(make_engine(model), make_query(HistoryMode.WINDOW, [[1]], [[1, 2]]))


def test_limits_are_checked() -> None:
    with pytest.raises(InvalidRequest, match=rf"history_lengths\[0\]: {BLOCK} tokens, at most {BLOCK - 1}"):
        ENGINE.check(make_query(HistoryMode.WINDOW, [[1] * BLOCK], [[1]]), 10)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays_close(dtype: str) -> None:
    scorer = make_engine(MODEL, EngineConfig(device="cpu", dtype=dtype, threads=1, tile_tokens=64))
    assert scorer.compute_dtype == dtype
    query = make_query(HistoryMode.SEQUENCE, [[1, 2, 3, 4]], [[4, 5, 6]] * 4)
    difference = score(scorer, query)[0].log_probs - score(ENGINE, query)[0].log_probs
    assert np.abs(difference).max() < (0.05 if dtype == "float16" else 0.5)


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="device=cuda:7"):
        make_engine(MODEL, EngineConfig(device="cuda:7"))


def test_what_it_says_of_itself() -> None:
    ENGINE.warm_up()
    assert (ENGINE.device, ENGINE.compute_dtype) == ("cpu", "float32")
    assert ENGINE.parameters == sum(p.numel() for p in MODEL.parameters())
    assert ENGINE.header.tokeniser.vocabulary == VOCABULARY


@pytest.fixture(scope="module")
def public_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("public") / "teacher"
    export.run(ExportConfig(checkpoint=reference_path("fixtures", "lmtad", "training_checkpoint.pt"), out=out))
    return out


@pytest.mark.parametrize("window", [None, 0, 3])
def test_parity_with_the_public_code(public_teacher: Path, window: int | None) -> None:
    """The reference's logits for WINDOW; for SEQUENCE those of the causal pass, and of the plain model."""
    scorer = engine.load(public_teacher, CPU)
    reference = np.load(reference_path("fixtures", "lmtad", "reference.npz"))
    random = np.random.default_rng(0)
    if window is None:
        rows = [row[:n].tolist() for row, n in zip(reference["history"], reference["history_length"], strict=True)]
        logits = reference["last_logits"]
        query = make_query(HistoryMode.WINDOW, rows, _random_candidates(random, len(rows)), mass=True)
    else:
        trip = reference["sequence"][1:].tolist()
        trip = trip[: next((i for i, token in enumerate(trip) if token >= 99), len(trip))]
        logits = reference["sequence_logits"][1 : len(trip) + 1]
        query = make_query(HistoryMode.SEQUENCE, [trip], _random_candidates(random, len(trip)), window, mass=True)
    scores = score(scorer, query)[0]
    if not window:
        starts = ragged.offsets(query.candidate_lengths)
        for position, row in enumerate(logits.astype(np.float64)):
            part = slice(starts[position], starts[position + 1])
            expected = row[query.candidate_tokens[part]]
            expected = expected - np.logaddexp.reduce(expected) if len(expected) else expected
            np.testing.assert_allclose(scores.log_probs[part].astype(np.float64), expected, rtol=1e-3, atol=2e-3)
    header, weights = teacher_file.read(public_teacher)
    plain = LMTAD.from_weights(Architecture.from_dict(header.architecture), weights)
    assert_by_definition(scores, query, plain, header.tokeniser.vocabulary)


def _random_candidates(random: np.random.Generator, positions: int) -> list[list[int]]:
    return [random.integers(0, 99, random.integers(0, 7)).tolist() for _ in range(positions)]


def test_works_are_plain_data() -> None:
    work = ENGINE.prepare(make_query(HistoryMode.WINDOW, [[1, 2], [3]], [[1], []]))
    assert (work.positions, work.cost) == (2, 5)
    assert dataclasses.is_dataclass(work)
