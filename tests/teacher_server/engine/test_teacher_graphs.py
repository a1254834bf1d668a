"""Recorded tiles with a recorder of our own: what is recorded, when, and when it is not used. And whole batches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from test_teacher_accelerator import batch_of
from test_teacher_engine import CPU, MODEL, make_engine

from teacher_server.engine import engine, fused
from teacher_server.engine.cuda_graphs import Graphs, Shape
from teacher_server.engine.engine import Engine
from teacher_server.engine.fused import Fused
from teacher_server.engine.shapes import Kind
from teacher_server.engine.streams import Direct, Replay
from teacher_server.lmtad.model import attend_by_gathering, future_of
from teacher_server.scorer import ScorerLost, Scores

HERE = torch.device("cpu")
ONE = CPU.model_copy(update={"threads": 1})


class Recorder(Direct):
    """Records calls; what is replayed is `distorted`."""

    def __init__(self) -> None:
        super().__init__(HERE)
        self.recorded = self.replayed = 0
        self.distort: Callable[[], object] = lambda: None
        self.failure: RuntimeError | None = None
        self.times: dict[bool, float] = {}

    def record(self, function: Replay) -> Replay:
        """See `Streams`."""
        if self.failure is not None:
            raise self.failure
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            function()
            self.distort()

        return replay

    def milliseconds(self, function: Callable[[], object], times: int) -> float:
        """See `Streams`: whether it replays decides how long it takes."""
        before = self.replayed
        function()
        return self.times.get(self.replayed > before, 1.0)


def graphs_of(recorder: Recorder, scorer: Engine) -> Graphs:
    return Graphs(scorer._model, scorer._tiler.sizes, recorder)


@pytest.fixture(scope="module")
def scorer() -> Engine:
    return make_engine(MODEL, ONE)


def shape_of(scorer: Engine, kind: Kind) -> Shape:
    group = next(group for group in scorer._tiler.sizes if group.kind is kind)
    return Shape(group, scorer._tiler.sizes[group][0])


def numbers_of(shape: Shape, seed: int) -> torch.Tensor:
    """Tokens at any place; a tree of nodes that see themselves."""
    random = np.random.default_rng(seed)
    rows = random.integers(MODEL.architecture.vocab_size, size=(shape.size, shape.group.columns))
    if shape.group.kind is Kind.TREE:
        rows[:, 1], rows[:, 2] = 0, np.arange(shape.size)
        rows[:, 3:] = 0
    index = random.integers(shape.size if shape.group.kind is Kind.TREE else shape.size * shape.group.width,
                            size=shape.states)  # fmt: skip
    return torch.from_numpy(np.append(rows.flatten(), index).astype(np.int32))


@pytest.mark.parametrize("kind", list(Kind))
@torch.inference_mode()
def test_a_shape_is_recorded_once_and_replayed_with_other_inputs(scorer: Engine, kind: Kind) -> None:
    recorder = Recorder()
    graphs, plain = graphs_of(recorder, scorer), graphs_of(Recorder(), scorer)
    plain.is_on = False
    shape = shape_of(scorer, kind)
    for seed in range(3):
        numbers = numbers_of(shape, seed)
        found = graphs.states(shape, numbers).clone()
        assert torch.equal(found, plain.states(shape, numbers))
        assert found.abs().sum() > 0
    assert (recorder.recorded, recorder.replayed, graphs.recorded) == (1, 3, 1)


@torch.inference_mode()
def test_a_graph_with_other_bits_is_not_used(scorer: Engine, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    graphs = graphs_of(recorder, scorer)
    shape = shape_of(scorer, Kind.TREE)
    expected = graphs.states(shape, numbers_of(shape, 0)).clone()
    graphs = graphs_of(recorder, scorer)
    recorder.distort = lambda: graphs._states.add_(1e-6)
    assert torch.equal(graphs.states(shape, numbers_of(shape, 0)), expected)
    assert "its graph gives other bits and is not used" in caplog.text
    replayed = recorder.replayed
    assert torch.equal(graphs.states(shape, numbers_of(shape, 0)), expected)
    assert (recorder.replayed, graphs.recorded) == (replayed, 0)


@torch.inference_mode()
def test_what_cannot_be_recorded_is_computed(scorer: Engine, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    shape = shape_of(scorer, Kind.ENDS)
    expected = graphs_of(recorder, scorer).states(shape, numbers_of(shape, 0)).clone()
    recorder.failure = RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")
    graphs = graphs_of(recorder, scorer)
    for _ in range(2):
        assert torch.equal(graphs.states(shape, numbers_of(shape, 0)), expected)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("cannot be recorded as a graph (CUDA error: operation not permitted when stream is capturing)")


@pytest.mark.parametrize(("graph", "is_used"), [(0.5, True), (2.0, False)])
def test_graphs_are_used_where_they_are_faster(
    scorer: Engine, graph: float, is_used: bool, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    recorder.times = {True: graph, False: 1.0}
    graphs = graphs_of(recorder, scorer)
    with caplog.at_level("INFO"):
        graphs.choose()
        graphs.prepare(60)
    assert graphs.is_on is is_used
    assert graphs.recorded == (len(graphs._shapes) if is_used else 0)
    assert f"graphs: {'used' if is_used else 'not used'}, {graph:.3f} ms against 1.000" in caplog.text


def test_recording_ends_in_time(scorer: Engine, caplog: pytest.LogCaptureFixture) -> None:
    graphs = graphs_of(Recorder(), scorer)
    with caplog.at_level("INFO"):
        graphs.choose()
        graphs.prepare(0)
    assert graphs.recorded == 1
    assert "recorded when they are first needed" in caplog.text


def bytes_of(scores: Scores) -> tuple[bytes, bytes]:
    return scores.log_probs.tobytes(), scores.candidate_mass.tobytes()


@pytest.mark.parametrize("mass", [False, True])
def test_packed_batches_have_the_bits_of_unpacked_ones(scorer: Engine, mass: bool) -> None:
    """All kinds of tile; the next batch is packed before the first is computed."""
    recorder = Recorder()
    packed = make_engine(MODEL, ONE, recorder)
    packed.warm_up()
    batches = [batch_of(mass), batch_of(not mass), batch_of(mass)]
    ready = [packed.assemble(batch) for batch in batches]
    assert {tile.group.kind for tile in ready[0].tiling.tiles} == set(Kind)
    for batch, one in zip(batches, ready, strict=True):
        assert bytes_of(packed.score(one)) == bytes_of(scorer.score(scorer.assemble(batch)))
    assert packed._graphs is not None
    assert recorder.recorded == packed._graphs.recorded == len(packed._graphs._shapes)
    assert packed.served.device == "cpu (graphs)" and scorer.served.device == "cpu"


def test_errors_of_cuda_are_told_apart_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = make_engine(MODEL, ONE, Direct(HERE))
    ready = packed.assemble(batch_of(False))

    def fail_with(error: Exception) -> None:
        def compute(*_: object) -> None:
            raise error

        monkeypatch.setattr(packed._accelerated, "compute", compute)

    fail_with(RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"))
    with pytest.raises(ScorerLost, match=r"^cpu is lost: CUDA error: an illegal memory access was encountered$"):
        packed.score(ready)
    for error in (torch.OutOfMemoryError("CUDA error: out of memory"), RuntimeError("shapes do not fit")):
        fail_with(error)
        with pytest.raises(type(error), match=str(error)):
            packed.score(ready)


class Kernels:
    """Stands in for the module of kernels: torch's operations in another order."""

    @staticmethod
    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, place: torch.Tensor
    ) -> torch.Tensor:
        """See `kernels.attend`."""
        mask = future_of(place, seen.shape[1])
        return attend_by_gathering(query, key, value, seen.flip(1), mask.flip(1))

    @staticmethod
    def dots(states: torch.Tensor, head: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """See `kernels.dots`."""
        return torch.einsum("nd,nd->n", states[pairs[:, 0]].float(), head[pairs[:, 1]].float())

    @staticmethod
    def log_sums(logits: torch.Tensor) -> torch.Tensor:
        """See `kernels.log_sums`."""
        return torch.logsumexp(logits.flip(1), -1)


def chosen(monkeypatch: pytest.MonkeyPatch, kernels: type, streams: Direct | None = None) -> Fused:
    monkeypatch.setattr(fused, "_kernels", lambda: kernels)
    return fused.choose(MODEL, streams or Direct(HERE))


def test_kernels_that_agree_are_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The product that torch has for CUDA alone is not, here."""
    with caplog.at_level("INFO"):
        found = chosen(monkeypatch, Kernels)
    assert found.names == ["attend", "dots", "log_sums"]
    assert "product: not used" in caplog.text and "attend: used" in caplog.text


@pytest.mark.parametrize("wrong", ["attend", "dots", "log_sums"])
@pytest.mark.parametrize("how", ["values", "shape", "no number", "raises"])
def test_kernels_that_do_not_agree_are_not_used(
    monkeypatch: pytest.MonkeyPatch, wrong: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    right = getattr(Kernels, wrong)

    def distorted(*arguments: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = right(*arguments, **named)
        if how == "raises":
            raise ValueError("no C compiler")
        return {"values": 1.5 * result, "shape": result[:-1], "no number": result / 0 * 0}[how]

    kernels = type("Wrong", (Kernels,), {wrong: staticmethod(distorted)})
    found = chosen(monkeypatch, kernels)
    assert found.names == [name for name in ("attend", "dots", "log_sums") if name != wrong]
    assert f"{wrong}: not used" in caplog.text


def test_kernels_that_are_slower_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(Direct):
        calls = 0

        def milliseconds(self, function: Callable[[], object], times: int) -> float:
            """See `Streams`: ours are timed first, twice."""
            self.calls += 1
            return 3.0 if self.calls % 4 in (1, 2) else 2.0

    with caplog.at_level("INFO"):
        assert chosen(monkeypatch, Kernels, Slow(HERE)).names == []
    assert "dots: not used, 3.000 ms against 2.000" in caplog.text


def test_without_triton_torch_computes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def missing() -> None:
        raise ModuleNotFoundError("No module named 'triton'")

    monkeypatch.setattr(fused, "_kernels", missing)
    assert fused.choose(MODEL, Direct(HERE)).names == []
    assert "no kernels of our own: No module named 'triton'" in caplog.text


def test_the_model_computes_with_the_kernels(scorer: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees and ends through the attention, candidates and normalisers through the head: close to the reference."""
    monkeypatch.setattr(fused, "_kernels", lambda: Kernels)
    monkeypatch.setattr(engine, "Fused", lambda: fused.choose(MODEL, Direct(HERE)))
    other = make_engine(MODEL, ONE, Direct(HERE))
    assert other.served.device == "cpu (own attend, own dots, own log_sums, graphs)"
    batch = batch_of(True)
    found, expected = other.score(other.assemble(batch)), scorer.score(scorer.assemble(batch))
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=2e-3)
    np.testing.assert_allclose(found.candidate_mass, expected.candidate_mass, atol=1e-3)
    assert other._model.attend_to is Kernels.attend and other._head._fused.dots is Kernels.dots
