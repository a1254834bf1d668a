"""What a store's cells let a teacher say: how good the destination-aware target is, and how often windows repeat.

    python -m benchmarks.regimes.cells --data STORE --teacher ADDRESS

A line of JSON for docs/results/cells.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path

import numpy as np
import torch

from shared import config, log, ragged
from shared.store import Store
from student_trainer.data.network import RoadNetwork
from student_trainer.distill.conditional_logit import hits_of, nll_of
from student_trainer.distill.destination import DestinationTarget
from student_trainer.train.config import TrainConfig
from student_trainer.train.connect import connect
from student_trainer.train.destination_target import choices_among
from student_trainer.train.feed import Feed

TRIPS = 1_000
"""Validation trips that the target is fitted on, and as many after them that it is measured on."""


def distinct_windows(store: Store, window: int) -> float:
    """Share of the training trips' windows, the last `window` cells at each road, that are different ones."""
    trips = store.trips("train")
    cells, step = RoadNetwork.load(store).road_token[trips.roads], ragged.positions(trips.lengths)
    back = [np.where(step >= ago, np.roll(cells, ago), -1) for ago in range(window)]
    return len(np.unique(np.stack(back, axis=1), axis=0)) / len(cells)


def main() -> int:
    """Asks the teacher and prints the line."""
    parser = argparse.ArgumentParser("benchmarks.regimes.cells", description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", required=True)
    given = parser.parse_args()
    log.setup("warning")
    store = Store(given.data)
    told = [f"data={given.data}", "out=unwritten", f"teacher={given.teacher}"]
    settings = config.load(TrainConfig, "train", [], told)
    numbers = np.arange(2 * TRIPS)
    with contextlib.closing(connect(settings, store)) as teacher:
        feed = Feed(RoadNetwork.load(store), store.trips("val"), settings, teacher, torch.device("cpu"))
        feed.measure_ways(store.network("length"), numbers, progress=False)
        target, _ = DestinationTarget.fitted(choices_among(feed, numbers[:TRIPS]))
        choices = choices_among(feed, numbers[TRIPS:]).labelled()
    found = {
        "target_accuracy": float(hits_of(choices, target.coefficients).mean()),
        "target_nll": float(nll_of(choices, target.coefficients).mean()),
        "distinct_windows": distinct_windows(store, settings.distill.window),
    }
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
