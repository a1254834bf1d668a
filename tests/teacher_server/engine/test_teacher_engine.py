"""The engine against the plain model, one window after another in float64, and its independence of the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from conftest import reference_path
from hypothesis import given, settings
from hypothesis import strategies as st
from support import numpy_layouts
from support.plans import Plan, plan_of

from shared import ragged, teacher_file
from shared.errors import ConfigError, InternalError
from shared.grid import Grid
from shared.vocab import Tokeniser, Vocabulary
from shared.wire import HistoryMode, ScoreQuery
from teacher_server.engine import engine
from teacher_server.engine.config import EngineConfig
from teacher_server.engine.engine import Engine
from teacher_server.engine.head import Head
from teacher_server.engine.shapes import Kind
from teacher_server.engine.streams import Direct, Streams
from teacher_server.engine.tiler import Tiler
from teacher_server.lmtad import export
from teacher_server.lmtad.config import ExportConfig
from teacher_server.lmtad.model import LMTAD, Architecture
from teacher_server.scorer import Batch, Scores
from teacher_server.serve import checks
from teacher_server.serve.checks import RequestLimits

CPU = EngineConfig(device="cpu", threads=2, tile_tokens=256, smallest_bucket=2, prefix_window=6)
CELLS, BLOCK = 40, 12
VOCABULARY = Vocabulary.full(CELLS)


def make_model(seed: int = 0, tied_head: bool = True, n_embd: int = 24) -> LMTAD:
    torch.manual_seed(seed)
    model = LMTAD(Architecture(2, 3, n_embd, BLOCK, VOCABULARY.size, bias=True), tied_head=tied_head).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return model


def make_engine(model: LMTAD, config: EngineConfig = CPU, streams: Streams | None = None) -> Engine:
    grid = Grid.from_bounds((0.0, 0.0, 0.45, 0.75), 0.1, 0.1)
    header = teacher_file.TeacherHeader(model.architecture.to_dict(), Tokeniser(VOCABULARY, grid), "revision", {})
    return Engine(header, LMTAD.from_weights(model.architecture, model.weights()), config, streams)


MODEL = make_model()
ENGINE = make_engine(MODEL)
PLAIN = make_engine(MODEL, CPU.model_copy(update={"prefix_window": 0, "threads": 1}))
PACKED = make_engine(MODEL, streams=Direct(torch.device("cpu")))
ENGINES = {"tree": ENGINE, "plain": PLAIN, "packed": PACKED}


def make_query(
    mode: HistoryMode, rows: list[list[int]], candidates: list[list[int]], window: int = 0, mass: bool = False
) -> ScoreQuery:
    def flat(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        values = np.array([value for values in lists for value in values], np.int32)
        return values, np.array([len(values) for values in lists], np.int32)

    return ScoreQuery(mode, *flat(rows), *flat(candidates), window, mass)


def _batch(made: list[Plan], queries: Sequence[ScoreQuery]) -> Batch:
    def joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
        return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)

    first_row = ragged.offsets(np.array([len(plan.lengths) for plan in made], np.int64)).tolist()
    pairs = list(zip(made, queries, strict=True))
    return Batch(
        tokens=joined([plan.tokens for plan in made], np.int32),
        lengths=joined([plan.lengths for plan in made], np.int64),
        scored_row=joined([plan.scored_row + row for plan, row in zip(made, first_row, strict=False)], np.int64),
        scored_place=joined([plan.scored_place for plan in made], np.int64),
        candidates=joined([query.candidate_tokens for query in queries], np.int32),
        candidate_lengths=joined([query.candidate_lengths[plan.position] for plan, query in pairs], np.int64),
        with_mass=joined(
            [np.full(len(plan.position), query.include_candidate_mass) for plan, query in pairs], np.bool_
        ),
    )


def score(scorer: Engine, *queries: ScoreQuery) -> list[Scores]:
    """Scores the queries in one batch; the masses are of every position, 0 for those without candidates."""
    served = scorer.served
    for query in queries:
        checks.check(query, RequestLimits(served.cells, served.eot, served.longest, 10_000, 100_000))
    made = [plan_of(query, served.header.tokeniser.vocabulary.sot, served.longest + 1) for query in queries]
    scores = scorer.score(scorer.assemble(_batch(made, queries)))
    tokens = np.cumsum([len(query.candidate_tokens) for query in queries])[:-1]
    places = np.cumsum([len(plan.position) for plan in made])[:-1]
    masses = [np.zeros(query.positions, np.float16) for query in queries]
    for mass, plan, part in zip(masses, made, np.split(scores.candidate_mass, places), strict=True):
        mass[plan.position] = part
    return [Scores(*parts) for parts in zip(np.split(scores.log_probs, tokens), masses, strict=True)]


def states(scorer: Engine, query: ScoreQuery) -> torch.Tensor:
    """Final hidden states at the scored places, float32 [S, D]."""
    ready = scorer.assemble(_batch([plan_of(query, VOCABULARY.sot, BLOCK)], [query]))
    with torch.inference_mode():
        return scorer._states(ready.tiling)[torch.from_numpy(ready.tiling.state)]


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
            mass = np.exp(log_probs[np.unique(cells)]).sum()
            assert float(scores.candidate_mass[position]) == pytest.approx(mass, abs=1e-3)


cells = st.integers(0, CELLS - 1)
choices = cells | st.just(VOCABULARY.eot)


@st.composite
def queries(draw: st.DrawFn) -> ScoreQuery:
    mode = draw(st.sampled_from(HistoryMode))
    longest = BLOCK - 1 if mode is HistoryMode.WINDOW else 20
    rows = draw(st.lists(st.lists(cells, max_size=longest), max_size=5))
    positions = len(rows) if mode is HistoryMode.WINDOW else sum(map(len, rows))
    candidates = draw(st.lists(st.lists(choices, max_size=5), min_size=positions, max_size=positions))
    window = 0 if mode is HistoryMode.WINDOW else draw(st.sampled_from([0, 1, 2, 4, BLOCK - 1]))
    return make_query(mode, rows, candidates, window, mass=draw(st.booleans()))


@pytest.mark.parametrize("name", ENGINES)
@settings(deadline=None, max_examples=40)
@given(query=queries())
def test_scores_follow_the_definition(name: str, query: ScoreQuery) -> None:
    assert_by_definition(score(ENGINES[name], query)[0], query, MODEL, VOCABULARY)


@pytest.mark.parametrize("name", ENGINES)
@settings(deadline=None, max_examples=60)
@given(batch=st.lists(queries(), min_size=1, max_size=6), random=st.randoms(use_true_random=False))
def test_bits_do_not_depend_on_the_batch(name: str, batch: list[ScoreQuery], random: Random) -> None:
    """Also with the same contexts for other candidates, with and without the mass."""
    scorer = ENGINES[name]
    batch = batch + [_with_other_candidates(query, random) for query in batch]
    alone = [score(scorer, query)[0] for query in batch]
    order = list(range(len(batch)))
    random.shuffle(order)
    for i, scores in zip(order, score(scorer, *[batch[i] for i in order]), strict=True):
        assert scores.log_probs.tobytes() == alone[i].log_probs.tobytes()
        assert scores.candidate_mass.tobytes() == alone[i].candidate_mass.tobytes()


def _with_other_candidates(query: ScoreQuery, random: Random) -> ScoreQuery:
    lengths = np.array([random.randrange(4) for _ in query.candidate_lengths], np.int32)
    tokens = np.array(
        [random.choice([random.randrange(CELLS), VOCABULARY.eot]) for _ in range(int(lengths.sum()))], np.int32
    )
    return dataclasses.replace(
        query,
        candidate_tokens=tokens,
        candidate_lengths=lengths,
        include_candidate_mass=not query.include_candidate_mass,
    )


def random_windows(count: int, cells: int = CELLS, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, cells, random.integers(0, BLOCK)).tolist() for _ in range(count)]


@pytest.mark.parametrize("n_embd", [24, 48, 96])
@pytest.mark.parametrize("tile_tokens", [64, 300, 512])
@pytest.mark.parametrize("prefix_window", [0, 8])
def test_hidden_states_do_not_depend_on_the_batch(n_embd: int, tile_tokens: int, prefix_window: int) -> None:
    """In float32, where rounding to float16 hides nothing; many contexts, any place in a tile of any size."""
    settings = CPU.model_copy(update={"tile_tokens": tile_tokens, "prefix_window": prefix_window})
    scorer = make_engine(make_model(n_embd=n_embd), settings)
    random = np.random.default_rng(0)
    rows = random_windows(100) + random_windows(100, cells=2)
    everything = states(scorer, make_query(HistoryMode.WINDOW, rows, [[0]] * len(rows)))
    for _ in range(8):
        some = random.permutation(len(rows))[: random.integers(1, random.choice([4, 20, len(rows)]))]
        part = make_query(HistoryMode.WINDOW, [rows[i] for i in some], [[0]] * len(some))
        assert torch.equal(states(scorer, part), everything[torch.from_numpy(some)])


@pytest.mark.parametrize("name", ENGINES)
def test_hidden_states_are_the_model_s(name: str) -> None:
    """One context at a time, in float32 and in float64; windows and causal rows that share prefixes."""
    rows = random_windows(150, cells=3)
    windows = make_query(HistoryMode.WINDOW, rows, [[0]] * len(rows))
    causal = make_query(HistoryMode.SEQUENCE, rows, [[0]] * sum(map(len, rows)))
    precise = LMTAD.from_weights(MODEL.architecture, MODEL.weights()).double()
    for query in (windows, causal):
        found = states(ENGINES[name], query)
        for position in range(query.positions):
            tokens = torch.tensor([context(query, position, VOCABULARY.sot, BLOCK)])
            with torch.inference_mode():
                torch.testing.assert_close(found[position], MODEL.hidden(tokens)[0, -1], rtol=1e-5, atol=1e-5)
                exact = precise.hidden(tokens)[0, -1].float()
            torch.testing.assert_close(found[position], exact, rtol=1e-5, atol=1e-5)


def test_sizes_with_other_bits_are_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    of_tree, log_sums = LMTAD.hidden_of_tree, Head._log_sums

    def one_differs(self: LMTAD, tokens: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return of_tree(self, tokens, *others) + 1e-3 * (len(tokens) == 64)

    def another_differs(self: Head, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return log_sums(self, states, rows) + 1e-3 * (len(rows) < 100_000 // 4)

    monkeypatch.setattr(LMTAD, "hidden_of_tree", one_differs)
    with caplog.at_level("INFO"):
        scorer = make_engine(MODEL)
    trees = {group: sizes for group, sizes in scorer._tiler.sizes.items() if group.kind is Kind.TREE}
    assert trees
    assert set(trees.values()) == {(256, 16)}
    assert "tree of 3 tokens: of sizes (256, 64, 16) only (256, 16) give the same bits" in caplog.text
    assert scorer.served.numerics != ENGINE.served.numerics
    monkeypatch.setattr(Head, "_log_sums", another_differs)
    assert len(make_engine(MODEL)._head.normaliser_chunks.sizes) == 1


def test_bits_that_depend_on_the_place_are_refused_unless_allowed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hidden_of = LMTAD.hidden_at

    def by_place(self: LMTAD, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return hidden_of(self, tokens, places) + 1e-3 * (torch.arange(len(places)) % 2)[:, None]

    monkeypatch.setattr(LMTAD, "hidden_at", by_place)
    with pytest.raises(ConfigError, match=rf"may depend on its batch on cpu: .*ends of {BLOCK} tokens.*; try "):
        make_engine(MODEL)
    allowed = CPU.model_copy(update={"allow_batch_dependence": True})
    scorer = make_engine(MODEL, allowed)
    assert "allow_batch_dependence=true: served, and remembered for this process only" in caplog.text
    assert scorer.served.numerics != make_engine(MODEL, allowed).served.numerics  # what one keeps is not for the next


def test_allowing_dependence_changes_nothing_where_there_is_none() -> None:
    assert (
        make_engine(MODEL, CPU.model_copy(update={"allow_batch_dependence": True})).served.numerics
        == ENGINE.served.numerics
    )


@pytest.mark.parametrize("change", [{"prefix_window": 0}, {"tile_tokens": 128}, {"smallest_bucket": 3}])
def test_numerics_tell_settings_apart(change: dict[str, int]) -> None:
    assert make_engine(MODEL).served.numerics == ENGINE.served.numerics
    assert make_engine(MODEL, CPU.model_copy(update={"threads": 3})).served.numerics == ENGINE.served.numerics
    assert make_engine(MODEL, CPU.model_copy(update=change)).served.numerics != ENGINE.served.numerics


def test_threads_do_not_change_bits() -> None:
    random = np.random.default_rng(0)
    rows = [random.integers(0, CELLS, random.integers(0, BLOCK)).tolist() for _ in range(100)]
    query = make_query(HistoryMode.WINDOW, rows, [[1, 2, 3]] * 100, mass=True)
    one = score(make_engine(MODEL, CPU.model_copy(update={"threads": 1})), query)[0]
    three = score(make_engine(MODEL, CPU.model_copy(update={"threads": 3})), query)[0]
    assert one.log_probs.tobytes() == three.log_probs.tobytes()


@pytest.mark.parametrize("name", ENGINES)
def test_answers_have_the_bits_of_those_whose_contexts_were_sorted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that overlap, trips with every place scored, repeats: in several tiles of each kind."""
    random = np.random.default_rng(0)
    trips = [random.integers(0, 5, random.integers(1, 3 * BLOCK)).tolist() for _ in range(60)]
    queries = []
    for window in (0, 4, 7):
        candidates = [random.integers(0, CELLS, 3).tolist() for trip in trips for _ in trip]
        queries.append(make_query(HistoryMode.SEQUENCE, trips, candidates, window, mass=True))
    mine = score(ENGINES[name], *queries)
    monkeypatch.setattr(Tiler, "tile", numpy_layouts.tile)
    monkeypatch.setattr(engine, "pairs_of", numpy_layouts.pairs_of)
    for one, other in zip(mine, score(ENGINES[name], *queries), strict=True):
        assert one.log_probs.tobytes() == other.log_probs.tobytes()
        assert one.candidate_mass.tobytes() == other.candidate_mass.tobytes()


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
    assert first.candidate_mass.shape == (0,)
    assert second.candidate_mass.tolist() == [0.0, 0.0]
    assert score(ENGINE, *[empty] * 2)[1].log_probs.shape == (0,)


@pytest.mark.parametrize(("prefix_window", "tokens", "padded"), [(0, 5 * 2 + 4, 15 * 5), (6, 6, 16)])
def test_equal_contexts_are_computed_once(prefix_window: int, tokens: int, padded: int) -> None:
    """[SOT 1 2 3 4], [SOT 1 2 3 5] and [SOT 1 2 3] are 14 tokens, and six nodes."""
    scorer = make_engine(MODEL, CPU.model_copy(update={"prefix_window": prefix_window, "smallest_bucket": 4}))
    rows = [[1, 2, 3, 4]] * 500 + [[1, 2, 3, 5]] * 2 + [[1, 2, 3]]
    query = make_query(HistoryMode.WINDOW, rows, [[1, 2]] * 250 + [[4, 5, 6]] * 253)
    assert_by_definition(score(scorer, query)[0], query, MODEL, VOCABULARY)
    computed = scorer.computed
    assert (computed.places, computed.states, computed.contexts, computed.tokens) == (503, 3, 3, tokens)
    assert computed.padded <= padded


def test_a_context_scored_in_both_ways_has_the_bits_of_each() -> None:
    trip = list(range(BLOCK - 1))
    window = make_query(HistoryMode.WINDOW, [trip], [[1, 2, 3]], mass=True)
    causal = make_query(HistoryMode.SEQUENCE, [trip], [[1, 2, 3]] * len(trip), mass=True)
    before = dataclasses.asdict(ENGINE.computed)["contexts"]
    together = score(ENGINE, window, causal, window)
    assert ENGINE.computed.contexts == before + 2
    for scores, query in zip(together, (window, causal, window), strict=True):
        alone = score(ENGINE, query)[0]
        assert scores.log_probs.tobytes() == alone.log_probs.tobytes()
        assert scores.candidate_mass.tobytes() == alone.candidate_mass.tobytes()


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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays_close(dtype: str) -> None:
    scorer = make_engine(MODEL, EngineConfig(device="cpu", dtype=dtype, threads=1, tile_tokens=64))
    assert scorer.served.compute_dtype == dtype
    query = make_query(HistoryMode.SEQUENCE, [[1, 2, 3, 4]], [[4, 5, 6]] * 4)
    difference = score(scorer, query)[0].log_probs - score(ENGINE, query)[0].log_probs
    assert np.abs(difference).max() < (0.05 if dtype == "float16" else 0.5)


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="device=cuda:7"):
        make_engine(MODEL, EngineConfig(device="cuda:7"))


def test_what_it_says_of_itself() -> None:
    ENGINE.warm_up()
    assert (ENGINE.served.device, ENGINE.served.compute_dtype) == ("cpu", "float32")
    assert ENGINE.served.parameters == sum(p.numel() for p in MODEL.parameters())
    assert ENGINE.served.header.tokeniser.vocabulary == VOCABULARY
    assert (ENGINE.served.cells, ENGINE.served.longest) == (VOCABULARY.cells, BLOCK - 1)


@pytest.fixture(scope="module")
def public_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("public") / "teacher"
    export.run(ExportConfig(checkpoint=reference_path("lmtad", "training_checkpoint.pt"), out=out))
    return out


@pytest.mark.parametrize("window", [None, 0, 3])
def test_parity_with_the_public_code(public_teacher: Path, window: int | None) -> None:
    """The reference's logits for WINDOW; for SEQUENCE those of the causal pass, and of the plain model."""
    scorer = engine.load(public_teacher, CPU)
    reference = np.load(reference_path("lmtad", "reference.npz"))
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


def test_costs_are_padded_tokens() -> None:
    assert ENGINE.costs.tolist() == [0, 3, 3, 3, 5, 5, 6, 9, 9, 9, 12, 12, 12]
