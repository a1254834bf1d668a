"""States of an optimizer, a loss scaler and random generators: given back from a checkpoint, looked at first, for torch
takes whatever it is given."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

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


def random_state(device: torch.device) -> dict[str, Tensor]:
    """State of the generators that a layer on the device may draw from, by device type: uint8 each."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Restores what `random_state` gave; a run may go on on another type of device, without that type's state.

    Raises:
        FileFormatError: these are no states of generators.
    """
    try:
        torch.set_rng_state(states["cpu"])
        if device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], device)
    except (LookupError, TypeError, RuntimeError) as error:
        raise FileFormatError(f"the checkpoint's state of the random generators is damaged: {error}") from None
