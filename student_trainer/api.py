"""The student for programs: `from student_trainer import Student`; see docs/api.md."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, overload

import numpy as np

from shared import config
from shared.arrays import Integers
from shared.errors import DataError
from student_trainer.generate.config import Method, SearcherConfig
from student_trainer.generate.found import Found
from student_trainer.generate.pairs import Pairs
from student_trainer.generate.run import Searcher
from student_trainer.model import students
from student_trainer.model.student import Decoder
from student_trainer.predict.predictor import Predictor


class Student(Predictor):
    """Trained weights on a store's network: next roads of trips under way, and whole trips."""

    @overload
    def generate(
        self,
        origin: int,
        destination: int,
        departure: int,
        *,
        method: Method = ...,
        search: Mapping[str, object] | None = ...,
        threads: int = ...,
    ) -> Found: ...

    @overload
    def generate(
        self,
        origin: Integers,
        destination: Integers,
        departure: Integers,
        *,
        method: Method = ...,
        search: Mapping[str, object] | None = ...,
        threads: int = ...,
    ) -> list[Found]: ...

    def generate(
        self,
        origin: Any,
        destination: Any,
        departure: Any,
        *,
        method: Method = "beam",
        search: Mapping[str, object] | None = None,
        threads: int = 1,
    ) -> Found | list[Found]:
        """The trip from an origin to a destination, or a list of trips; as `student-trainer generate` finds it.

        Args:
            origin, destination: roads; or one for each trip.
            departure: when the origin is entered, whole seconds since 1970 on the data's clock; or one for each trip.
            method: beam, greedy, best_first or shortest_path.
            search: settings of the search, as `search.*` of `generate`: {"width": 8}.
            threads: of the search; 0 for one a core. No trip depends on it.

        Raises:
            ConfigError: a setting is unknown or out of range.
            DataError: a road is unknown, the lists do not fit together, or the weights are damaged.
        """
        settings = config.validate(SearcherConfig, {"method": method, "search": dict(search or {}), "threads": threads})
        if np.ndim(origin) == 0:
            return self._generate([origin], [destination], [departure], settings)[0]
        return self._generate(origin, destination, departure, settings)

    def _generate(
        self, origin: Integers, destination: Integers, departure: Integers, settings: SearcherConfig
    ) -> list[Found]:
        pairs = self._pairs(origin, destination, departure)
        if not len(pairs):
            return []
        searcher = Searcher(settings, self.store, pairs, self._decoder)
        return sorted(searcher.run(range(len(pairs))), key=lambda trip: trip.pair)

    def _pairs(self, origin: Integers, destination: Integers, departure: Integers) -> Pairs:
        if not len(origin) == len(destination) == len(departure):
            raise DataError(
                f"{len(origin)} origins, {len(destination)} destinations, {len(departure)} departures: one each a trip"
            )
        number = np.arange(len(origin))
        start, end = np.array(origin, np.int64), np.array(destination, np.int64)
        for road in np.concatenate([start, end]).tolist():
            if not 0 <= road < self.network.num_roads:
                raise DataError(f"road {road} is not in the network; roads are 0 to {self.network.num_roads - 1}")
        return Pairs(number, number, start, end, np.array(departure, np.int64))

    @functools.cached_property
    def _decoder(self) -> Decoder:
        """The model as searches have it: a step at a time, on the student's device."""
        parts = students.architecture_of(self._model)
        return parts.decoder(self._model, self.network, self.scale, self.candidate_top_k)
