"""Giving an optimizer or a loss scaler the state of a checkpoint, looked at first: torch takes whatever it is given."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from shared.errors import FileFormatError

log = logging.getLogger(__name__)

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter, in its shape."""


def restore_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Gives AdamW the state that a checkpoint holds.

    torch takes whatever it is given, and fails in the first step.

    Raises:
        FileFormatError: it is not the state of such an optimizer.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        known, found = optimizer.state_dict()["param_groups"], state["param_groups"]
        for ours, theirs in zip(known, found, strict=True):
            if {name: type(value) for name, value in ours.items()} != {name: type(v) for name, v in theirs.items()}:
                raise ValueError("other settings of the optimizer")
            if ours["params"] != theirs["params"]:
                raise ValueError("other parameters")
        for number, moments in state["state"].items():
            shapes = {"step": (), **dict.fromkeys(MOMENTS, tuple(parameters[number].shape))}
            if {name: tuple(value.shape) for name, value in moments.items()} != shapes:
                raise ValueError(f"other shapes for parameter {number}")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"the checkpoint's state of the optimizer is damaged: {error}") from None
    optimizer.load_state_dict(state)


def restore_scaler(scaler: Any, state: Mapping[str, Any]) -> None:
    """Gives a loss scaler the state that a checkpoint holds.

    The arithmetic of a run may change when it goes on: one that had no scaler (whose state is empty) begins with a
    fresh one, and a scaler that is off needs no state.

    Raises:
        FileFormatError: it is not the state of a scaler.
    """
    if not scaler.is_enabled():
        return
    if not state:
        log.info("the run had no loss scaling; beginning with a scale of %g", scaler.get_scale())
        return
    known = {name: type(value) for name, value in scaler.state_dict().items()}
    if {name: type(value) for name, value in state.items()} != known:
        raise FileFormatError(
            f"the checkpoint's state of the loss scaler is damaged: it has {sorted(map(str, state))}, "
            f"expected {sorted(known)}"
        )
    scaler.load_state_dict(dict(state))
