"""Settings of `pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic

from shared.config import Section, Seed
from shared.sinks import Wandb


class LogConfig(Section):
    """What a run writes beside its teacher file."""

    every: int = pydantic.Field(20, ge=1)
    """Optimiser steps between two lines of metrics."""
    tensorboard: bool = False
    """Write event files to OUT.run/tensorboard; needs TensorBoard, which the extra [trainer] brings."""
    wandb: Wandb = "off"
    """Weights & Biases; offline needs no network. WANDB_MODE and WANDB_DISABLED can only take away from it."""
    wandb_project: str = "lmtad-hoser-distill"
    """Its project."""
    wandb_name: str | None = None
    """Its run name; none for the name of OUT."""
    progress: bool = True
    """Show a progress bar where stderr is a terminal."""


class PretrainConfig(Section):
    """`pretrain`: an LM-TAD is trained on the trips of a store."""

    data: Path
    """The store that `student-trainer prepare` wrote."""
    out: Path
    """The teacher file to write."""
    overwrite: bool = False
    """Replace `out` if it exists, and an earlier run in OUT.run."""
    resume: bool = False
    """Go on from the last checkpoint in OUT.run, bit for bit as if nothing had happened."""
    seed: Seed = 0
    """Seed of weights, order, crops and dropout; with the same threads it repeats a run bit for bit on the CPU."""
    device: str = pydantic.Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto (the first accelerator, otherwise the CPU), cpu, cuda or cuda:N; several ranks take a device each."""
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """Autocast of the forward pass; auto: on an accelerator bfloat16 where it is native, otherwise float16 with loss
    scaling; on the CPU float32."""
    threads: int = pydantic.Field(0, ge=0)
    """Threads on the CPU; 0: one a core."""

    n_layer: int = pydantic.Field(4, gt=0)
    """Transformer blocks."""
    n_head: int = pydantic.Field(4, gt=0)
    """Attention heads a block."""
    n_embd: int = pydantic.Field(128, gt=0)
    """Width of the residual stream."""
    bias: bool = False
    """Whether linear layers and layer norms have biases."""
    block_size: int | None = pydantic.Field(None, ge=8)
    """Longest sequence with SOT, tokens; none: the longest trip with SOT and EOT, at most `max_block_size`."""
    max_block_size: int = pydantic.Field(256, ge=8)
    """Bound of the block size where it comes from the data."""
    dropout: float = pydantic.Field(0.1, ge=0, lt=1)
    """Dropout of embeddings, attention and residuals while training."""

    train_trips: int = pydantic.Field(0, ge=0)
    """Train on a sample of so many trips, 0 for all: the same as the student's, if train's batch.train_trips and
    batch.sample_seed are the same, for a teacher that has seen no more than its student."""
    sample_seed: Seed = 0
    """Seed of that sample."""
    epochs: int = pydantic.Field(10, gt=0)
    """Passes over the training trips."""
    max_steps: int | None = pydantic.Field(None, gt=0)
    """Stop after this many optimiser steps; none: after the epochs. The schedule ends with the run."""
    patience: int = pydantic.Field(0, ge=0)
    """Epochs without a lower held-out loss after which the run ends; 0: it never ends early."""
    batch_tokens: int = pydantic.Field(2048, gt=0)
    """Padded tokens of a batch, of all ranks together; a batch holds trips of similar length."""
    micro_batch_tokens: int = pydantic.Field(0, ge=0)
    """Padded tokens that a device computes at once; a batch of more is accumulated from several. 0: what fits 60 % of
    an accelerator's free memory, by its size; everything on the CPU."""
    crop_probability: float = pydantic.Field(0.5, ge=0, le=1)
    """Share of the training sequences that start at a uniformly drawn place of the trip instead of its origin.
    Trainers ask for windows, SOT + the last few tokens, which a teacher of whole trips has never seen."""
    learning_rate: float = pydantic.Field(1e-3, gt=0)
    """Peak learning rate of AdamW."""
    min_learning_rate: float = pydantic.Field(1e-4, ge=0)
    """Learning rate at the end of the cosine."""
    warmup_steps: int = pydantic.Field(100, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = pydantic.Field(0.1, ge=0)
    """Decoupled weight decay of matrices; norms and biases have none."""
    beta1: float = pydantic.Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = pydantic.Field(0.95, ge=0, lt=1)
    """Decay of the second moment."""
    grad_clip: float = pydantic.Field(1.0, gt=0)
    """Largest norm of the gradient."""

    candidate_trips: int = pydantic.Field(2000, ge=0)
    """Validation trips on which the finished teacher chooses among the students' candidates; 0: none."""
    candidate_windows: tuple[int, ...] = (4, 0)
    """Windows with which it is asked there, tokens of history; 0: the whole history."""

    checkpoint_minutes: float = pydantic.Field(10.0, ge=0)
    """Minutes between two checkpoints; 0: none by time."""
    checkpoint_every: int = pydantic.Field(0, ge=0)
    """Optimiser steps between two checkpoints; 0: none by steps."""
    keep_checkpoints: int = pydantic.Field(2, ge=1)
    """Newest checkpoints to keep while the run lasts: last.pt, last.1.pt, ..."""
    log: LogConfig = LogConfig()
    """What is written where."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> PretrainConfig:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if any(window < 0 for window in self.candidate_windows):
            raise ValueError("candidate_windows are tokens of history, 0 or more")
        return self
