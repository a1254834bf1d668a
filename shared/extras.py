"""The optional parts of an installation ("extras"), and what is said where one is missing.

Which packages an extra brings stands in `pyproject.toml`; here stand the modules that they are imported by.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import shared
from shared.errors import ConfigError

EXTRAS: dict[str, frozenset[str]] = {
    "teacher": frozenset({"torch", "numba", "grpc_reflection", "prometheus_client", "uvloop"}),
    "trainer": frozenset({"torch", "numba", "kahip", "polars", "scipy", "tensorboard", "prometheus_client"}),
    "report": frozenset({"matplotlib"}),
    "tune": frozenset({"optuna", "cmaes", "plotly", "sqlalchemy"}),
    "wandb": frozenset({"wandb"}),
    "convert": frozenset({"osmium"}),
    "tracing": frozenset({"opentelemetry"}),
}
"""Modules by extra. `report` brings `trainer` with it, `tune` brings `report`."""

ON_REQUEST = frozenset({"wandb", "convert", "tracing"})
"""Extras that no command needs until a setting, or a file of their format, asks for them."""


@contextlib.contextmanager
def needed(extra: str | None) -> Iterator[None]:
    """Turns an import that fails because an extra is not installed into one line that says how to install it.

    Args:
        extra: what the code in the block needs; None if it needs none.

    Raises:
        ConfigError: a module of an extra is missing. Any other missing module is a fault of the program, and passes.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        holding = {name for name, modules in EXTRAS.items() if module in modules}
        wanted = next(iter(holding & ON_REQUEST), extra)
        if not holding or wanted is None:
            raise
        raise ConfigError(
            f"the module {module} is not installed; this needs the extra [{wanted}]: "
            f"pip install '{shared.DISTRIBUTION}[{wanted}]' (in a checkout: pip install -e '.[{wanted}]')"
        ) from error
