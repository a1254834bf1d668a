"""`make demo`: the main job from nothing to a table, by the commands that a user would type.

    demo-city -> prepare -> pretrain -> serve -> train (vanilla) -> sample -> train (distilled) -> table

Imports neither package; every stage is a command whose log is kept beside its result.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shared import claims, cli, lock, log, processes, provenance
from shared.errors import ReportableError
from shared.flags import Once
from shared.floors import RULES

MARKER = ".demo"
DISTILLED_EPOCHS = 7
"""Over sampled trips; in as many optimizer steps as the epochs of config/demo.yaml over labelled trips alone."""
PIPELINE = "pipeline"
"""Directory of trips, metrics, comparison and report."""
SENTENCES = 3
FIRST_SEED, MOST_SEEDS = 42, 100
LOOK_SECONDS = 10.0
LINE = 110
"""Characters of a log's line that are shown."""
READY_SECONDS = 60
STOP_SECONDS = 20


class StageFailed(Exception):
    """A command of the demo ended badly."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; 0 if every stage succeeded."""
    parser = argparse.ArgumentParser("demo", description="The main job on a synthetic city, in a few minutes.")
    parser.add_argument("--out", action=Once, type=Path, help="directory, made anew each time (default runs/demo)")
    parser.add_argument("--seeds", action=Once, type=_count, help="students of each kind, each of its own seed (1)")
    given = parser.parse_args(argv)
    out, seeds = given.out or Path("runs/demo"), range(FIRST_SEED, FIRST_SEED + (given.seeds or 1))
    start = time.monotonic()
    try:
        with claims.directory(out):
            _start_afresh(out)
            result = _run(out, seeds)
    except (StageFailed, ReportableError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; every process it started has been stopped", file=sys.stderr)
        return 130
    print(_table(out, result))
    print(_verdict(out))
    print(f"\n{time.monotonic() - start:.0f} s in all. Everything is in {out}/ (logs in {out}/logs/).")
    return 0


def _start_afresh(out: Path) -> None:
    claims.check(out, "a directory of the demo", lambda out: (out / MARKER).exists())
    for path in out.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != lock.NAME:
            path.unlink()
    (out / "logs").mkdir()
    (out / MARKER).touch()


def _count(text: str) -> int:
    count = int(text)
    if not 1 <= count <= MOST_SEEDS:
        raise argparse.ArgumentTypeError(f"from 1 to {MOST_SEEDS}, not {text}")
    return count


def _name(kind: str, seed: int) -> str:
    """Of a run's directory."""
    return kind if seed == FIRST_SEED else f"{kind}-{seed}"


def _run(out: Path, seeds: Sequence[int]) -> dict[str, Any]:
    raw, store, teacher = out / "raw", out / "store", out / "teacher.safetensors"
    settings = ["--config", "config/demo.yaml"]
    _stage(out, "1 city", "student_trainer", "demo-city", "--out", raw, *settings)
    _stage(out, "2 prepare", "student_trainer", "prepare", "--raw", raw, "--out", store, *settings)
    pretrained = _stage(out, "3 pretrain", "teacher_server", "pretrain", "--data", store, "--out", teacher, *settings)
    train = ["train", "--data", store, *settings]
    with _teacher_daemon(out, teacher) as address:
        asked = ["--teacher", address, *settings]
        vanilla = [
            _stage(out, f"4 {_name('vanilla', seed)}", "student_trainer", *train, "--out", out / _name("vanilla", seed),
                   f"seed={seed}")
            for seed in seeds
        ]  # fmt: skip
        _stage(out, "5 sample", "student_trainer", "sample", "--data", store, *asked, "--out", out / "sampled")
        distilled = [
            _stage(
                out, f"6 {_name('distilled', seed)}", "student_trainer", *train, "--teacher", address,
                "--out", out / _name("distilled", seed), f"seed={seed}", f"batch.sampled={out / 'sampled'}",
                f"optim.epochs={DISTILLED_EPOCHS}",
            )
            for seed in seeds
        ]  # fmt: skip
    pipeline = ["pipeline", "--data", store, "--models", out, "--out", out / PIPELINE, *settings]
    _stage(out, "7 pipeline", "student_trainer", *pipeline)
    return {"pretrain": pretrained, "vanilla": vanilla, "distilled": distilled}


def _stage(out: Path, name: str, package: str, *arguments: object) -> dict[str, Any]:
    """Runs a command; returns the JSON of the last line that it printed."""
    command = processes.command(package, *map(str, arguments))
    path = out / "logs" / f"{name.replace(' ', '-')}.log"
    print(f"[{name}] {cli.command(package.replace('_', '-'), *map(str, arguments))}", flush=True)
    start = time.monotonic()
    with path.open("w") as stream, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stream, text=True, env=processes.environment()
    ) as job:  # fmt: skip
        try:
            output = _watch(job, path, start)
        except BaseException:
            job.kill()
            raise
        stream.write(output)
    if job.returncode:
        raise StageFailed(f"stage {name} ended with {job.returncode}: {_last_line(path) or 'no output'} (log: {path})")
    print(f"    {time.monotonic() - start:.0f} s", flush=True)
    lines = [line for line in output.splitlines() if line.startswith("{")]
    return dict(json.loads(lines[-1])) if lines else {}


def _watch(job: subprocess.Popen[str], path: Path, start: float) -> str:
    """What a command has printed when it ends; meanwhile, now and then, the last line of its log."""
    told = ""
    while True:
        try:
            return job.communicate(timeout=LOOK_SECONDS)[0]
        except subprocess.TimeoutExpired:
            if (line := _last_line(path)) and line != told:
                print(f"    {time.monotonic() - start:.0f} s: {line[:LINE]}", flush=True)
                told = line


def _last_line(path: Path) -> str:
    """Its message, without the time, the level and the part of the program that say less than the stage's name."""
    lines = path.read_text(errors="replace").replace("\r", "\n").strip().splitlines()
    return log.message_of(lines[-1].strip()) if lines else ""


@contextlib.contextmanager
def _teacher_daemon(out: Path, teacher: Path) -> Iterator[str]:
    """A daemon on free ports; yields its address and stops it in the end."""
    arguments = ["serve", "--teacher", str(teacher), "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    arguments += ["--config", "config/demo.yaml"]
    print(f"[serve] {cli.command('teacher-server', *arguments)}", flush=True)
    path = out / "logs" / "serve.log"
    with path.open("w") as stream, subprocess.Popen(
        processes.command("teacher_server", *arguments),
        stdout=subprocess.PIPE, stderr=stream, text=True, env=processes.environment(),
    ) as daemon:  # fmt: skip
        try:
            assert daemon.stdout is not None
            ready = daemon.stdout.readline()  # printed once it serves; empty if it ended instead
            if not ready.startswith("{"):
                raise StageFailed(f"the teacher daemon did not start (log: {path})")
            state = json.loads(ready)
            print(f"    listening on {state['listening']}, metrics on {state['metrics']}", flush=True)
            yield str(state["listening"])
        finally:
            daemon.terminate()
            try:
                daemon.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                daemon.kill()
            (out / "logs" / "serve.exit").write_text(f"{daemon.wait()}\n")


def _table(out: Path, result: dict[str, Any]) -> str:
    manifest = json.loads((out / "store" / "store.json").read_text())
    floors = manifest["floors"]
    best = {kind: [run["best"] for run in result[kind]] for kind in ("vanilla", "distilled")}
    positions, seeds = best["vanilla"][0]["positions"], len(best["vanilla"])
    accuracy = statistics.mean(of["accuracy"] for of in best["vanilla"])
    noise = 100 * math.sqrt(accuracy * (1 - accuracy) / positions)
    wide = 10 if seeds > 1 else 0  # for ± a standard deviation
    titles = (("accuracy %", 11 + wide), ("NLL", 9 + wide), ("time error", 12 + wide), ("steps", 8))
    lines = [f"\n{'validation, best epoch':48}" + "".join(f"{title:>{width}}" for title, width in titles)]
    for name, floor in (
        *((RULES[name], floors[name]) for name in ("nearest_to_destination", "second_order_markov")),
        ("teacher alone, on the candidates", best["distilled"][0]["teacher_accuracy"]),
    ):
        lines.append(f"{name:48}{100 * floor:11.2f}")
    for kind, found in best.items():
        cells = (("accuracy", 100, 2, 11), ("nll", 1, 4, 9), ("time_error", 1, 4, 12))
        row = [_cell([scale * of[name] for of in found], digits, width) for name, scale, digits, width in cells]
        lines.append(f"{f'HOSER, {kind}':48}{''.join(row)}{result[kind][0]['last']['step']:8,}")
    of_seeds = "one seed each" if seeds == 1 else f"{seeds} seeds each, mean ± standard deviation"
    lines.append(
        f"\n{of_seeds}; the sampling error of an accuracy over {positions} positions is about ±{noise:.2f} points.\n"
        f"The last digits are those of {provenance.arithmetic()}, one thread a job: the same gives them again;\n"
        "another processor, torch or number of threads rounds sums otherwise, and accuracies differ by tenths.\n"
        f"runs: {out}/vanilla, {out}/distilled   teacher: {out}/teacher.safetensors   city: {out}/raw/city.svg"
    )
    return "\n".join(lines)


def _cell(values: Sequence[float], digits: int, width: int) -> str:
    """Their mean and, of several, the standard deviation."""
    text = f"{statistics.mean(values):{width}.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):<7.{digits}f}"


def _verdict(out: Path) -> str:
    """The first sentences of the comparison, the report, and what to do next."""
    lines = []
    for path in sorted((out / PIPELINE).glob("*/comparison/comparison.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        arm = next(arm["name"] for arm in found["arms"] if arm["name"] != found["baseline"])
        compared = [found["metrics"][name]["comparisons"] for name in found["order"]]
        sentences = [metric[arm]["verdict"] for metric in compared if arm in metric]
        lines += ["", f"On {found['split']} trips:", *sentences[:SENTENCES]]
    reports = sorted((out / PIPELINE).glob("*/report/report.html"))
    lines += ["", *(f"report: {path}" for path in reports)]
    own = cli.command("student-trainer", "prepare", "--raw", "DIRECTORY", "--out", "runs/store")
    return "\n".join([*lines, f"next, your own city: {own}   (docs/data.md says what DIRECTORY holds)"])


if __name__ == "__main__":
    sys.exit(main())
