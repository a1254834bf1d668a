"""What a new user types, as the documents have it, and how each command is made small."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from support.lattice_city import walk, write_network, write_trips

PAGES = ("Makefile", "README.md", "docs/data.md")
"""Where the commands are from."""
DEMO_SIZES = """\
demo-city: {columns: 9, rows: 9, drivers: 20, trips: {train: 300, val: 40, test: 60}}
prepare: {grid: {cell_size: 0.0005}}
pretrain: {n_layer: 1, n_embd: 32, epochs: 4, warmup_steps: 3, threads: 1}
serve: {engine: {threads: 1}}
sample: {trips: 100, train_trips: 100}
train:
  seed: 42
  batch: {train_trips: 100}
  model: {road_id_dim: 8, road_attr_dim: 2}
  optim: {epochs: 3, batch_size: 32}
  runtime: {threads: 1}
  log: {every: 10}
pipeline: {splits: [test], pairs: 40, threads: 1, map_pairs: 20}
"""
"""In the place of `config/demo.yaml`."""
SIZES = """\
pretrain: {n_layer: 1, n_embd: 32, epochs: 4, warmup_steps: 3, threads: 1}
serve: {engine: {threads: 1}}
train:
  model: {road_id_dim: 8, road_attr_dim: 2}
  optim: {epochs: 2, batch_size: 32}
  runtime: {threads: 1}
pipeline: {splits: [test], pairs: 20, threads: 1, map_pairs: 20}
"""
"""What `small.yaml` holds, for the user's own city."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A command.

    Attributes:
        documented: the line of one of `PAGES`, as a shell reads it.
        sizes: what is put in the place of words of it, and behind it.
        measured: whether it prints what arithmetic or the clock decides, not the data alone.
        lasts: whether it runs, as in another terminal, until the walk ends.
    """

    documented: str
    sizes: tuple[tuple[str, str], ...] = ()
    more: str = ""
    measured: bool = True
    lasts: bool = False

    @property
    def typed(self) -> str:
        """The line that is run."""
        line = self.documented
        for old, new in self.sizes:
            assert old in line, f"{old} is not in {line}"
            line = line.replace(old, new)
        return f"{line} {self.more}".rstrip()


SMALL = "--config small.yaml"
DEMO = Step("python -m shared.demo --out runs/demo")
OWN_CITY = (
    Step(
        "student-trainer convert --roads city.geojson --trips trips.csv --out data/mycity network.id=u,v,key",
        measured=False,
    ),
    Step("student-trainer prepare --raw data/mycity --out runs/store", measured=False),
    Step("teacher-server pretrain --data runs/store --out runs/teacher.safetensors", more=SMALL),
    Step(
        "teacher-server serve --teacher runs/teacher.safetensors "
        "--listen 127.0.0.1:50051 --metrics-listen 127.0.0.1:9464",
        sizes=(("127.0.0.1:50051", "127.0.0.1:0"), ("127.0.0.1:9464", "127.0.0.1:0")), more=SMALL, lasts=True,
    ),
    Step(
        "student-trainer sample --data runs/store --teacher 127.0.0.1:50051 --trips 20000 --out runs/sampled",
        sizes=(("20000", "100"),),
    ),
    Step(
        "student-trainer train --data runs/store --teacher 127.0.0.1:50051 "
        "--out runs/distilled batch.sampled=runs/sampled",
        more=SMALL,
    ),
    Step("student-trainer train --data runs/store --teacher none --out runs/vanilla", more=SMALL),
    Step(
        "student-trainer predict --data runs/store --weights runs/distilled "
        "--trip 1,2,3 --destination 9", sizes=(("1,2,3", "0,2"),),
    ),
)  # fmt: skip
"""On the city of `write_own_city`; independent of the demo."""
REPORT = Step("student-trainer pipeline --data runs/store --models runs --out runs/pipeline", more=SMALL)
"""Of all that lies in runs/, the demo too."""
STEPS = (DEMO, *OWN_CITY, REPORT)


def write_own_city(folder: Path) -> None:
    """The lattice of the tests of `convert`, with its walks, as a user's files; and the sizes of both cities."""
    random = np.random.default_rng(0)
    write_network(folder / "city.geojson")
    write_trips(folder / "trips.csv", [walk(random, 4 + n % 3) for n in range(200)])
    (folder / "small.yaml").write_text(SIZES, encoding="utf-8")
    (folder / "config").mkdir()
    (folder / "config" / "demo.yaml").write_text(DEMO_SIZES, encoding="utf-8")
