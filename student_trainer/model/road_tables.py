"""What roads bring to a student's answers wherever they stand: computed once for a model, then looked up."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from student_trainer.model.hoser import HOSER


@dataclasses.dataclass(frozen=True, eq=False)
class RoadTables:
    """Of N roads, on the model's device.

    Attributes:
        spatial: [N, d] half of a step's input.
        zone: [N, d] embedding of the road's zone, which a destination brings to a query.
        key: [N, d] what a candidate brings to its logit, without its metrics.
        time: [N, 64] what a candidate brings to its travel time.
    """

    spatial: Tensor
    zone: Tensor
    key: Tensor
    time: Tensor

    @classmethod
    @torch.inference_mode()
    def of(cls, model: HOSER) -> RoadTables:
        """Embeds the network."""
        embedding = model.embed_network()
        road = embedding.roads(torch.arange(len(model.road2zone), device=model.road2zone.device))
        zone = embedding.zones(model.road2zone)
        navigator = model.navigator
        spatial = model.trajectory_encoder.fuse(road, zone)
        return cls(spatial, zone, navigator.road_keys(road), navigator.time_estimator_linear_2(road))
