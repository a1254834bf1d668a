"""What numba compiles at a daemon's first start, compiled ahead: `python -m teacher_server.precompile`.

For images: NUMBA_CACHE_DIR names where, and NUMBA_CPU_NAME=generic makes code that every processor of the architecture
runs. It loads and warms up a small random teacher as the daemon does its own; what is compiled does not depend on
weights or sizes. The files are then readable by every user, and writable by their owner alone.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from shared import compiled, log, teacher_file
from shared.errors import ConfigError, ReportableError
from shared.grid import Grid
from shared.vocab import Tokeniser, Vocabulary
from teacher_server.answers.table import AnswerTable, warm_up
from teacher_server.engine import engine
from teacher_server.engine.config import EngineConfig
from teacher_server.lmtad.model import LMTAD, Architecture

GRID = Grid.from_bounds((0.0, 0.0, 0.1, 0.1), 0.01, 0.01)
CACHE_BYTES = 2**20
FOLDER_MODE, FILE_MODE = 0o755, 0o644


def main() -> int:
    """Compiles and says how much; returns the exit code."""
    log.setup()
    try:
        print(f"{compile_ahead()} compiled functions in {compiled.directory()}")
    except (OSError, ReportableError) as error:
        print(f"precompile: {error}", file=sys.stderr)
        return 1
    return 0


def compile_ahead() -> int:
    """Fills NUMBA_CACHE_DIR; returns the number of files there.

    Raises:
        ConfigError: it cannot be used.
    """
    folder = compiled.directory()
    if folder is None:
        raise ConfigError("compiled functions cannot be kept; NUMBA_CACHE_DIR has to name a directory of this user's")
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "teacher.safetensors"
        _write_random(path)
        scorer = engine.load(path, EngineConfig(device="cpu"))
    scorer.warm_up()
    warm_up(AnswerTable(CACHE_BYTES, scorer.costs, scorer.served.header.tokeniser.vocabulary.sot))
    files = list(folder.iterdir())
    for path in files:
        path.chmod(FILE_MODE)
    folder.chmod(FOLDER_MODE)
    return len(files)


def _write_random(path: Path) -> None:
    tokeniser = Tokeniser(Vocabulary.full(GRID.cells), GRID)
    architecture = Architecture(
        n_layer=1, n_head=2, n_embd=16, block_size=64, vocab_size=tokeniser.vocabulary.size, bias=False
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = LMTAD(architecture).weights()
    teacher_file.write(path, weights, architecture.to_dict(), tokeniser, {"made_by": "precompile, random"})


if __name__ == "__main__":
    sys.exit(main())
