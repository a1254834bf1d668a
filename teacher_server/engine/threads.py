"""Many jobs at once on the CPU, one core each; one after another on an accelerator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

JobT = TypeVar("JobT")


class Threads:
    """Threads of the CPU.

    Torch's own threads would split a tile, which is slower for small ones and makes the last bits of a result depend
    on its place in it: each job has one thread.
    """

    def __init__(self, count: int) -> None:
        """Starts none yet.

        Args:
            count: of jobs at once; 0: all on the thread that asks, as an accelerator needs it.
        """
        self._pool = ThreadPoolExecutor(count, "tile") if count else None

    def each(self, function: Callable[[JobT], None], jobs: Sequence[JobT]) -> None:
        """Calls the function on every job, in inference mode; returns when all are done."""

        @torch.inference_mode()
        def call(job: JobT) -> None:
            function(job)

        at_once = self._pool is not None and len(jobs) > 1
        for _ in (self._pool.map if self._pool is not None and at_once else map)(call, jobs):
            pass
