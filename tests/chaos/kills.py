"""A trainer killed with SIGKILL at random steps, resumed each time: it must end with the bits of an undisturbed one."""

from __future__ import annotations

import random
import signal

from tests.chaos.matrix import Lab
from tests.chaos.processes import CellFailed, Teacher, wait_for

CHECKPOINTS = "log.checkpoint_every=2"


def run_kills(lab: Lab, times: int, seed: int = 0) -> list[int]:
    """Kills so many times, each 0 to 3 steps after it has made its first; returns the steps.

    Raises:
        CellFailed: the weights at the end are others.
    """
    reference, draw = lab.reference(1), random.Random(seed)
    teacher = Teacher(lab.right, lab.log("teacher"))
    steps: list[int] = []
    flags: tuple[str, ...] = (CHECKPOINTS,)
    try:
        for _ in range(times):
            (trainer,) = lab.start_run("killed", teacher.address(), 1, flags)
            flags = (CHECKPOINTS, "--resume")
            begin = trainer.step()
            target = begin + draw.randint(0, 3)
            try:
                wait_for(lambda t=trainer, s=target: t.step() > s or t.has_ended, f"step {target}")
                steps.append(trainer.step())
                if not trainer.has_ended:
                    trainer.signal(signal.SIGKILL)
            finally:
                trainer.kill()
            if trainer.wait() != -signal.SIGKILL:
                raise CellFailed(f"the run was over before its kill number {len(steps)}: {trainer.stderr[-300:]}")
        (trainer,) = lab.start_run("killed", teacher.address(), 1, flags)
        if trainer.wait():
            raise CellFailed(f"the last resumed run failed: {trainer.stderr[-500:]}")
        if trainer.weights() != reference:
            raise CellFailed(f"killed at steps {steps}, the run ended with other weights")
    finally:
        teacher.kill()
    return steps
