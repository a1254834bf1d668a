"""Students with random weights that are far from indifferent, to search with."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.straightforward import generate as plain
from benchmarks.straightforward.student import StraightforwardHOSER
from student_trainer.data.network import RoadNetwork
from student_trainer.generate.pairs import Pairs
from student_trainer.model.config import ModelConfig, StudentConfig
from student_trainer.model.hoser import HOSER
from student_trainer.model.incremental import IncrementalStudent
from student_trainer.model.student import Student
from student_trainer.model.time_scale import TimeScale

SCALE = TimeScale(3.5, 0.8)


def hoser_of(student: Student) -> HOSER:
    """A student that is one, to look into."""
    assert isinstance(student, HOSER)
    return student


def widths_of(settings: StudentConfig) -> ModelConfig:
    """The settings of one."""
    assert isinstance(settings, ModelConfig)
    return settings


def random_model(network: RoadNetwork, seed: int = 0, gain: float = 4.0, **config: object) -> HOSER:
    """A small model whose logits differ by several units between candidates and depend on the path."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = HOSER(ModelConfig.model_validate({"road_id_dim": 16, "road_attr_dim": 4} | config), network)
    with torch.no_grad():
        for weight in (model.navigator.v_proj.weight, model.navigator.q_proj.weight, model.navigator.k_proj.weight):
            weight.mul_(gain)
        for block in model.trajectory_encoder.blocks:
            for parameter in block.attn.parameters():
                parameter.mul_(2)
    return model.eval()


def both_ways(network: RoadNetwork, model: HOSER, top_k: int = 0) -> tuple[IncrementalStudent, plain.Student]:
    """The model as a search has it, and the straightforward one in float64."""
    reference = StraightforwardHOSER(model.config, network).double()
    reference.load_state_dict(model.state_dict())
    return (
        IncrementalStudent(model, network, SCALE, top_k),
        plain.Student(reference.eval(), network, SCALE, top_k),
    )


def random_pairs(network: RoadNetwork, count: int, seed: int = 0) -> Pairs:
    """Pairs of different roads, with departures within two weeks."""
    rng = np.random.default_rng((seed, 3))
    origin = rng.integers(0, network.num_roads, count)
    return Pairs(
        trip=np.arange(count),
        row=np.arange(count),
        origin=origin,
        destination=(origin + rng.integers(1, network.num_roads, count)) % network.num_roads,
        departure=1_704_715_200 + rng.integers(0, 14 * 86_400, count),
    )
