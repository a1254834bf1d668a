"""What is wrong with a command line is said before seconds of imports, and in one way by all commands."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st
from support.command_lines import PACKAGES, every_job, needed_settings, parsed_settings

from shared import cli, config
from shared.cli import Job

SLOW = {"torch", "numba", "polars", "grpc", "scipy.stats", "sqlalchemy", "matplotlib", "sklearn", "pyarrow"}
"""Packages whose import takes long, and which no refusal needs."""
PROBE = f"""
import contextlib, importlib, io, json, sys
main = importlib.import_module(sys.argv[1] + ".__main__").main
for line in sys.stdin.read().splitlines():
    sys.argv[1:], before, said = json.loads(line), set(sys.modules), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main()
        except SystemExit as ended:
            code = ended.code
    print(json.dumps([code, sorted({SLOW!r} & (set(sys.modules) - before)), said.getvalue()]))
"""
"""Commands, one a line, in one process: exit code, what each has imported first, and what it says."""
Answer = list[Any]
JOBS = every_job()
each_job = pytest.mark.parametrize(("program", "job"), JOBS, ids=lambda value: getattr(value, "name", value))


def probe(lines: Sequence[str], folder: Path) -> dict[str, Answer]:
    """What a fresh process of each program answers."""
    answers: dict[str, Answer] = {}
    for program, package in PACKAGES.items():
        mine = [line for line in lines if program_of(line) == program]
        words = [json.dumps(shlex.split(line.removeprefix(f"{program} "))) for line in mine]
        done = subprocess.run(
            [sys.executable, "-c", PROBE, package],
            input="\n".join(words), capture_output=True, text=True, check=True,
            cwd=folder, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        answers |= zip(mine, map(json.loads, done.stdout.splitlines()), strict=True)
    return answers


def program_of(line: str) -> str:
    """The program that a line names, or the first with such a job."""
    first = line.partition(" ")[0]
    return first if first in PACKAGES else next(program for program, job in JOBS if job.name == first)


def test_bad_usage_and_help_need_no_slow_import(tmp_path: Path) -> None:
    bad = {"--bogus": (2, "unknown flag --bogus"), "bogus=1": (2, "unknown setting bogus"), "--help": (0, "")}
    expected = {f"{program} {job.name} {usage}": answer for program, job in JOBS for usage, answer in bad.items()}
    answers = probe(list(expected), tmp_path)
    for line, (code, message) in expected.items():
        assert answers[line][:2] == [code, []], line
        assert message in answers[line][2]


REFUSED = {
    "train --data d --out o optim.epochs=x": "optim.epochs: ",
    "train --data d --out o --epochs 3": "did you mean optim.epochs=3?",
    "train --data d --out o optim.lr=1": "unknown setting optim.lr (did you mean optim.learning_rate?)",
    "train window=8 --data d --out o": "unknown setting window (did you mean distill.window?)",
    "train --data d --out o --teacher http://host:1": "teacher: an address has no http://; write host:1",
    "train --data d --out o --teacher grpc://host:1": "teacher: an address has no grpc://; write host:1",
    "train --data d --out o --teacher host": "a host or a port is missing, as in host:50051",
    "train --data d --out o --teacher a:1,host:99999": "teacher: port 99999 is above 65535",
    "train --data d --out o --teacher None": "teacher: write none for no teacher",
    "train --data d --out o --teacher file:": "teacher: write file:PATH",
    "train --data d --out o --teacher file:a": "d is not a store",
    "tune --data d --out o --teacher file://a/b": "teacher: write file:a/b",
    "tune --data d --out o --teacher http://host:1": "teacher: an address has no http://; write host:1",
    "tune --data d --out o --teacher host:1 trials=2": "less than the 3 points tried first (points=[]: none)",
    "train --data d --out o": "d is not a store",
    "train --data d --out o seed=-1": "seed: ",
    "train --data d --out o batch.sample_seed=100000000000000000000000": "batch.sample_seed: ",
    "train --data d --out o batch.labelled_passes=100000000": "batch.labelled_passes: ",
    "train --data d --out o batch.sampled_trips=10": "give batch.sampled=DIR",
    "train --data d --out o batch.sampled=s": "nothing is learned from them without a teacher",
    "train --data d --out o --teacher host:1 distill.sampled_labels=1": "give batch.sampled=DIR",
    "train --data d --out o --teacher host:1 distill.sampled_weight=1": "give batch.sampled=DIR",
    "train --data d --out o --teacher t.pt": "teacher: t.pt looks like a file",
    "train --data d --out o data=x optim={}": "x is not a store",
    "answer --data d --out o --teacher t 'windows={a: 1}'": "windows: expected a list, as in [1, 2]",
    "pretrain --data d --out o candidate_windows=": "d is not a store",
    "train --data d --out o --teacher host:1 distill.head=0 distill.collisions=duplicate": "has neither",
    "tune --data d --out o --teacher host:1": "d is not a store",
    "sample --data d --teacher host:1 --out o": "d is not a store",
    "sample --data d --teacher none --out o": "trips are drawn from a teacher",
    "sample --data d --teacher host:1 --out o sample_seed=-3": "sample_seed: ",
    "sample --data d --teacher host:1 --out o max_roads=1000000000000000": "max_roads: ",
    "sample --data d --teacher host:1 --out o client.on_failure=skip": "a trip has no step that can be skipped",
    "headroom --data d --teacher host:1 --weights w": "d is not a store",
    "headroom --data d --teacher none --weights w": "it is the teacher's headroom; give its address",
    "headroom --data d --teacher host:1 --weights w client.on_failure=skip": "no position can be left out",
    "predict --data d --weights w --out o split=x": "split: ",
    "predict --data d --weights w --out o.npz": "d is not a store",
    "predict --data d --weights w --out o": "out must end in .npz",
    "predict --data d --weights w --trip 1": "give --destination ROAD",
    "student-trainer export --data d --weights w --out o": "out: must end in .pt2",
    "student-trainer export --data d --weights w --out o.pt2": "d is not a store",
    "generate --data d --weights w --out o": "d is not a store",
    "evaluate --data d --trips t --out o": "d is not a store",
    "compare --evaluations a,b --out o": "a/metrics.json does not exist",
    "report --data d --evaluations a,b --out o": "a/metrics.json does not exist",
    "bundle --report r --out o.zip": "r is no report",
    "pipeline --data d --models m --out o": "d is not a store",
    "serve --teacher t": "no teacher file at t",
    "serve --teacher t --listen http://host:1": "listen: an address has no http://; write host:1",
    "serve --teacher t --listen t.pt": "listen: expected HOST:PORT, [IPV6]:PORT or unix:PATH; a host or a port",
    "answer --data d --out o": "give either --teacher FILE or --address HOST:PORT",
    "answer --data d --out o --teacher t": "d is not a store",
    "answer --data d --out . --address host:1": ". exists; choose another --out",
    "answer --data d --out o --address file:a": "address: ",
    "pretrain --data d --out o": "d is not a store",
    "pretrain --data d --out .": ". exists; choose another --out",
    "export --checkpoint c --out .": ". exists; choose another --out",
    "info --address host:0": "address: port 0 is nowhere",
    "query --address grpc://host:1 --candidates 1": "address: an address has no grpc://; write host:1",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """To the commands of `REFUSED`, none of which leaves anything behind."""
    folder = tmp_path_factory.mktemp("refused")
    found = probe(list(REFUSED), folder)
    assert list(folder.iterdir()) == []
    return found


@pytest.mark.parametrize(("line", "message"), REFUSED.items(), ids=REFUSED)
def test_what_is_not_there_is_refused_before_slow_imports(line: str, message: str, answers: dict[str, Answer]) -> None:
    code, slow, err = answers[line]
    assert (code, slow) == (2, [])
    assert message in err
    assert "Traceback" not in err


@each_job
def test_every_flag_may_be_given_once(program: str, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    """But for --config, which is a list; a second value would silently replace the first."""
    for flag in (*job.flags, cli.Flag("--log-level", "log_level", "", "LEVEL")):
        value = "info" if flag.key == "log_level" else "1"
        once = [flag.name] + [value] * (0 if flag.is_switch else int(flag.nargs or 1))
        with pytest.raises(SystemExit) as ended:
            cli.main(program, "", [job], [job.name, *once, *once])
        assert ended.value.code == 2
        assert f"{flag.name}: given twice" in capsys.readouterr().err


def replayed(program: str, job: Job, values: dict[str, Any]) -> Any:
    line = cli.command(program, job.name, *config.as_overrides(values))
    with pytest.MonkeyPatch.context() as patch:
        return parsed_settings(program, shlex.split(line)[1:], patch)


@each_job
def test_every_commands_settings_are_replayed_exactly(program: str, job: Job) -> None:
    schema = cli._import(job.schema)
    settings = config.load(schema, job.yaml_section, [], needed_settings(job))
    assert replayed(program, job, settings.model_dump(mode="json")) == settings


TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=12) | st.sampled_from(
    [
        "work/run #2/store",
        "0.3",
        "2024",
        "true",
        "007",
        "null",
        "[::1]:50051",
        "a: b",
        " a ",
        "$HOME",
        "~",
        "'",
        '"',
        "[x",
    ]
)


@given(TEXT, TEXT, st.none() | TEXT, st.lists(TEXT, max_size=3))
def test_any_text_in_a_run_is_replayed_exactly(data: str, out: str, name: str | None, tags: list[str]) -> None:
    program, job = next((program, job) for program, job in JOBS if job.name == "train")
    log = {"wandb_name": name, "wandb_tags": tags, "wandb_project": data}
    settings = config.validate(cli._import(job.schema), {"data": data, "out": out, "log": log, "teacher": "[::1]:1"})
    assert replayed(program, job, settings.model_dump(mode="json")) == settings
