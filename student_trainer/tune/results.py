"""What a study has found: OUT/optuna_results/<study>/.

best_trial           link to the best trial's folder, if it is on this machine
best_params.yaml     settings that `train --config` loads, without the budget of the search
study_summary.json   every phase and every trial
final_results.json   the best setting against vanilla, seed by seed, and whether the difference is real
study.html           all of it on a page
figures/             HTML and PNG
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from shared import config, files, provenance
from student_trainer.report import study as studies
from student_trainer.report.study import FORMAT
from student_trainer.tune import figures, folders, phases, samplers, statistics
from student_trainer.tune.config import TuneConfig
from student_trainer.tune.phases import Phase
from student_trainer.tune.samplers import GENERATION
from student_trainer.tune.space import Point

METRICS = {
    "accuracy": ("next road right", 100.0, "points", True),
    "nll": ("negative log-likelihood", 1.0, "nat", False),
}
"""Of final runs: label, scale and unit of what is shown, whether more is better."""

BUDGET = {"optim": ("epochs",), "batch": ("train_trips", "val_trips", "sample_seed", "cache")}
"""Settings that say how much a trial trains, by section: a full run has its own."""


def folder_of(settings: TuneConfig) -> Path:
    """Where a study's results are."""
    return settings.out / "optuna_results" / settings.study


def seconds_per_epoch(found: Sequence[Phase]) -> float | None:
    """How long an epoch of one seed has taken on average; None if nothing has ended."""
    seconds = epochs = 0.0
    for phase in found:
        for trial in phase.slots.ended():
            if (result := trial.user_attrs.get("result")) is not None:
                seconds += result["seconds"]
                epochs += result["epochs"] * len(result["runs"])
    return seconds / epochs if epochs else None


def write(settings: TuneConfig, found: Sequence[Phase]) -> dict[str, Any]:
    """Writes what is known so far; returns the findings in short, as JSON."""
    folder = folder_of(settings)
    by_number = {phase.number: phase for phase in found}
    summary = summarise(settings, found)
    final = final_results(settings, by_number.get(2), by_number.get(3))
    files.write_json(folder / "study_summary.json", files.finite(summary))
    short: dict[str, Any] = {"out": str(folder), "phases": {p["phase"]: p["states"] for p in summary["phases"]}}
    search = by_number.get(1)
    if search is not None and (best := phases.best_trial(search.slots.study)) is not None:
        _link(folder / "best_trial", folders.find(search, best))
        files.write_text(folder / "best_params.yaml", best_params(settings, best.params))
        short["best"] = {"trial": search.name(best), "values": best.values, "params": best.params}
        vanilla = _vanilla_values(by_number.get(0))
        figures.write(search.slots.study, folder / "figures", settings.objective, vanilla)
    if final is not None:
        files.write_json(folder / "final_results.json", files.finite(final))
        short["verdict"], short["sentences"] = final["verdict"], final["sentences"]
    files.write_text(folder / "study.html", studies.page(studies.read(folder)))
    return short


def best_params(settings: TuneConfig, point: Point) -> str:
    """YAML that `train --config` loads: the best setting, without the budget that it was found with.

    A full run has epochs and trips of its own, and a machine of its own: what decides how much, where and how a trial
    ran is not in the file, so that `train`'s defaults or the user's flags hold.
    """
    recipe = phases.final_recipe(settings, point).model_dump(mode="json", exclude=phases.UNDECIDED)
    for section, names in BUDGET.items():
        for name in names:
            if f"{section}.{name}" not in point:
                del recipe[section][name]
    batch, final = settings.train.batch, settings.final
    trips = f"{batch.train_trips} training trips" if batch.train_trips else "all training trips"
    lines = [
        f"# The best setting of study {settings.study}: student-trainer train --config THIS --data STORE --teacher ...",
        f"# Found with {settings.epochs} epochs of {trips}; its final runs had {final.epochs} epochs.",
        "# That budget is not in here: choose optim.epochs and batch.train_trips for the run at hand.",
    ]
    return "\n".join([*lines, config.to_yaml({"train": recipe})])


def summarise(settings: TuneConfig, found: Sequence[Phase]) -> dict[str, Any]:
    """Every phase and trial, as JSON."""
    search = next((phase for phase in found if phase.number == 1), None)
    best = None if search is None else phases.best_trial(search.slots.study)
    return {
        "format": FORMAT,
        "study": settings.study,
        "settings": settings.model_dump(mode="json"),
        "best_trial": None if search is None or best is None else search.name(best),
        "best_values": None if best is None else best.values,
        "best_params": None if best is None else best.params,
        "pareto_front": _pareto(search),
        "generations": _generations(search),
        "phases": [_phase(phase) for phase in found],
        "environment": provenance.environment(),
    }


def _phase(phase: Phase) -> dict[str, Any]:
    ended = phase.slots.ended()
    attempts = phase.slots.study.get_trials(deepcopy=False)
    return {
        "phase": phase.number,
        "arm": phase.arm,
        "study": phase.slots.study.study_name,
        "slots": len(phase.fixed),
        "filled": len(ended),
        "attempts": len(attempts),
        "states": dict(Counter(phases.STATES[trial.state] for trial in ended)),
        "lost": sum("lost" in trial.user_attrs for trial in attempts),
        "trials": [_trial(phase, trial) for trial in attempts],
    }


def _trial(phase: Phase, trial: FrozenTrial) -> dict[str, Any]:
    attrs = trial.user_attrs
    result = attrs.get("result", {})
    return {
        "number": trial.number,
        "name": phase.name(trial),
        "slot": attrs["slot"],
        "attempt": attrs["attempt"],
        "state": trial.state.name.lower(),
        "fills_its_slot": trial.state.is_finished() and "lost" not in attrs,
        "params": trial.params,
        "given": bool(trial.system_attrs.get("fixed_params")),
        "generation": trial.system_attrs.get(GENERATION),
        "values": result.get("values"),
        "epochs": result.get("epochs"),
        "intermediate": trial.intermediate_values,
        "seconds": result.get("seconds"),
        "teacher_seconds": result.get("teacher_seconds"),
        "teacher_positions": result.get("teacher_positions"),
        "runs": result.get("runs"),
        "final": result.get("final"),
        "error": attrs.get("error"),
        "started": None if trial.datetime_start is None else trial.datetime_start.isoformat(),
        "ended": None if trial.datetime_complete is None else trial.datetime_complete.isoformat(),
    }


def _pareto(search: Phase | None) -> list[str] | None:
    if search is None or len(search.slots.study.directions) < 2:
        return None
    return [search.name(trial) for trial in search.slots.study.best_trials]


def _generations(search: Phase | None) -> dict[str, Any] | None:
    if search is None or not search.population:
        return None
    counts = samplers.generations(search.slots.study)
    complete = sum(count >= search.population for count in counts.values())
    return {"population": search.population, "trials": counts, "complete": complete}


def _vanilla_values(phase: Phase | None) -> list[float] | None:
    """What the search's trials must beat."""
    if phase is None:
        return None
    ended = [trial for trial in phase.slots.ended() if trial.state == TrialState.COMPLETE]
    return ended[0].user_attrs["result"]["values"] if ended else None


def final_results(settings: TuneConfig, distilled: Phase | None, vanilla: Phase | None) -> dict[str, Any] | None:
    """The best setting against vanilla over the same seeds, as JSON; None while runs are missing."""
    if distilled is None or vanilla is None:
        return None
    arms = {phase.arm: _final_runs(phase) for phase in (distilled, vanilla)}
    if any(run is None for runs in arms.values() for run in runs):
        return None
    final = settings.final
    metrics, sentences = {}, {}
    for name, (label, scale, unit, higher) in METRICS.items():
        values = {arm: [run[name] for run in runs if run is not None] for arm, runs in arms.items()}
        found = statistics.compare(values["distilled"], values["vanilla"], final.draws, final.confidence)
        sentences[name] = statistics.sentence(label, found, final.significance, scale, unit, higher)
        metrics[name] = {
            "label": label, "unit": unit, "scale": scale, "higher_is_better": higher,
            "is_real": found.is_real(final.significance), **dataclasses.asdict(found), "values": values,
        }  # fmt: skip
    return {
        "format": FORMAT,
        "study": settings.study,
        "params": distilled.point,
        "split": final.split,
        "epochs": final.epochs,
        "seeds": list(final.seeds),
        "metrics": metrics,
        "headroom": _headroom(distilled),
        "verdict": sentences["nll" if settings.objective == "nll" else "accuracy"],
        "sentences": sentences,
    }


def _final_runs(phase: Phase) -> list[dict[str, float] | None]:
    """Each seed's metrics."""
    found: list[dict[str, float] | None] = [None] * len(phase.fixed)
    for trial in phase.slots.ended():
        if trial.state == TrialState.COMPLETE:
            (measured,) = trial.user_attrs["result"]["final"].values()
            found[trial.user_attrs["slot"]] = measured
    return found


def _headroom(distilled: Phase) -> dict[str, float] | None:
    """Means over seeds of what the teacher could still teach on validation trips; None if no run has measured it."""
    ended = [trial.user_attrs["result"] for trial in distilled.slots.ended() if trial.state == TrialState.COMPLETE]
    known = [left for result in ended for left in result.get("headroom", {}).values() if left is not None]
    return {name: sum(left[name] for left in known) / len(known) for name in METRICS} if known else None


def _link(path: Path, target: Path | None) -> None:
    """Points `path` to a folder, or to nothing if it is elsewhere."""
    path.unlink(missing_ok=True)
    if target is not None:
        path.symlink_to(os.path.relpath(target, path.parent), target_is_directory=True)
