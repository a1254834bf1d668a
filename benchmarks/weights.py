"""Teachers for benchmarks: a store's vocabulary, random weights. Speed does not depend on what they have learned."""

from __future__ import annotations

from pathlib import Path

import torch

from shared import teacher_file
from shared.store import Store
from shared.vocab import Tokeniser
from teacher_server.lmtad.model import LMTAD, Architecture


def write_teacher(path: Path, store: Store, n_layer: int, n_embd: int) -> Path:
    """Writes a teacher file whose fingerprint is the store's; returns its path."""
    return write_random(path, store.tokeniser, n_layer, n_embd)


def write_random(path: Path, tokeniser: Tokeniser, n_layer: int, n_embd: int, n_head: int = 4) -> Path:
    """Writes a teacher file with this vocabulary; returns its path."""
    architecture = Architecture(
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        block_size=256,
        vocab_size=tokeniser.vocabulary.size,
        bias=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = LMTAD(architecture).weights()
    teacher_file.write(path, weights, architecture.to_dict(), tokeniser, {"made_by": "benchmarks, random"})
    return path
