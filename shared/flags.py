"""Flags of command lines: what one given twice is told."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

LIST_MARK = "[,"
"""In what a flag's value is called in the help, if it is a list: ONE[,OTHER...]."""


class Once(argparse.Action):
    """Stores a flag's value; a second one is refused, which else would silently replace the first."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """See `argparse.Action`; the flag's default has to be None."""
        first = getattr(namespace, self.dest)
        if first is not None:
            raise argparse.ArgumentError(self, f"given twice{self._both(first, values)}")
        setattr(namespace, self.dest, True if self.nargs == 0 else values)

    def _both(self, first: Any, second: Any) -> str:
        """The two values, and how to write what may have been meant."""
        if self.nargs == 0:
            return "; give it once"
        if isinstance(self.metavar, str) and LIST_MARK in self.metavar:
            return f"; several go into one, separated by commas: {shlex.quote(f'{first},{second}')}"
        one, other = (shlex.join(map(str, given if isinstance(given, list) else [given])) for given in (first, second))
        return f", {one} and {other}; give it once"
