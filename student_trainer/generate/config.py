"""Settings of generation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic

from shared.config import Section, Seed
from shared.store import Cache, SplitName
from student_trainer.runs.layout import WeightsPath

Method = Literal["greedy", "beam", "best_first", "shortest_path"]
Repeats = Literal["any", "never", "best"]
Finish = Literal["normalised", "first"]
Heuristic = Literal["none", "bound"]
LANES, LANES_FAR = 128, 512
"""Trips that a thread searches at once, on the CPU and with an accelerator."""
THREADS_FAR = 2
"""Threads with an accelerator: one prepares while it computes for the other."""


class SearchConfig(Section):
    """How a trip is looked for."""

    width: int = pydantic.Field(4, ge=1)
    """Beams of a trip. greedy has one, whatever this says."""
    finish: Finish = "normalised"
    """Which finished beam is the trip: normalised, the one with the highest log-probability / steps^length_power among
    all that finish before no live beam's is higher; first, the most probable of those that arrive first (upstream's
    rule, and that of greedy)."""
    length_power: float = pydantic.Field(1.0, ge=0)
    """Power of the number of steps in that score; 0 compares plain log-probabilities."""
    repeats: Repeats = "best"
    """Which roads may be entered again: best, one that no path of the trip has entered with as high a probability
    (upstream's rule; no path has loops, and paths that meet become one); never, none that the path itself has entered;
    any, all."""
    max_steps: int = pydantic.Field(300, ge=1)
    """Roads that a path may have beside its origin; then the trip's status is step_limit."""
    max_expanded: int = pydantic.Field(5000, ge=1)
    """Roads that best_first may expand in a trip; then its status is step_limit."""
    max_seconds: float = pydantic.Field(14_400.0, gt=0)
    """Predicted travel time, in seconds, that a path may take; beyond it ends with time_limit. It is not the time of
    the search: that would make trips depend on the machine."""
    heuristic: Heuristic = "none"
    """best_first: none goes on from the most probable path (upstream's way); bound adds a lower bound of -log p of what
    is left, which is exact and expands no more, but needs a pass over all roads for every trip."""


class SearcherConfig(Section):
    """Which search, and how much of the machine it takes."""

    method: Method = "beam"
    """greedy, beam, best_first (most probable path first; what upstream calls A*) or shortest_path (by length of the
    entered roads: the baseline that needs no model)."""
    search: SearchConfig = SearchConfig()
    """Search."""
    batch_trips: int = pydantic.Field(0, ge=0)
    """Trips that a thread searches at once; 0 for 128 on the CPU, 512 on an accelerator. No trip depends on it."""
    threads: int = pydantic.Field(0, ge=0)
    """Threads of the search; 0 for one a core, and two where an accelerator computes: one finds paths and candidates
    while it computes for the other. No trip depends on it."""
    cache: Cache = "auto"
    """As in training: where the split is held."""


class GenerateConfig(SearcherConfig):
    """Trips for OD pairs of a split."""

    data: Path
    """Store that `prepare` wrote."""
    weights: Literal["none"] | WeightsPath = pydantic.Field("none", union_mode="left_to_right")
    """A run's directory or checkpoint, or a public `state_dict`; none for shortest_path with times by road class."""
    out: Path
    """Directory to write: trips.parquet, trips.csv, summary.json, config.yaml."""
    name: str | None = None
    """What reports call these trips; none for the name of OUT."""
    device: str = "cpu"
    """Where the model computes: cpu, cuda, cuda:N, or auto for the first accelerator if there is one. The CPU unless
    asked for: there a trip has the same bits whatever is beside it and on every run, every core searches, and nobody
    has measured yet from how many pairs on an accelerator is faster. Between devices a choice of nearly equal paths may
    fall either way."""
    split: SplitName = "test"
    """train, val or test: where OD pairs and departure times come from."""
    pairs: int = pydantic.Field(1000, ge=0)
    """Trips of the split to take OD pairs from, at most, drawn without replacement; 0 takes all, in the split's order.
    The first pairs of a longer draw are those of a shorter one."""
    seed: Seed = 42
    """Seed of the draw; nothing else is random."""
    candidate_top_k: int = pydantic.Field(64, ge=0)
    """As in training: keep at most this many candidates per position; 0 keeps all."""
    block_trips: int = pydantic.Field(256, ge=1)
    """Finished trips per part on disk: what a killed run loses at most, beside the trips under way."""
    replace: bool = False
    """Replace trips of other settings, weights or data in OUT."""

    @property
    def has_weights(self) -> bool:
        """Whether a model is used."""
        return self.weights != "none"

    @pydantic.model_validator(mode="after")
    def _check(self) -> GenerateConfig:
        if not self.has_weights and self.method != "shortest_path":
            raise ValueError(f"{self.method} needs weights; only method=shortest_path does without (weights: none)")
        return self
