"""A stand-in for the module `wandb`, which fails when it is told to."""

from __future__ import annotations

import os
import types
from typing import Any


class FakeRun:
    """Takes what a run takes."""

    def __init__(self, module: FakeWandb) -> None:
        self._module = module

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self._module.fail("log")
        self._module.logged.append((step, values))

    def finish(self) -> None:
        self._module.fail("finish")


class FakeWandb(types.ModuleType):
    """What is read of `wandb`.

    Attributes:
        started: arguments of each `init`.
        last: those of the last one.
        logged: steps and values.
        failing: names of what raises.
        is_logged_in: what `login` finds.
        logins: how often it was asked.
        teardowns: how often its own process was ended.
        run: what the process that calls has open besides.
    """

    def __init__(self, failing: tuple[str, ...] = (), is_logged_in: bool = True) -> None:
        super().__init__("wandb")
        self.started: list[dict[str, Any]] = []
        self.last: dict[str, Any] = {}
        self.logged: list[tuple[int | None, dict[str, float]]] = []
        self.failing, self.is_logged_in, self.logins = failing, is_logged_in, 0
        self.teardowns, self.run = 0, None

    def fail(self, name: str) -> None:
        """Raises if it is told to."""
        if name in self.failing:
            raise ConnectionError(f"{name}: network is unreachable")

    def setup(self) -> Any:
        """Its settings, from the environment."""
        return types.SimpleNamespace(settings=types.SimpleNamespace(mode=os.environ.get("WANDB_MODE", "online")))

    def Settings(self, **given: Any) -> dict[str, Any]:  # noqa: N802 - wandb's name
        """Settings of a run."""
        return given

    def login(self, *, prompt: bool, verify: bool) -> bool:
        """Asks nobody."""
        assert not prompt and verify
        self.logins += 1
        self.fail("login")
        return self.is_logged_in

    def teardown(self) -> None:
        """Ends the process that it has not."""
        self.teardowns += 1
        self.fail("teardown")

    def init(self, **arguments: Any) -> FakeRun:
        """Starts a run."""
        self.started.append(arguments)
        self.last.update(arguments)
        self.fail("init")
        return FakeRun(self)
