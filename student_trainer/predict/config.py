"""Settings of a prediction."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Annotated, Any

import pydantic

from shared.config import Section, split_commas
from shared.store import Cache, SplitName
from student_trainer.runs.layout import WeightsPath


def _seconds(text: str) -> int:
    """A time on the data's clock, as whole seconds since 1970."""
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time; write 2024-01-08T12:00:00Z, or seconds since 1970") from None
    if time.utcoffset():
        raise ValueError(f"{text!r} has an offset; write it on the data's clock, as 2024-01-08T12:00:00Z")
    return round(time.replace(tzinfo=datetime.UTC).timestamp())


def _read_times(value: Any) -> Any:
    """Times between commas, or a list of them."""
    value = split_commas(value)
    return [_seconds(part) if isinstance(part, str) else part for part in value] if isinstance(value, list) else value


Roads = Annotated[tuple[Annotated[int, pydantic.Field(ge=0)], ...], pydantic.BeforeValidator(split_commas)]
Times = Annotated[tuple[int, ...], pydantic.BeforeValidator(_read_times)]


class CutConfig(Section):
    """How a split is cut into batches: as in training, so that the same positions and candidates are seen."""

    candidate_top_k: int = pydantic.Field(64, ge=0)
    """As in training: keep at most this many candidates per position; 0 keeps all."""
    max_steps: int = pydantic.Field(0, ge=0)
    """As in training: keep the last so many steps of longer trips; 0 keeps all."""
    batch_size: int = pydantic.Field(64, ge=1)
    """Trips per forward pass."""


class PredictConfig(CutConfig):
    """A prediction over a split, or of the next road of one trip."""

    data: Path
    """Store that `prepare` wrote."""
    weights: WeightsPath
    """A run's directory or checkpoint, or a public `state_dict`."""
    split: SplitName = "val"
    """train, val or test."""
    out: Path | None = None
    """The .npz file to write, for a split."""
    trip: Roads = ()
    """Instead of a split: roads of a trip under way, the current one last, between commas."""
    destination: int | None = pydantic.Field(None, ge=0)
    """Where that trip ends."""
    times: Times = ()
    """When it entered its roads, between commas: 2024-01-08T12:00:00Z or seconds since 1970, on the data's clock. With
    the first alone the student says the others; with none the first is now, in UTC."""
    cache: Cache = "auto"
    """As in training: where the split is held."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int = pydantic.Field(0, ge=0)
    """Of an operation on the CPU; 0 leaves it to torch."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> PredictConfig:
        if not self.trip:
            if self.out is None:
                raise ValueError("give --out FILE.npz for a split, or --trip ROADS --destination ROAD")
            if self.destination is not None or self.times:
                raise ValueError("destination and times are those of a trip; give --trip ROADS")
            if self.out.suffix != ".npz":
                raise ValueError(f"out must end in .npz, got {self.out}")
            return self
        if self.out is not None:
            raise ValueError("the answer for a trip goes to stdout; give --out only without --trip")
        if self.destination is None:
            raise ValueError("the next road depends on where the trip ends: give --destination ROAD")
        if len(self.times) not in (0, 1, len(self.trip)):
            raise ValueError(f"trip has {len(self.trip)} roads, times {len(self.times)}; give one each, or the first")
        return self


class ExportConfig(Section):
    """A student as one file for torch alone."""

    data: Path
    """Store that `prepare` wrote."""
    weights: WeightsPath
    """A run's directory or checkpoint, or a public `state_dict`."""
    out: Path
    """The .pt2 file to write, for `torch.export.load`."""
    candidate_top_k: int = pydantic.Field(64, ge=0)
    """As in training: keep at most this many candidates per position; 0 keeps all."""

    @pydantic.field_validator("out")
    @classmethod
    def _suffix(cls, out: Path) -> Path:
        if out.suffix != ".pt2":
            raise ValueError("must end in .pt2")
        return out
