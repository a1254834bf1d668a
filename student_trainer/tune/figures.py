"""Pictures of a search, as HTML (Plotly) and PNG (Matplotlib)."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import optuna
import plotly.graph_objects
import plotly.offline
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState

from shared import files
from student_trainer.tune.config import Objective

log = logging.getLogger(__name__)

LABELS = {"accuracy": "validation accuracy", "nll": "validation negative log-likelihood, nat", "accuracy+step_time":
          "validation accuracy"}  # fmt: skip
FEWEST = 2
"""Completed trials below which there is nothing to draw."""

LIBRARY = "plotly.min.js"
"""What draws the pages, beside them."""


def write(study: optuna.Study, folder: Path, objective: Objective, vanilla: list[float] | None) -> list[str]:
    """Writes every figure that the study has enough trials for; returns their names.

    Args:
        vanilla: values of the vanilla student at the same budget, drawn beside the history.
    """
    matplotlib.use("Agg")
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(completed) < FEWEST:
        return []
    written: list[str] = []
    for name, options in _figures(study, objective).items():
        told = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # few trials have few values, which is no fault
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # experimental, and Matplotlib's about layouts
                page = getattr(optuna.visualization, f"plot_{name}")(study, **options)
                axes = getattr(optuna.visualization.matplotlib, f"plot_{name}")(study, **options)
        except (ValueError, RuntimeError, ZeroDivisionError) as error:  # too few different values
            log.info("figure %s left out: %s", name, error)
            continue
        finally:
            optuna.logging.set_verbosity(told)
        if name == "optimization_history" and vanilla is not None:
            page.add_hline(vanilla[0], line_dash="dash", annotation_text="vanilla")
            axes.axhline(vanilla[0], linestyle="--", color="black", label="vanilla")
            axes.legend()
        if not written:
            files.write_text(folder / LIBRARY, plotly.offline.get_plotlyjs())
        _save_page(page, folder / f"{name}.html")
        _save_picture(axes, folder / f"{name}.png")
        written.append(name)
    return written


def _figures(study: optuna.Study, objective: Objective) -> dict[str, dict[str, Any]]:
    """Names of Optuna's plots, and their options."""
    label: dict[str, Any] = {"target_name": LABELS[objective]}
    if len(study.directions) > 1:
        label["target"] = _first_value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        importance = {"evaluator": PedAnovaImportanceEvaluator()}
    figures: dict[str, dict[str, Any]] = {
        "optimization_history": label,
        "param_importances": label | importance,
        "slice": label,
        "contour": label,
        "parallel_coordinate": label,
        "timeline": {},
    }
    if len(study.directions) > 1:
        return figures | {"pareto_front": {"target_names": ["validation accuracy", "ms a training step"]}}
    return figures | {"intermediate_values": {}}


def _first_value(trial: optuna.trial.FrozenTrial) -> float:
    return float(trial.values[0])


def _save_page(figure: plotly.graph_objects.Figure, path: Path) -> None:
    """A page; the library that draws it, some 4 MB, lies beside it once for all pages."""
    with files.atomic_path(path) as temporary:
        figure.write_html(temporary, include_plotlyjs=LIBRARY, full_html=True)


def _save_picture(axes: Any, path: Path) -> None:
    first = axes.flat[0] if hasattr(axes, "flat") else axes
    figure = first.figure
    figure.set_size_inches(*_size(axes))
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")
    matplotlib.pyplot.close(figure)


def _size(axes: Any) -> tuple[float, float]:
    rows, columns = (axes.shape if axes.ndim == 2 else (1, axes.shape[0])) if hasattr(axes, "flat") else (1, 1)
    return (2.0 + 2.6 * columns, 1.8 + 2.2 * rows) if rows * columns > 1 else (7.0, 4.6)
