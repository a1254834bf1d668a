"""Where values go beside a job's own files: TensorBoard, Weights & Biases and Prometheus.

Neither decides whether a job lives. Whether Weights & Biases can be used is asked before anything is claimed
(`check_wandb`); afterwards a sink that fails is named once and gets nothing more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from shared import files
from shared.errors import ConfigError

log = logging.getLogger(__name__)

Wandb = Literal["off", "offline", "online"]
"""What the settings ask for."""
Mode = Literal["disabled", "offline", "online"]
"""What is done."""

WANDB_FILE = "wandb_run.json"
"""In a job's directory: the id of its run at Weights & Biases, one for as long as the directory lives."""
FINISH_SECONDS = 120.0
"""How long the end of a job waits for uploads; what is left then is on disk, for `wandb sync`."""
LEAVE_SECONDS = 20.0
"""How long a job that cannot use wandb waits for wandb's own process to end."""

_RESERVE: tuple[Mode, ...] = ("disabled", "offline", "online")
_MODES: dict[str, Mode] = {
    "disabled": "disabled",
    "offline": "offline",
    "dryrun": "offline",
    "online": "online",
    "run": "online",
    "shared": "online",
}
"""wandb's names of its modes."""


@dataclasses.dataclass(frozen=True)
class WandbRun:
    """What Weights & Biases is told of a job.

    Attributes:
        asked: the setting `log.wandb`.
        config: the job's settings, as JSON.
    """

    asked: Wandb
    project: str
    name: str
    config: Mapping[str, Any]
    tags: tuple[str, ...] = ()
    group: str | None = None
    job_type: str | None = None


class Sink(Protocol):
    """One place for values."""

    def write(self, step: int | None, values: Mapping[str, float]) -> None:
        """Adds values, of a step if there are steps."""
        ...

    def close(self) -> None:
        """Writes what is left to write."""
        ...


class Sinks:
    """The sinks of a job; those that fail are dropped."""

    def __init__(
        self,
        out: Path,
        tensorboard: bool,
        wandb: WandbRun,
        after: int | None = None,
        prometheus: Callable[[], Sink] | None = None,
    ) -> None:
        """Opens them.

        Args:
            out: the job's directory.
            after: the step at which a job goes on; what TensorBoard holds of later ones is dropped.
            prometheus: opens that sink, if it is wanted.
        """
        self._open: dict[str, Sink] = {}
        if prometheus is not None:
            self._try("Prometheus", lambda: self._open.update(Prometheus=prometheus()))
        if tensorboard:
            self._try("TensorBoard", lambda: self._open.update(TensorBoard=_TensorBoard(out, after)))
        mode = wandb_mode(wandb.asked)
        if mode != "disabled":
            self._try("Weights & Biases", lambda: self._open.update({"Weights & Biases": _Wandb(out, wandb, mode)}))

    def write(self, step: int | None, values: Mapping[str, float]) -> None:
        """Gives every sink the values."""
        for name, sink in [*self._open.items()]:
            self._try(name, lambda sink=sink: sink.write(step, values))

    def close(self) -> None:
        """Closes every sink."""
        for name, sink in [*self._open.items()]:
            self._try(name, sink.close)
        self._open.clear()

    def _try(self, name: str, action: Any) -> None:
        try:
            action()
        except Exception as error:  # whatever their libraries raise: the job has its own files
            self._open.pop(name, None)
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning("%s failed (%s); the job goes on without it", name, reason)


def wandb_mode(asked: Wandb) -> Mode:
    """What is done about Weights & Biases: what the settings and the environment both allow.

    The environment is WANDB_MODE, `wandb offline` and `wandb disabled` in its settings files, and WANDB_DISABLED.
    """
    if asked == "off":
        return "disabled"
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled"
    import wandb  # takes seconds, and is off by default

    return min(asked, _MODES.get(wandb.setup().settings.mode, "online"), key=_RESERVE.index)


def check_wandb(asked: Wandb) -> None:
    """Looks whether Weights & Biases can be used as the settings ask; called before a job claims its directory.

    Raises:
        ConfigError: values should be sent, and this user is not logged in, or the server cannot be reached.
    """
    if asked == "off":
        return
    mode = wandb_mode(asked)
    if mode != asked:
        log.info("log.wandb is %s, but the environment says %s: nothing is sent", asked, mode)
    if mode != "online":
        return
    import wandb

    try:
        is_logged_in, reason = wandb.login(prompt=False, verify=True), "not logged in"
    except Exception as error:  # of several kinds: wrong keys, no network, its service does not start
        is_logged_in, reason = False, " ".join(str(error).split()) or type(error).__name__
    if not is_logged_in:
        _leave(wandb)
        raise ConfigError(
            f"log.wandb=online, and Weights & Biases cannot be used: {reason.rstrip('.')}; log in with `wandb login` "
            "or WANDB_API_KEY, or take log.wandb=offline and send the run later with `wandb sync`"
        )


def _leave(wandb: Any) -> None:
    """Ends wandb's own process here: at the exit of this one it would be awaited without a limit."""
    if wandb.run is not None:  # the caller's own, in a process that is more than this job
        return

    def teardown() -> None:
        with contextlib.suppress(Exception):  # that wandb cannot be used is told already
            wandb.teardown()

    leaving = threading.Thread(target=teardown, name="wandb-teardown", daemon=True)
    leaving.start()
    leaving.join(LEAVE_SECONDS)


def check_tensorboard(asked: bool) -> None:
    """Looks whether event files can be written; for jobs whose extra does not bring what writes them.

    Raises:
        ConfigError: they should be, and TensorBoard is not installed.
    """
    if asked and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("log.tensorboard=true needs TensorBoard: pip install tensorboard, or log.tensorboard=false")


class _TensorBoard:
    def __init__(self, out: Path, after: int | None) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2  # takes a second, and is not needed elsewhere
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._events, self._summaries = event_pb2, summary_pb2
        self._writer = EventFileWriter(str(out / "tensorboard"))
        if after is not None:  # a restart: readers drop what an earlier attempt wrote of this step and later ones
            self._add(after + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def write(self, step: int | None, values: Mapping[str, float]) -> None:
        value_of = self._summaries.Summary.Value
        for name, value in values.items():
            summary = self._summaries.Summary(value=[value_of(tag=name, simple_value=value)])
            self._add(step or 0, summary=summary)

    def _add(self, step: int, **content: Any) -> None:
        self._writer.add_event(self._events.Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, out: Path, run: WandbRun, mode: Mode) -> None:
        import wandb

        own = {} if "WANDB_FINISH_TIMEOUT" in os.environ else {"finish_timeout": FINISH_SECONDS}
        self._run = wandb.init(
            id=_id_of(out),
            resume="allow",
            reinit="create_new",  # several runs train in one process
            project=run.project,
            name=run.name,
            group=run.group,
            job_type=run.job_type,
            tags=list(run.tags),
            mode=mode,
            dir=str(out),
            config=dict(run.config),
            settings=wandb.Settings(**own),
        )

    def write(self, step: int | None, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _id_of(out: Path) -> str:
    """The id of a directory's run, made at the first call."""
    path = out / WANDB_FILE
    try:
        known = json.loads(path.read_text(encoding="utf-8"))["id"]
        if isinstance(known, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", known):
            return known
        reason = "it names no id"
    except FileNotFoundError:
        reason = ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error)
    if reason:
        log.warning("%s cannot be used (%s); a new run is begun at Weights & Biases", path, reason)
    made = secrets.token_hex(8)
    files.write_json(path, {"id": made})
    return made
