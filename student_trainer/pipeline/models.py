"""The models in a directory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from shared import files
from shared.errors import ConfigError
from student_trainer.runs.layout import BEST


@dataclasses.dataclass(frozen=True)
class Model:
    """Weights under a name.

    Attributes:
        weights: their file; None: shortest paths, which need none.
        sha256: of the file's bytes.
        run: the directory that `train` wrote, if they are from one.
    """

    name: str
    weights: Path | None
    sha256: str
    run: Path | None


SHORTEST = Model("shortest-path", None, "", None)


def find(folder: Path, baseline: str, shortest_path: bool) -> list[Model]:
    """The models in a directory, the baseline first, then by name.

    Raises:
        ConfigError: there is none, two have the same name, or none has the baseline's.
    """
    found: dict[str, tuple[Path, Path | None]] = {}
    runs = [path.parents[1] for path in sorted(folder.rglob(str(BEST)))]
    candidates: list[tuple[str, Path, Path | None]] = [(_name(run, folder), run / BEST, run) for run in runs]
    candidates += [(path.stem, path, None) for path in sorted(folder.glob("*.pth"))]
    for name, path, run in candidates:
        if name in found:
            raise ConfigError(f"{found[name][0]} and {path} would both be called {name}; rename one")
        found[name] = (path, run)
    if not found:
        raise ConfigError(f"{folder} holds no model: neither RUN/{BEST} nor a .pth file")
    first = baseline or ("vanilla" if "vanilla" in found else min(found))
    if first not in found:
        raise ConfigError(f"baseline {first} is not among the models {', '.join(sorted(found))}")
    names = [first, *sorted(name for name in found if name != first)]
    models = [Model(name, found[name][0], files.file_digest(found[name][0]), found[name][1]) for name in names]
    return [*models, SHORTEST] if shortest_path else models


def _name(run: Path, folder: Path) -> str:
    return "-".join(run.relative_to(folder).parts) or run.resolve().name
