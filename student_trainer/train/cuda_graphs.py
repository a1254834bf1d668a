"""A whole optimizer step recorded once and repeated: CUDA graphs.

The operations of a step are the same for all batches of one shape, and a host needs longer to start them than an
accelerator to do them. `StepGraphs` records forward passes, losses, backward pass, clipping and update for each shape
(`data.packing`) when it comes up first, and then repeats all of it by one call, with two copies (the batch; the
teacher's answer and a few numbers) and one read (everything that is known of the step).

What a host decides elsewhere is decided on the device: a step whose loss or gradient is not finite leaves weights and
moments as they are. A new shape's step is first made as single operations without an update, which also loads what
kernels it needs; the recording must find the same loss and norm, again without an update. Where it cannot be recorded,
or finds something else, the run goes on without graphs, and says so once.

Every step is a repetition, the first of a shape, too: a resumed run repeats what an undisturbed one does.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from shared.arrays import Floating
from shared.errors import ConfigError, TrainingError
from student_trainer.data.packing import Packed, Shape
from student_trainer.distill.loss import Answer
from student_trainer.model import device as devices
from student_trainer.model.history_head import HistoryHead
from student_trainer.model.student import NetworkEmbedding, Student
from student_trainer.train.config import RuntimeConfig
from student_trainer.train.objective import Divisors, Objective, forward
from student_trainer.train.runtime import Runtime

log = logging.getLogger(__name__)

MOST_GRAPHS = 128
"""Shapes that are recorded, the first ones that come up; others' steps are made of the same operations, one by one."""
DIFFERENCE = {None: 1e-3, torch.bfloat16: 2e-2}
"""Relative difference of loss and norm between single operations and the recording, by autocast's dtype: the same
kernels run, but a library may choose others of another order for a product, in TF32 or bfloat16."""
NUMBERS = (*Divisors._fields, "learning_rate", "hold")
"""Of a step: by which sums are divided; AdamW's rate; 1 to leave weights as they are."""
VERDICTS = ("is_finite", "norm")
"""What stands before the metrics in what a step finds."""

Body = Callable[[], Tensor]


class Recorder(Protocol):
    """What runs a step's operations for `StepGraphs`."""

    def run(self, body: Body) -> Tensor:
        """Runs operations one by one, where they will be recorded."""
        ...

    def record(self, body: Body) -> tuple[Callable[[], None], Tensor]:
        """What repeats the operations, and where they leave their result; may not run them.

        Raises:
            RuntimeError: they cannot be recorded.
        """
        ...


class CudaRecorder:
    """CUDA graphs, on a stream of their own; all share one pool of memory, since one at a time runs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, body: Body) -> Tensor:
        """See `Recorder`."""
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            result = body()
        outside.wait_stream(self._stream)
        return result

    def record(self, body: Body) -> tuple[Callable[[], None], Tensor]:
        """See `Recorder`. Other threads may pin memory meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = body()
        return graph.replay, result


def wanted(config: RuntimeConfig, runtime: Runtime) -> bool:
    """Whether a run's steps are to be recorded.

    Raises:
        ConfigError: the settings demand what cannot be.
    """
    if config.graphs == "off":
        return False
    obstacles = {
        "needs a CUDA device": runtime.device.type != "cuda",
        "is not for float16, whose loss scale the host decides on; use runtime.amp=bfloat16 or off": (
            runtime.precision.scaler.is_enabled()
        ),
        "is not for several ranks": runtime.ranks.world > 1,
        "is not for runtime.compile": config.compile,
    }
    found = [text for text, is_there in obstacles.items() if is_there]
    if config.graphs == "on" and found:
        raise ConfigError(f"runtime.graphs=on {found[0]}; runtime.graphs=auto does without where it must")
    return not found


@dataclasses.dataclass(frozen=True)
class Request:
    """A step to make.

    Attributes:
        batches: its micro-batches.
        answers: of each one the teacher's log-probs of its candidates, float [K], and the scores of the
            destination-aware target [K], if it is used; none for a step without a teacher.
        numbers: by name, see `NUMBERS`.
    """

    batches: Sequence[Packed]
    answers: Sequence[Sequence[Floating]]
    numbers: Mapping[str, float]

    @property
    def key(self) -> tuple[int, tuple[Shape, ...]]:
        """Steps of one key are made by the same operations."""
        return self.width, tuple(packed.shape for packed in self.batches)

    def late(self) -> Tensor:
        """What is known last, as one array of the host, float32: the numbers, then each answer, padded."""
        rooms = [packed.shape.candidates for packed in self.batches for _ in range(self.width)]
        values = np.zeros(len(NUMBERS) + sum(rooms), np.float32)
        values[: len(NUMBERS)] = [self.numbers[name] for name in NUMBERS]
        start = len(NUMBERS)
        for array, room in zip((array for answer in self.answers for array in answer), rooms, strict=True):
            values[start : start + len(array)] = array
            start += room
        return torch.from_numpy(values)

    @property
    def width(self) -> int:
        """Arrays of an answer."""
        return len(self.answers[0]) if self.answers else 0


@dataclasses.dataclass(frozen=True)
class Found:
    """What is known of a step.

    Attributes:
        is_finite: whether the weights have changed.
        norm: of the gradient, before it was clipped.
        sums: metrics of each micro-batch.
    """

    is_finite: bool
    norm: float
    sums: Sequence[Mapping[str, float]]


class StepGraphs:
    """Makes whole optimizer steps; see the module.

    Attributes:
        is_off: whether steps have turned out not to be recordable.
    """

    def __init__(
        self,
        model: Student,
        head: HistoryHead | None,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        runtime: Runtime,
        clip_norm: float,
        is_demanded: bool,
        recorder: Recorder | None = None,
    ) -> None:
        """With the recorder of the device, a CUDA device, or another one; demanded, it does not do without."""
        self._model, self._head, self._optimizer, self._objective = model, head, optimizer, objective
        self._precision, self._clip_norm, self._device = runtime.precision, clip_norm, runtime.device
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._recorder = recorder or CudaRecorder(runtime.device)
        self._is_demanded = is_demanded
        self._recorded: dict[Any, _Recorded] = {}
        self.is_off = False

    @property
    def shapes(self) -> int:
        """How many keys are recorded."""
        return len(self._recorded)

    def knows(self, request: Request) -> bool:
        """Whether the request's step is recorded."""
        return request.key in self._recorded

    def ready(self, request: Request) -> _Recorded | None:
        """What repeats the step, its input on the way to the device; None if steps cannot be recorded.

        Raises:
            TrainingError: they cannot, and the settings demand it.
        """
        if self.is_off:
            return None
        recorded = self._recorded.get(request.key)
        if recorded is None:
            recorded = self._make(request) if len(self._recorded) < MOST_GRAPHS else self._one_by_one(request)
        if recorded is not None:
            recorded.load(request)
        return recorded

    def _one_by_one(self, request: Request) -> _Recorded:
        recorded = _Recorded(self._device, request)

        def run() -> Tensor:
            with self._as_recorded(recorded):
                return self._recorder.run(lambda: self._operations(recorded))

        recorded.keep(run)
        return recorded

    def _make(self, request: Request) -> _Recorded | None:
        trial = dataclasses.replace(request, numbers={**request.numbers, "hold": 1.0})
        recorded = _Recorded(self._device, request)
        try:
            recorded.load(trial)
            with self._as_recorded(recorded):
                alone = recorded.read(self._recorder.run(lambda: self._operations(recorded)))
                repeat, result = self._recorder.record(lambda: self._operations(recorded))
            recorded.keep(functools.partial(_repeated, repeat, result))
            repeated = recorded.make()
        except RuntimeError as error:
            self._give_up(f"cannot be recorded: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
            return None
        finally:
            self._optimizer.zero_grad(set_to_none=True)
        most = DIFFERENCE[self._precision.dtype]
        if not _agree(alone, repeated, most):
            self._give_up(f"gives another result when it is repeated: {repeated}, as single operations {alone}")
            return None
        if not self._recorded:
            log.info("training steps are CUDA graphs, one for each shape of batches")
        self._recorded[request.key] = recorded
        return recorded

    def _give_up(self, reason: str) -> None:
        self._recorded.clear()
        self.is_off = True
        if self._is_demanded:
            raise TrainingError(f"runtime.graphs=on, but a training step {reason}; use runtime.graphs=auto or off")
        log.warning("a training step %s; going on without CUDA graphs", reason)

    @contextmanager
    def _as_recorded(self, recorded: _Recorded) -> Iterator[None]:
        """AdamW takes its rate from the device; its settings stay what a checkpoint has."""
        groups = self._optimizer.param_groups
        before = [(group["lr"], group["capturable"]) for group in groups]
        try:
            for group in groups:
                group["lr"], group["capturable"] = recorded.number("learning_rate"), True
            with warnings.catch_warnings():  # that it is run without being recorded, which is what the trial is for
                warnings.filterwarnings("ignore", message=".*capturable", category=UserWarning)
                yield
        finally:
            for group, (rate, capturable) in zip(groups, before, strict=True):
                group["lr"], group["capturable"] = rate, capturable

    def _operations(self, recorded: _Recorded) -> Tensor:
        """A step: float64, `VERDICTS`, then each micro-batch's metrics."""
        self._optimizer.zero_grad(set_to_none=True)
        with self._precision.autocast():
            network = self._model.embed_network()
        leaves = network.detach()
        outcomes = [self._micro_batch(recorded, number, leaves) for number in range(len(recorded.arrays))]
        network.backward(leaves)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        is_finite = torch.isfinite(torch.stack([norm, *(outcome["loss"] for outcome in outcomes)])).all()
        hold = recorded.number("hold") > 0
        self._update((~is_finite | hold).to(torch.float32))
        recorded.names = [list(outcome) for outcome in outcomes]
        totals = [total for outcome in outcomes for total in outcome.values()]
        return torch.stack([is_finite.to(norm.dtype), norm, *totals]).double()

    def _update(self, found_inf: Tensor) -> None:
        """AdamW's step, unless the device finds float32 [] to be 1; as a loss scaler tells it."""
        optimizer: Any = self._optimizer
        optimizer.found_inf = found_inf
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf

    def _micro_batch(self, recorded: _Recorded, number: int, network: NetworkEmbedding) -> dict[str, Tensor]:
        """Adds its gradients; its metrics, of which the loss says whether it was finite."""
        batch = recorded.batch(number)
        with self._precision.autocast():
            output, times = forward(self._model, self._head, batch, network)
        divisors = Divisors(*map(recorded.number, Divisors._fields))
        outcome = self._objective.of(batch, output, times, recorded.answer(number), divisors)
        torch.autograd.backward(outcome.loss)
        return outcome.sums


class _Recorded:
    """The step of one key: where its input lies on the device, and what repeats it.

    Attributes:
        arrays: of each micro-batch, int32.
        names: of each one's metrics, in the result's order.
    """

    def __init__(self, device: torch.device, like: Request) -> None:
        """With room for requests of the same key."""
        self._shapes = [packed.shape for packed in like.batches]
        self.arrays = [torch.empty_like(packed.array, device=device) for packed in like.batches]
        self._late = torch.empty_like(like.late(), device=device)
        self._width = like.width
        self._make: Body | None = None
        self.names: list[list[str]] = []

    def load(self, request: Request) -> None:
        """Begins to copy a step's input; the host does not wait."""
        late = request.late()
        for array, packed in zip(self.arrays, request.batches, strict=True):
            array.copy_(packed.array, non_blocking=True)
        if self._late.device.type == "cuda":
            late = late.pin_memory()
        self._late.copy_(late, non_blocking=True)

    def number(self, name: str) -> Tensor:
        """One of `NUMBERS` on the device, float32 []."""
        return self._late[NUMBERS.index(name)]

    def batch(self, number: int) -> Any:
        """A micro-batch on the device."""
        return Packed(self._shapes[number], self.arrays[number]).unpack()

    def answer(self, number: int) -> Answer | None:
        """The teacher's answer to a micro-batch's query."""
        if not self._width:
            return None
        size = self._shapes[number].candidates
        start = len(NUMBERS) + self._width * sum(shape.candidates for shape in self._shapes[:number])
        return Answer(*(self._late[start + i * size : start + (i + 1) * size] for i in range(self._width)))

    def keep(self, make: Body) -> None:
        """Remembers what makes the step from what is loaded, and gives its result."""
        self._make = make

    def make(self) -> Found:
        """Makes the step that was loaded, and waits for it."""
        assert self._make is not None, "recorded before it is repeated"
        return self.read(self._make())

    def read(self, result: Tensor) -> Found:
        """What a step has found, on the host."""
        is_finite, norm, *totals = devices.read(result)
        values = iter(totals)
        sums = [{name: next(values) for name in names} for names in self.names]
        return Found(bool(is_finite), norm, sums)


def _repeated(repeat: Callable[[], None], result: Tensor) -> Tensor:
    repeat()
    return result


def _agree(a: Found, b: Found, most: float) -> bool:
    """Whether losses and norm are the same but for so much; of those that are not finite, only that they are not."""
    if a.is_finite != b.is_finite:
        return False
    pairs = [(a.norm, b.norm), *((x["loss"], y["loss"]) for x, y in zip(a.sums, b.sums, strict=True))]
    return not a.is_finite or all(abs(x - y) <= most * max(abs(x), abs(y)) for x, y in pairs)
