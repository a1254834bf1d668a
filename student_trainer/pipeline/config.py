"""Settings of `pipeline`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pydantic

from shared.config import Section, Seed, split_commas
from shared.store import SplitName
from student_trainer.evaluate.config import BootstrapConfig
from student_trainer.generate.config import Method, SearchConfig

Phase = Literal["generate", "evaluate", "compare", "report"]


Phases = Annotated[tuple[Phase, ...], pydantic.BeforeValidator(split_commas)]
Splits = Annotated[tuple[SplitName, ...], pydantic.BeforeValidator(split_commas)]
Seeds = Annotated[tuple[Seed, ...], pydantic.BeforeValidator(split_commas)]


class PipelineConfig(Section):
    """All models x splits x seeds -> trips, metrics, comparisons, reports."""

    data: Path
    """Store that `prepare` wrote."""
    models: Path
    """Directory: every checkpoints/best.pt below it is a model, named as its run's directory, and so is every .pth
    file directly in it. Runs on other stores and trials of studies are left out."""
    out: Path
    """Directory to write."""
    splits: Splits = ("train", "test")
    """Where OD pairs come from: train, val, test, separated by commas."""
    seeds: Seeds = (42,)
    """Seeds of the draws of OD pairs, separated by commas."""
    baseline: str = ""
    """Arm, or one of its models, that the others are compared with; empty: the arm without a teacher, or, where nothing
    is known of the training, vanilla if there is one, otherwise the first by name."""
    shortest_path: bool = True
    """Also shortest paths, which need no model."""
    only: Phases = ()
    """Phases to run, separated by commas: generate, evaluate, compare, report; empty: all. Others must be done."""
    force: bool = False
    """Run again what is done."""
    dry_run: bool = False
    """Print arms, baseline and what there is to do, and end."""
    method: Method = "beam"
    """Search of the models' trips: greedy, beam, best_first."""
    pairs: int = pydantic.Field(1000, ge=0)
    """OD pairs of each split and seed, at most; 0: all."""
    search: SearchConfig = SearchConfig()
    """Search."""
    candidate_top_k: int = pydantic.Field(64, ge=0)
    """As in training: keep at most this many candidates per position; 0 keeps all."""
    next_road: bool = True
    """Also measure next-road predictions, on every trip of the split."""
    bootstrap: BootstrapConfig = BootstrapConfig()
    """Intervals."""
    significance: float = pydantic.Field(0.05, gt=0, lt=1)
    """Largest p-value, after Holm's correction, of a difference that is called real."""
    threads: int = pydantic.Field(0, ge=0)
    """Threads of searches and predictions; 0 for one a core. No trip depends on it."""
    search_device: str = "cpu"
    """Where trips are generated, as `device` of generate; next-road predictions take the first accelerator."""
    map_pairs: int = pydantic.Field(200, ge=1)
    """OD pairs on a report's map."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> PipelineConfig:
        if not self.splits or not self.seeds:
            raise ValueError("splits and seeds: give at least one of each")
        if self.method == "shortest_path":
            raise ValueError("method=shortest_path needs no models; see shortest_path")
        return self
