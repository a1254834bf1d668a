"""HOSER as an `Architecture`: its parts, under the name `hoser`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from student_trainer.data.network import RoadNetwork
from student_trainer.model import upstream
from student_trainer.model.config import ModelConfig
from student_trainer.model.hoser import HOSER
from student_trainer.model.incremental import IncrementalStudent
from student_trainer.model.last_step import LastStep
from student_trainer.model.time_scale import TimeScale


class PublicHoser:
    """Weights as public HOSER has them; implements `PublicWeights`."""

    def settings_of(self, weights: Mapping[str, Tensor]) -> ModelConfig:
        """See `upstream.infer_config`."""
        return upstream.infer_config(weights)

    def of(self, student: HOSER) -> dict[str, Tensor]:
        """See `upstream.export`."""
        return upstream.export(student)


class HoserParts:
    """Implements `Architecture`."""

    public = PublicHoser()

    def build(self, config: ModelConfig, network: RoadNetwork) -> HOSER:
        """The model."""
        return HOSER(config, network)

    def load(self, student: HOSER, weights: Mapping[str, Tensor]) -> None:
        """See `upstream.load_into`."""
        upstream.load_into(student, weights)

    def decoder(self, student: HOSER, network: RoadNetwork, scale: TimeScale, top_k: int) -> IncrementalStudent:
        """See `IncrementalStudent`."""
        return IncrementalStudent(student, network, scale, top_k)

    def last_step(self, student: HOSER) -> LastStep:
        """See `LastStep`."""
        return LastStep(student)
