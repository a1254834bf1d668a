"""A student that is loaded and ready to answer: what `predict`, `evaluate` and the Python API have in common."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from shared.arrays import Int64, Integers
from shared.errors import DataError
from shared.store import Store, Trips
from student_trainer.data.loader import by_length
from student_trainer.data.network import RoadNetwork
from student_trainer.data.under_way import UnderWay, build_partial
from student_trainer.model import students
from student_trainer.model.device import fetch, float32_products, pick_device
from student_trainer.model.student import Student
from student_trainer.model.time_scale import TimeScale
from student_trainer.model.weights import load_model
from student_trainer.predict.config import CutConfig
from student_trainer.predict.next_road import NextRoad, next_road_of
from student_trainer.predict.positions import predict

GROUP = 16
"""Trips of about one length that are computed at once: padding costs more than calls from some 16 on."""


class Predictor:
    """Weights on a store's network.

    Attributes:
        store: the store.
        network: its roads.
        scale: how travel times were standardised.
        device: where it computes.
        candidate_top_k: candidates of a position at most; 0 for all.
        max_steps: last steps of a trip that are read; 0 for all.
    """

    def __init__(
        self,
        model: Student,
        store: Store,
        network: RoadNetwork,
        scale: TimeScale,
        *,
        device: torch.device | None = None,
        candidate_top_k: int = 64,
        max_steps: int = 0,
    ) -> None:
        """Takes a model over; see `load`."""
        self.store, self.network, self.scale = store, network, scale
        self.device = device or torch.device("cpu")
        self.candidate_top_k, self.max_steps = candidate_top_k, max_steps
        self._model = model.to(self.device).train(False).requires_grad_(False)

    @classmethod
    def load(
        cls,
        weights: str | Path,
        store: str | Path | Store,
        *,
        device: str = "cpu",
        candidate_top_k: int = 64,
        max_steps: int = 0,
    ) -> Self:
        """Reads weights.

        Args:
            weights: directory of a run (its best checkpoint), a checkpoint, or a public `state_dict` (HOSER's).
            store: what `prepare` wrote, as a path or opened.
            device: auto, cpu, cuda or cuda:N. For single questions a CPU is usually the fastest.
            candidate_top_k, max_steps: as in training, `batch.candidate_top_k` and `batch.max_steps`.

        Raises:
            FileFormatError: a file is missing, damaged or of another kind.
            CompatibilityError: the weights are of another network, or the checkpoint of another store.
            ConfigError: there is no such device.
        """
        chosen, opened = pick_device(device), store if isinstance(store, Store) else Store.open(store)
        model, scale = load_model(Path(weights), opened)
        return cls(
            model, opened, RoadNetwork.load(opened), scale,
            device=chosen, candidate_top_k=candidate_top_k, max_steps=max_steps,
        )  # fmt: skip

    def positions(self, trips: Trips, batch_size: int = 64) -> dict[str, npt.NDArray]:
        """What the student says at every position of whole trips: the arrays of `student-trainer predict`.

        Args:
            trips: of two or more roads each, as `Store.trips` gives them.
            batch_size: trips a forward pass.
        """
        cut = CutConfig(candidate_top_k=self.candidate_top_k, max_steps=self.max_steps, batch_size=batch_size)
        return predict(self._model, self.network, trips, self.scale, cut, self.device)

    @overload
    def next_road(self, roads: Integers, times: Integers, destination: int | np.integer) -> NextRoad: ...

    @overload
    def next_road(
        self, roads: Sequence[Integers], times: Sequence[Integers], destination: Integers
    ) -> list[NextRoad]: ...

    def next_road(self, roads: Any, times: Any, destination: Any) -> NextRoad | list[NextRoad]:
        """The next road of one trip under way, or of many.

        Args:
            roads: roads entered so far, the current one last; or a list of these for each trip.
            times: entry time of each, whole seconds since 1970 on the data's clock, never backwards.
            destination: the road where the trip ends; or one for each trip.

        Returns:
            What may follow; a list of these, in the trips' order, for many.

        Raises:
            DataError: a trip is empty, has an unknown road or times that do not fit, or the weights are damaged.
        """
        if np.ndim(destination) == 0:
            return self._next_roads(UnderWay.of(self.network, [roads], [times], [destination]))[0]
        return self._next_roads(UnderWay.of(self.network, roads, times, destination))

    def entry_times(self, roads: Integers, departure: int) -> Int64:
        """When the student expects to enter each road of a way, int64 [n], in whole seconds as it was trained.

        Args:
            roads: each a successor of the one before.
            departure: when the first is entered, seconds since 1970 on the data's clock.

        Raises:
            DataError: a road is unknown, or does not follow the one before.
        """
        times = [departure]
        for step, road in enumerate(roads[1:], 1):
            found = self.next_road(roads[:step], times, road)
            place = np.flatnonzero(found.roads == road)
            if not len(place):
                raise DataError(
                    f"road {road} at place {step} is no successor of road {roads[step - 1]} (those are "
                    f"{', '.join(map(str, found.roads.tolist())) or 'none'}), so nothing says when it is entered; "
                    "mend the trip, or give the entry times, `times`"
                )
            times.append(times[-1] + round(float(found.seconds[place[0]])))
        return np.array(times, np.int64)

    @functools.cached_property
    def last_step(self) -> nn.Module:
        """The student as it answers single questions, see `Architecture.last_step`; made when it is first needed."""
        with float32_products(self.device, tf32=False):
            return students.architecture_of(self._model).last_step(self._model)

    def _next_roads(self, trips: UnderWay) -> list[NextRoad]:
        found: dict[int, NextRoad] = {}
        for group in by_length(trips.length, GROUP):
            found |= zip(group.tolist(), self._answer(trips.take(group)), strict=True)
        return [found[trip] for trip in range(len(trips))]

    @torch.inference_mode()
    def _answer(self, trips: UnderWay) -> list[NextRoad]:
        batch = build_partial(self.network, trips, self.candidate_top_k, self.max_steps)
        with float32_products(self.device, tf32=False):
            logits, times = fetch(torch.stack(self.last_step(*batch.tensors(self.device))).float())
        roads, seconds = batch.candidate_road.numpy(), self.scale.seconds(times)
        return [
            next_road_of(roads[row, :count], logits[row, :count], seconds[row, :count])
            for row, count in enumerate(batch.candidate_length)
        ]
