"""In half precision, too, an answer has the same bits whatever it is computed with: at the size of a real teacher.

Hidden states are compared, where rounding to float16 hides nothing.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY

from benchmarks.gpu import teachers
from benchmarks.gpu.size import FULL, TOY, Size
from teacher_server.engine.engine import Engine

pytestmark = pytest.mark.cuda

LONGEST = 40
"""Cells of a context: of trees, of rows scored at their end, short and long."""
DIGEST = """
import hashlib, sys
from pathlib import Path
import torch
sys.path[:0] = ["tests", "tests/cuda"]
from test_cuda_batches import contexts_of, size_on
from benchmarks.gpu import teachers
device = torch.device(sys.argv[2])
scorer = teachers.load(Path(sys.argv[1]), device, size_on(device))
states = teachers.hidden_states(scorer, contexts_of(scorer, int(sys.argv[3]), 5))
print(scorer.served.numerics, hashlib.sha256(states.numpy().tobytes()).hexdigest())
"""


def size_on(device: torch.device) -> Size:
    return FULL if device.type == "cuda" else TOY


def contexts_of(scorer: Engine, count: int, seed: int) -> list[list[int]]:
    """Distinct ones of all lengths, most of them as short as a trainer's windows."""
    random, vocabulary = np.random.default_rng(seed), scorer.served.header.tokeniser.vocabulary
    lengths = np.where(random.random(count) < 0.8, random.integers(0, 5, count), random.integers(5, LONGEST, count))
    return [[vocabulary.sot, *random.integers(vocabulary.cells, size=length).tolist()] for length in lengths]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, accelerator: torch.device) -> Path:
    return teachers.write_wide(tmp_path_factory.mktemp("wide"), size_on(accelerator))


@pytest.fixture(scope="module")
def scorer(path: Path, accelerator: torch.device) -> Engine:
    return teachers.load(path, accelerator, size_on(accelerator))


@pytest.fixture(scope="module")
def count(accelerator: torch.device) -> int:
    """Contexts whose bits are looked at."""
    return 3000 if accelerator.type == "cuda" else 200


@pytest.fixture(scope="module")
def probes(scorer: Engine, count: int) -> list[list[int]]:
    return contexts_of(scorer, count, 5)


@pytest.fixture(scope="module")
def together(scorer: Engine, probes: list[list[int]]) -> torch.Tensor:
    """Their states, computed in one batch."""
    return teachers.hidden_states(scorer, probes)


def differing(found: torch.Tensor, expected: torch.Tensor) -> list[int]:
    """Rows that differ in a bit."""
    return torch.nonzero((found != expected).any(1)).flatten().tolist()


def test_the_largest_shapes_do_not_depend_on_the_batch(scorer: Engine) -> None:
    """Otherwise the daemon would refuse to serve here."""
    assert not scorer._is_dependent


def test_shapes_agree_and_small_ones_are_used(cuda: torch.device, scorer: Engine) -> None:
    """A lone window that costs a whole large tile is correct and slow: every group needs a smaller size."""
    lonely = {group: sizes for group, sizes in teachers.chosen_sizes(scorer).items() if len(sizes) < 2}
    assert not lonely


def test_alone(scorer: Engine, probes: list[list[int]], together: torch.Tensor) -> None:
    some = np.random.default_rng(0).permutation(len(probes))[: 150 if len(probes) > 1000 else 20].tolist()
    found = torch.cat([teachers.hidden_states(scorer, [probes[i]]) for i in some])
    assert not differing(found, together[some])


def test_in_random_mixes(scorer: Engine, probes: list[list[int]], together: torch.Tensor) -> None:
    random = np.random.default_rng(1)
    for number in range(12):
        most = int(random.choice([4, 60, len(probes)]))
        some = random.permutation(len(probes))[: random.integers(1, most)].tolist()
        others = contexts_of(scorer, int(random.integers(0, most)), 100 + number)
        found = teachers.hidden_states(scorer, [probes[i] for i in some] + others)[: len(some)]
        assert not differing(found, together[some]), (number, len(some), len(others))


def test_at_every_offset(scorer: Engine, probes: list[list[int]], together: torch.Tensor) -> None:
    few, fillers = probes[:16], contexts_of(scorer, 256, 7)
    for offset in range(256 if len(probes) > 1000 else 16):
        found = teachers.hidden_states(scorer, fillers[:offset] + few)[offset:]
        assert not differing(found, together[:16]), offset


def test_in_the_first_a_middle_and_the_last_tile(
    scorer: Engine, probes: list[list[int]], together: torch.Tensor
) -> None:
    """Far more contexts than fit a tile."""
    others = contexts_of(scorer, 12 * len(probes), 8)
    half, third = len(others) // 2, len(probes) // 3
    mixed = probes[:third] + others[:half] + probes[third : 2 * third] + others[half:] + probes[2 * third :]
    found = teachers.hidden_states(scorer, mixed)
    where = [*range(third), *range(third + half, 2 * third + half), *range(2 * third + len(others), len(mixed))]
    assert not differing(found[where], together)


def test_answers_and_masses(scorer: Engine, probes: list[list[int]]) -> None:
    """The dot with the candidates' rows and the normaliser, too."""
    candidates = [1, 7, 30, 31]
    whole = teachers.scores(scorer, probes, candidates)
    for start, length in [(0, 1), (1, 1), (5, 3), (10, 40), (60, len(probes) - 60)]:
        part = teachers.scores(scorer, probes[start : start + length], candidates)
        assert part.log_probs.tobytes() == whole.log_probs.reshape(-1, 4)[start : start + length].tobytes()
        assert part.candidate_mass.tobytes() == whole.candidate_mass[start : start + length].tobytes()


def test_in_another_process(
    path: Path, scorer: Engine, accelerator: torch.device, together: torch.Tensor, count: int
) -> None:
    command = [sys.executable, "-c", DIGEST, str(path), str(accelerator), str(count)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = hashlib.sha256(together.numpy().tobytes()).hexdigest()
    assert done.stdout.split() == [scorer.served.numerics, expected]


def test_graphs_have_the_bits_of_their_operations(
    scorer: Engine, probes: list[list[int]], together: torch.Tensor
) -> None:
    assert not differing(teachers.plain_states(scorer, probes), together)


def test_own_kernels_compute_what_torch_s_operations_do(
    scorer: Engine, probes: list[list[int]], together: torch.Tensor
) -> None:
    """Hidden states after the last layer norm are of the size of one."""
    reference = teachers.plain_states(scorer, probes, with_kernel=False)
    tolerance = 0.1 if scorer.served.compute_dtype == "float16" else 1e-4
    assert float((together - reference).abs().max()) < tolerance
    assert float((together - reference).abs().mean()) < tolerance / 20


def test_own_kernels_and_graphs_are_used(cuda: torch.device, scorer: Engine) -> None:
    assert scorer.served.device == f"{cuda} (own attend, own dots, own product, own log_sums, graphs)"


def test_a_batch_is_one_copy_there_and_one_back(cuda: torch.device, scorer: Engine, probes: list[list[int]]) -> None:
    """Counted by the profiler; everything is recorded by then."""
    candidates = [1, 7, 30, 31]
    teachers.scores(scorer, probes, candidates)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        teachers.scores(scorer, probes, candidates)
        torch.cuda.synchronize(cuda)
    names = [event.name for event in profile.events() or [] if event.name.startswith("Memcpy")]
    assert sum("HtoD" in name for name in names) == 1, names
    assert sum("DtoH" in name for name in names) == 1, names
