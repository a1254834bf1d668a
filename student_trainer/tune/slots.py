"""A phase's budget: slots that are filled once each, by whoever comes, however often processes are lost.

A slot is filled by its attempts, which are Optuna's trials with the user attributes `slot` and `attempt`. Attempts
wait, run, and end COMPLETE, PRUNED or FAIL; a FAIL with `lost` (its process was killed, or told to stop) is followed by
another attempt with the same values. Everything about a slot is derived from its attempts, so that whoever finds one
missing can repair it.

Who runs an attempt shows it by counting up `alive`. Whoever sees a count that does not change for `stale_seconds` of
their own clock, or a dead process of their own machine, declares the attempt lost: no two clocks are compared.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from shared.errors import ConfigError
from student_trainer.tune.config import StorageConfig
from student_trainer.tune.liveness import is_dead, worker_name

try:
    import fcntl
except ImportError:  # not a POSIX system: transactions of the storage alone keep processes apart
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

AnyTrial = optuna.Trial | FrozenTrial
Direction = Literal["maximize", "minimize"]
Again = Literal["no", "lost", "all"]

KILLED, STOPPED = "killed", "stopped"
"""How an attempt is lost; only the first counts against `max_retries`."""


class Slots:
    """One study's slots. Methods may be called by any number of processes at once."""

    def __init__(self, study: optuna.Study, storage: BaseStorage, config: StorageConfig, lock: Path) -> None:
        """Of a study that is there.

        Args:
            lock: file that keeps the processes of one machine apart, for SQLite does not.
        """
        self.study, self._storage, self._config, self._lock = study, storage, config, lock
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._seen: dict[int, tuple[object, float]] = {}

    def fill(self, fixed: Sequence[Mapping[str, Any] | None], again: Again = "no") -> None:
        """Makes the slots that are missing, and attempts at those whose last one was lost.

        Args:
            fixed: of each slot the values it must have, or None for the sampler's.
            again: a person has started anew: try again what was lost too often, or all that failed.
        """
        with self._locked():
            newest = self._newest()
            for slot, values in enumerate(fixed):
                last = newest.get(slot)
                if last is None:
                    system = {"fixed_params": dict(values)} if values else None
                    self.study.add_trial(create_trial(state=TrialState.WAITING, user_attrs=_named(slot, 0, 0),
                                                      system_attrs=system))  # fmt: skip
                elif self.is_due(last) or (again == "lost" and _is_lost(last)) or (again == "all" and _failed(last)):
                    self._repeat(last)

    def _repeat(self, lost: FrozenTrial) -> None:
        """A further attempt: the same values, the same place in the sampler's plans."""
        attrs = lost.user_attrs
        kept = {name: value for name, value in lost.system_attrs.items() if not name.startswith("completed_rung")}
        self.study.add_trial(
            create_trial(
                state=TrialState.WAITING,
                params=lost.params,
                distributions=dict[str, BaseDistribution](lost.distributions),
                user_attrs={**_named(attrs["slot"], attrs["attempt"] + 1, _losses(lost)), "retry_of": lost.number},
                system_attrs=kept,
            )
        )
        log.warning("trial %d of %s: %s; its slot is tried again", lost.number, self.study.study_name, attrs["error"])

    def claim(self, sampler: Callable[[int], optuna.samplers.BaseSampler]) -> optuna.Trial | None:
        """The next waiting attempt, now running and the caller's; None if none waits. Lost work comes first.

        Args:
            sampler: made for the number of a slot.
        """
        with self._locked():
            newest = self._newest()
            waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            for trial in sorted(waiting, key=lambda trial: (-trial.user_attrs["attempt"], trial.number)):
                slot = trial.user_attrs["slot"]
                if newest[slot].number != trial.number:  # two machines have refilled the same slot
                    self._end(trial, TrialState.FAIL, error="a second attempt at the same time")
                    continue
                trial_id = self.id_of(trial)
                try:
                    is_ours = self._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
                except UpdateFinishedTrialError:
                    continue
                if is_ours:
                    self._storage.set_trial_user_attr(trial_id, "worker", worker_name())
                    study = optuna.load_study(
                        study_name=self.study.study_name, storage=self._storage,
                        sampler=sampler(slot), pruner=self.study.pruner,
                    )  # fmt: skip
                    return optuna.Trial(study, trial_id)
        return None

    def reap(self) -> None:
        """Declares attempts lost whose process is gone."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            attrs = trial.user_attrs
            sign, now = (attrs.get("worker"), attrs.get("alive")), time.monotonic()
            if self._seen.get(trial.number, (None, 0.0))[0] != sign:
                self._seen[trial.number] = (sign, now)
            silent = now - self._seen[trial.number][1]
            if is_dead(attrs.get("worker")):
                self.lose(trial, KILLED, "its process is gone")
            elif silent > self._config.stale_seconds:
                self.lose(trial, KILLED, f"no sign of life for {silent:.0f} s")

    def lose(self, trial: AnyTrial, how: str, error: str) -> None:
        """Ends an attempt so that its slot gets another one, at the next `fill`.

        Args:
            how: KILLED or STOPPED.
        """
        self._end(trial, TrialState.FAIL, lost=how, error=error)

    def fail(self, trial: AnyTrial, error: str, trace: str) -> None:
        """Ends an attempt by an error of its own; its slot is used up."""
        self._end(trial, TrialState.FAIL, error=error, traceback=trace)

    def tell(self, trial: AnyTrial, state: TrialState, values: Sequence[float] | None) -> bool:
        """Ends an attempt; False if others have declared it lost before."""
        try:
            return self._storage.set_trial_state_values(self.id_of(trial), state, values)
        except UpdateFinishedTrialError:
            return False

    def _end(self, trial: AnyTrial, state: TrialState, **attrs: Any) -> None:
        trial_id = self.id_of(trial)
        with contextlib.suppress(UpdateFinishedTrialError):  # somebody else was first
            for name, value in attrs.items():
                self._storage.set_trial_user_attr(trial_id, name, value)
            self._storage.set_trial_state_values(trial_id, state)

    def id_of(self, trial: AnyTrial) -> int:
        """The storage's own number of a trial, which is unique over studies."""
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)

    @property
    def count(self) -> int:
        """Slots that have been made."""
        return len(self._newest())

    @property
    def open(self) -> int:
        """Slots that wait or run, or will be tried again."""
        return sum(not trial.state.is_finished() or self.is_due(trial) for trial in self._newest().values())

    def is_due(self, trial: FrozenTrial) -> bool:
        """Whether an ended attempt is to be followed by another one."""
        return _is_lost(trial) and _losses(trial) <= self._config.max_retries

    def ended(self) -> list[FrozenTrial]:
        """The attempts that fill their slots, in the order of the slots."""
        newest = [trial for _, trial in sorted(self._newest().items())]
        return [trial for trial in newest if trial.state.is_finished() and not self.is_due(trial)]

    def _newest(self) -> dict[int, FrozenTrial]:
        """The last attempt at each slot; of two with the same number, the first."""
        found: dict[int, FrozenTrial] = {}
        for trial in self.study.get_trials(deepcopy=False):
            slot = trial.user_attrs.get("slot")
            if slot is not None and (
                slot not in found or trial.user_attrs["attempt"] > found[slot].user_attrs["attempt"]
            ):
                found[slot] = trial
        return found

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if fcntl is None:
            yield
            return
        with open(self._lock, "w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _named(slot: int, attempt: int, losses: int) -> dict[str, int]:
    return {"slot": slot, "attempt": attempt, "losses": losses}


def _failed(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL


def _is_lost(trial: FrozenTrial) -> bool:
    return _failed(trial) and "lost" in trial.user_attrs


def _losses(trial: FrozenTrial) -> int:
    """How often a slot's worker has been killed, this attempt's included."""
    return int(trial.user_attrs["losses"]) + (trial.user_attrs.get("lost") == KILLED)


def open_study(
    storage: BaseStorage, name: str, directions: Sequence[Direction], about: Mapping[str, Any], pruner: BasePruner
) -> optuna.Study:
    """The study of a name, made if it is not there.

    Args:
        about: what must not change while it is under way, kept as its user attributes.

    Raises:
        ConfigError: the study is there, and is about something else.
    """
    study = optuna.create_study(
        storage=storage, study_name=name, directions=list(directions), load_if_exists=True, pruner=pruner
    )
    known = study.user_attrs
    for key, value in about.items():
        if key not in known:
            study.set_user_attr(key, value)
        elif known[key] != value:
            raise ConfigError(
                f"study {name} is there with other settings: {'; '.join(_changes(known[key], value, key))}. "
                "Give it another --study (and --out), or the settings that it has"
            )
    return study


def _changes(old: Any, new: Any, name: str) -> Iterator[str]:
    """What differs, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                yield from _changes(old.get(key), new.get(key), f"{name}.{key}")
    else:
        yield f"{name} was {old}, is {new}"
