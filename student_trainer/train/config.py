"""Settings of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic

from shared import log
from shared.address import TeachersText
from shared.config import Section, Seed
from shared.errors import ConfigError
from shared.sinks import Wandb
from shared.store import Cache
from shared.tracing import TracingConfig
from student_trainer.distill.config import ClientConfig, DistillConfig
from student_trainer.model.config import ModelConfig
from student_trainer.model.students import StudentSettings
from student_trainer.runs.prometheus import PlaceText


class DataConfig(Section):
    """How trips become batches."""

    cache: Cache = "auto"
    """Hold the splits in memory (ram), memory-map them (mmap), or decide by free memory (auto: at most 60 % of it)."""
    candidate_top_k: int = pydantic.Field(64, ge=0)
    """Keep at most this many candidates per position, nearest to the destination first; 0 keeps all."""
    max_steps: int = pydantic.Field(0, ge=0)
    """Keep the last so many steps of longer trips; 0 keeps all."""
    train_trips: int = pydantic.Field(0, ge=0)
    """Train on a sample of so many trips (drawn by sample_seed); 0 trains on all."""
    val_trips: int = pydantic.Field(0, ge=0)
    """Validate on a sample of so many trips (drawn by sample_seed); 0 validates on all. The destination-aware target
    is fitted on these, too."""
    sample_seed: Seed = 0
    """Seed of these samples, apart from the run's seed so that runs share them."""
    sampled: Path | None = None
    """Directory of trips sampled from the teacher (`student-trainer sample`), mixed in with the training trips."""
    sampled_trips: int = pydantic.Field(0, ge=0)
    """Mix in so many of them, the first ones; 0 mixes in all."""
    labelled_passes: int = pydantic.Field(0, ge=0, le=1000)
    """Passes over the training trips in an epoch that has one over the sampled ones; 0 for as many as make both kinds
    about equal, or 1 if these are more than 8."""
    sampled_share: float = pydantic.Field(0.0, ge=0, le=1)
    """Share of the epochs, the first ones, that mix in sampled trips; those after them have as many trips, all of them
    labelled. 0 for a half, or for so many more that a training trip comes at most 30 times in the run; or for none,
    where the training trips take nearly every turn that the sampled ones take (all but 1.5 %)."""
    bucket_batches: int = pydantic.Field(32, ge=1)
    """Sort trips by length within so many batches, to pad less; 1 only shuffles."""


class OptimConfig(Section):
    """Optimiser and schedule."""

    epochs: int = pydantic.Field(10, ge=1)
    """Passes over the training trips."""
    batch_size: int = pydantic.Field(64, ge=1)
    """Trips per micro-batch on average, of all ranks together; batches have about as many steps."""
    accumulation: int = pydantic.Field(1, ge=1)
    """Micro-batches per optimizer step; their positions weigh the same."""
    learning_rate: float = pydantic.Field(1e-3, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = pydantic.Field(0.1, ge=0)
    """AdamW's weight decay, on all parameters as upstream has it."""
    warmup: float = pydantic.Field(0.1, ge=0, le=1)
    """Share of the optimizer steps with linear warm-up."""
    final_lr: float = pydantic.Field(0.0, ge=0, le=1)
    """Learning rate at the very last step, as a share of the peak (cosine decay)."""
    clip_norm: float = pydantic.Field(1.0, gt=0)
    """Largest gradient norm."""
    time_weight: float = pydantic.Field(1.0, ge=0)
    """Weight of the travel-time loss."""
    label_smoothing: float = pydantic.Field(0.0, ge=0, lt=1)
    """Share of a label's probability that is spread evenly over the position's candidates."""
    max_bad_steps: int = pydantic.Field(10, ge=0)
    """Steps that may be skipped for a non-finite loss or gradient before the run stops."""


class RuntimeConfig(Section):
    """Where and how the arithmetic runs."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N; with several ranks each takes a device of its own."""
    threads: int = pydantic.Field(0, ge=0)
    """Threads of one CPU operation; 0 for torch's default."""
    amp: Literal["auto", "off", "float16", "bfloat16"] = "auto"
    """Mixed precision: auto is bfloat16 on an accelerator that multiplies it in hardware, float16 with loss scaling on
    another, and off on a CPU."""
    tf32: bool = True
    """Let float32 matrix products use TF32 on accelerators that have it."""
    compile: bool = False
    """Compile the trip encoder and the navigator with torch.compile, anew in each run; TORCHINDUCTOR_CACHE_DIR names a
    directory that lasts, which this user alone may write to."""
    graphs: Literal["auto", "on", "off"] = "auto"
    """Record whole training steps as CUDA graphs and repeat them: auto does where it can (CUDA, one rank, not float16,
    not compiled) and a recorded step finds what single operations find; on stops where auto would do without."""


class LogConfig(Section):
    """What is written where."""

    every: int = pydantic.Field(20, ge=1)
    """Optimizer steps between two lines of metrics."""
    checkpoint_every: int = pydantic.Field(200, ge=0)
    """Optimizer steps between two checkpoints; 0 for one an epoch."""
    keep_checkpoints: int = pydantic.Field(2, ge=1)
    """Newest checkpoints to keep: last.pt, last.1.pt, ...; best.pt is kept besides."""
    tensorboard: bool = True
    """Write event files to OUT/tensorboard."""
    wandb: Wandb = "off"
    """Weights & Biases; offline needs no network. WANDB_MODE and WANDB_DISABLED can only take away from it."""
    wandb_project: str = "lmtad-hoser-distill"
    """Its project."""
    wandb_name: str | None = None
    """Its run name; none for the name of OUT."""
    wandb_group: str | None = None
    """Runs of the same group are shown together."""
    wandb_tags: tuple[str, ...] = ()
    """Its tags."""
    progress: bool = True
    """Show a progress bar where stderr is a terminal."""
    format: log.Format = "text"
    """How lines on stderr look: text for people, json for machines; --log-format says it for any command."""
    prometheus: PlaceText = "off"
    """HOST:PORT where the run tells Prometheus its metrics over HTTP, to whoever asks; off: nowhere."""
    headroom: bool = True
    """With a teacher: at the end, say what it could still teach, on up to 2,000 validation trips; takes seconds."""


class RecipeConfig(Section):
    """How a student is trained, wherever its data and its teacher are."""

    model: StudentSettings = ModelConfig()
    """Architecture."""
    batch: DataConfig = DataConfig()
    """Data."""
    distill: DistillConfig = DistillConfig()
    """Distillation."""
    optim: OptimConfig = OptimConfig()
    """Optimisation."""
    runtime: RuntimeConfig = RuntimeConfig()
    """Arithmetic."""
    client: ClientConfig = ClientConfig()
    """Connection to the teacher."""
    log: LogConfig = LogConfig()
    """Logging."""


class TrainConfig(RecipeConfig):
    """A training run."""

    data: Path
    """Store that `prepare` wrote."""
    teacher: TeachersText = "none"
    """Addresses of teachers, HOST:PORT[,HOST:PORT...] or unix:PATH; one gRPC name of several, such as
    dns:///HOST:PORT; file:ANSWERS, which `teacher-server answer` wrote; or none."""
    out: Path
    """Directory of the run: checkpoints, metrics, configuration."""
    resume: bool = False
    """Go on from OUT's last checkpoint."""
    continue_to: int = pydantic.Field(0, ge=0)
    """Go on from OUT's last checkpoint to so many epochs in all, more than the run was begun with, whatever
    optim.epochs says: the schedule of the learning rate is stretched, so the rate rises again, and the result is not
    that of a run of so many epochs. 0: do not."""
    profile: Literal["off", "table", "trace"] = "off"
    """table: at the end, say where the time of the steps went (OUT/profile.json); trace: also record a few steps with
    torch.profiler (OUT/trace.json). On an accelerator each stage of a step is then waited for, which costs time."""
    tracing: TracingConfig = TracingConfig()
    """Spans of steps and of their requests."""
    seed: Seed = 42
    """Seed of initial weights and of the order of trips."""

    def check_effects(self) -> None:
        """Refuses settings that would do nothing, where somebody might believe that they do something.

        Of a run that begins: one that goes on has the settings that it was begun with, whatever was allowed then.

        Raises:
            ConfigError: naming the settings, and what would give them an effect.
        """
        batch, distill, asks = self.batch, self.distill, self.distils
        if batch.sampled is None:
            if batch.sampled_trips or batch.sampled_share:
                raise ConfigError("batch.sampled_trips and sampled_share are of sampled trips; give batch.sampled=DIR")
            if distill.sampled_labels or distill.sampled_weight is not None:
                raise ConfigError(
                    "distill.sampled_labels and sampled_weight are of sampled trips; give batch.sampled=DIR"
                )
        elif not asks and not distill.sampled_labels:
            raise ConfigError(
                f"batch.sampled={batch.sampled}: sampled trips have no labels, and nothing is learned from them "
                f"{'with distill.weight=0 distill.head=0' if self.teacher != 'none' else 'without a teacher'}; "
                "leave it out, or see distill.sampled_labels"
            )
        if asks and distill.collisions == "duplicate" and distill.target == "destination" and not distill.head:
            raise ConfigError(
                "distill.collisions=duplicate is of the head and of target=history, and this run has neither: with "
                "target=destination candidates that share a cell are told apart"
            )

    @property
    def distils(self) -> bool:
        """Whether the run asks a teacher: it has an address, and a term has a weight."""
        return self.teacher != "none" and self.distill.asks

    @property
    def time_weight(self) -> float:
        """Of the travel-time loss."""
        return self.optim.time_weight * (self.distill.time_factor if self.distils else 1.0)
