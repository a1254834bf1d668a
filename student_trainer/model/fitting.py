"""Weights into a module, if they fit."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from shared.errors import CompatibilityError


def load(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Loads weights by their names; raises `CompatibilityError`, naming some that do not fit."""
    ours = module.state_dict()
    wrong = [f"{n} is missing" for n in ours.keys() - weights.keys()]
    wrong += [f"{n} is unknown" for n in weights.keys() - ours.keys()]
    wrong += [
        f"{n} has shape {tuple(weights[n].shape)}, expected {tuple(ours[n].shape)}"
        for n in ours.keys() & weights.keys()
        if weights[n].shape != ours[n].shape
    ]
    if wrong:
        raise CompatibilityError(f"the weights do not fit: {'; '.join(sorted(wrong)[:4])}")
    module.load_state_dict(weights)
