"""How much is measured: in full on an accelerator, and so little on a CPU that it shows only that all of it runs."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        n_layer, n_head, n_embd: of the teacher.
        grid: rows and columns of the cells of a teacher that is asked directly.
        window: cells of history.
        matmul: edge of the large product.
        copy_mib: of a copy.
        tile_tokens: of the engine's setting; 0: its default.
        trips: of the passes, at most.
        request_trips: of a request in them.
        new_positions: that nobody has asked about, with candidates at random.
        naive_trips: that are scored trip by trip.
        batch_positions: windows of one forward pass.
        large, small: positions of a request of the one client, and of each of the many.
        clients: how many these are.
        cold_requests: large ones of a block; the small ones are ten times as many.
        load_seconds: of new requests without a pause, while the device is watched.
        batch_size: trips of a student's step.
        warm, steps: of a student's turn; the first are not timed.
        train_steps: of a training run.
        val_trips: that it validates on.
        log_every: steps of a record of it.
        pairs: that trips are generated for.
        road_id_dim, road_attr_dim: of the student.
    """

    n_layer: int = 8
    n_head: int = 12
    n_embd: int = 768
    grid: tuple[int, int] = (200, 260)
    window: int = 4
    matmul: int = 8192
    copy_mib: int = 1024
    tile_tokens: int = 0
    trips: int = 20_000
    request_trips: int = 64
    new_positions: int = 131_072
    naive_trips: int = 40
    batch_positions: int = 2_000
    large: int = 2_000
    small: int = 16
    clients: int = 8
    cold_requests: int = 60
    load_seconds: float = 4.0
    batch_size: int = 64
    warm: int = 8
    steps: int = 40
    train_steps: int = 120
    val_trips: int = 64
    log_every: int = 20
    pairs: int = 2_000
    road_id_dim: int = 64
    road_attr_dim: int = 16


FULL = Size()
TOY = Size(
    n_layer=2,
    n_head=2,
    n_embd=16,
    grid=(10, 20),
    matmul=64,
    copy_mib=1,
    tile_tokens=64,
    trips=16,
    request_trips=4,
    new_positions=128,
    naive_trips=2,
    batch_positions=32,
    large=32,
    small=4,
    clients=2,
    cold_requests=2,
    load_seconds=0.2,
    batch_size=8,
    warm=1,
    steps=2,
    train_steps=4,
    val_trips=4,
    log_every=1,
    pairs=12,
    road_id_dim=8,
    road_attr_dim=2,
)
