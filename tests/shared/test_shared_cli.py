"""The command line on a job of its own: exit codes, messages, flags, help."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shared
from shared import cli, config, log
from shared.cli import Flag, Job
from shared.config import Section
from shared.errors import DataError, InvalidRequest


class Settings(Section):
    """Settings of the job below."""

    out: str
    """Where to."""
    rows: int | None = None
    """How many rows."""
    bounds: tuple[float, float] | None = None
    """From and to."""
    strict: bool = False
    """Whether to be strict; 100 % of the time."""
    names: str = ""
    """Names."""
    level: float = pydantic.Field(0.5, gt=0)
    """A level."""


class LogSettings(Section):
    """Of log lines."""

    format: log.Format = "text"
    """How they look."""


class Logged(Settings):
    """The same, of a job that has settings of its log."""

    log: LogSettings = LogSettings()
    """Lines."""


JOB = Job(
    "train",
    "does what a test wants",
    f"{__name__}:Settings",
    f"{__name__}:run",
    (
        Flag("--out", "out", "where to", "OUT"),
        Flag("--rows", "rows", "how many", "R"),
        Flag("--bounds", "bounds", "from and to", ("A", "B"), nargs=2),
        Flag("--strict", "strict", "refuse", is_switch=True),
        Flag("--names", "names", "names", "NAME[,NAME...]"),
    ),
)
OTHER = Job("serve", "is another one", "nowhere:Nothing", "nowhere:nothing")

seen: list[Settings] = []
outcome: list[BaseException | int | None] = [None]


def run(settings: Settings) -> int | None:
    seen.append(settings)
    (result,) = outcome
    if isinstance(result, BaseException):
        raise result
    return result


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing seen, a job that ends well, and the root logger as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    seen.clear()
    outcome[:] = [None]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def main(*argv: str) -> int:
    return cli.main("program", "Does things.", [JOB, OTHER], argv)


def settings_of(*argv: str) -> Settings:
    assert main("train", *argv) == 0
    return seen[-1]


def test_flags_become_settings() -> None:
    settings = settings_of("--out", "here", "--rows", "3", "--bounds", "-1.5", "2e-1", "--strict")
    assert settings == Settings(out="here", rows=3, bounds=(-1.5, 0.2), strict=True)
    assert settings_of("--out=here") == Settings(out="here")


def test_flags_win_over_files_and_overrides_over_flags(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("train: {out: file, rows: 1, level: 0.1}")
    second.write_text("train: {rows: 2, strict: true}")
    assert settings_of("--config", str(first)) == Settings(out="file", rows=1, level=0.1)
    both = settings_of("--config", str(first), str(second), "--out", "flag")
    assert both == Settings(out="flag", rows=2, level=0.1, strict=True)
    assert settings_of("--config", str(first), "--config", str(second)).rows == 2
    assert settings_of("--rows", "5", "rows=6", "--config", str(first)).rows == 6


def test_overrides_may_follow_config(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("train: {out: file}")
    settings = settings_of("--config", str(path), "rows=4", "level=3e-4")
    assert settings == Settings(out="file", rows=4, level=3e-4)
    odd = tmp_path / "a=b.yaml"
    odd.write_text("train: {out: odd}")
    assert settings_of("--config", str(odd), "rows=4") == Settings(out="odd", rows=4)
    assert settings_of("--config", str(path), f"out={'x' * 5000}").out == "x" * 5000  # longer than a file's name


def test_a_file_does_not_change_what_an_override_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.yaml", "rows=4"):
        Path(name).write_text("train: {out: file}")
    assert settings_of("--config", "a.yaml", "rows=4") == Settings(out="file", rows=4)
    assert settings_of("--config", "./rows=4") == Settings(out="file")


def test_settings_may_stand_anywhere_among_the_flags() -> None:
    expected = Settings(out="o", rows=5, level=0.25, strict=True)
    assert settings_of("rows=4", "--out", "o", "rows=5", "--strict", "level=0.25") == expected
    assert settings_of("--strict", "rows=4", "rows=5", "--out", "o", "level=0.25") == expected
    assert settings_of("rows=3", "--strict", "--out=o", "rows=5", "--log-level", "info", "level=0.25") == expected


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20), st.none() | st.integers())
def test_a_printed_command_is_read_as_it_was(text: str, rows: int | None) -> None:
    settings = Settings(out=text, rows=rows, bounds=(-1.5, 1e-300))
    line = cli.command("program", "train", *config.as_overrides(settings.model_dump(mode="json")))
    program, *argv = shlex.split(line)
    assert program == "program"
    assert settings_of(*argv[1:]) == settings


def test_a_printed_command_survives_a_shell() -> None:
    argv = ["train", "out=run #2/$HOME `x` \"'\\ \n*[1]", "name=", "rows=[1, 2]", "-- ; &"]
    script = f"set -- {cli.command('program', *argv)}; printf '%s\\0' \"$@\""
    read = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True).stdout.decode()
    assert read.split("\0")[:-1] == ["program", *argv]


@given(st.text(st.characters(exclude_characters="\0"), max_size=20).filter(lambda text: not text.startswith("-")))
def test_a_flags_text_stays_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert settings_of("--out", text).out == text
    assert settings_of(f"--out=-{text}").out == f"-{text}"


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "1",
        "true",
        "[a",
        "{a: b}",
        "a: b",
        "# x",
        "it's",
        '"',
        "a\nb",
        " a ",
        "é",
        "\U0001f600",
        "*a",
        "&a",
        "!a",
        "%",
        "a=b",
        "0.5e",
        "\x07",
    ],
)
def test_odd_characters_do_not_matter(text: str) -> None:
    assert settings_of("--out", text).out == text


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1), (3, 3), (BrokenPipeError(), 1)])
def test_exit_code_of_a_job(result: BaseException | int | None, code: int) -> None:
    outcome[:] = [result]
    assert main("train", "--out", "o") == code


@pytest.mark.parametrize("error", [DataError("train.csv:3: what, how"), InvalidRequest("window: too long")])
def test_a_reportable_error_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    outcome[:] = [error]
    assert main("train", "--out", "o") == 2
    assert capsys.readouterr() == ("", f"program train: {error}\n")


def test_the_machines_trouble_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    outcome[:] = [OSError(errno.ENOSPC, "No space left on device", "runs/last.pt")]
    assert main("train", "--out", "o") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "No space left on device: 'runs/last.pt'" in err


def test_termination_interrupts_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), cli._terminated_as_interrupted():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    outcome[:] = [KeyboardInterrupt()]
    assert main("train", "--out", "o") == 130
    assert capsys.readouterr() == ("", "program train: interrupted\n")


def test_a_defect_keeps_its_traceback() -> None:
    outcome[:] = [ZeroDivisionError()]
    with pytest.raises(ZeroDivisionError):
        main("train", "--out", "o")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "program train: out is required"),
        (["--out", "o", "--rows", "many"], "program train: rows: Input should be a valid integer"),
        (["--out", "o", "colour=red"], "program train: unknown setting colour; known here: out, rows, bounds"),
        (["--out", "o", "levl=1"], "program train: unknown setting levl (did you mean level?); known here: out, rows"),
        (["--out", "o", "level=0"], "program train: level: Input should be greater than 0"),
        (["--out", "o", "word"], "program train: cannot read override 'word'"),
        (["--config", "missing.yaml"], "program train: cannot read configuration missing.yaml"),
    ],
)
def test_bad_settings_are_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("train", *argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert not seen


@pytest.mark.parametrize(
    "argv",
    [[], ["unknown"], ["train", "--colour", "red"], ["train", "--bounds", "1"], ["train", "--log-level", "loud"]],
)
def test_a_bad_command_line_shows_the_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(*argv)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: program")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--out", "a b", "--out", "c"], "argument --out: given twice, 'a b' and c; give it once"),
        (["--out", "a", "rows=1", "--ou", "a"], "argument --out: given twice, a and a; give it once"),
        (["--bounds", "1", "2", "--bounds=3", "4"], "argument --bounds: expected 2 arguments"),
        (["--bounds", "1", "2", "--bounds", "3", "4"], "argument --bounds: given twice, 1 2 and 3 4; give it once"),
        (["--strict", "--strict"], "argument --strict: given twice; give it once"),
        (["--log-level", "info", "--log-level", "debug"], "argument --log-level: given twice, info and debug"),
        (["--names", "a", "--names", "b"], "--names: given twice; several go into one, separated by commas: a,b"),
    ],
)
def test_a_flag_given_twice_is_refused(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main("train", *argv)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not seen


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--level", "3"], "unknown flag --level; did you mean level=3?"),
        (["--out", "o", "rows=1", "--levl=0.5", "level=1"], "unknown flag --levl; did you mean level=0.5?"),
        (["--ouput", "x y"], "unknown flag --ouput; did you mean --out or 'out=x y'?"),
        (["--lev"], "unknown flag --lev; did you mean level=VALUE?"),
        (["--lev", "--strict"], "unknown flag --lev; did you mean level=VALUE?"),
        (["--colour", "red"], "unknown flag --colour"),
    ],
)
def test_an_unknown_flag_is_told_its_setting(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main("train", *argv)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("usage: program train ")
    assert err.endswith(f"program train: error: {message}\n")
    assert not seen


def test_what_can_be_refused_early_is_refused_before_the_job_is_imported(capsys: pytest.CaptureFixture[str]) -> None:
    job = Job("train", "checks", f"{__name__}:Settings", "nowhere:run", check=f"{__name__}:refuse")
    assert cli.main("program", "", [job], ["train", "out=o"]) == 2
    assert capsys.readouterr().err == "program train: no o\n"


def refuse(settings: Settings) -> None:
    raise DataError(f"no {settings.out}")


def test_help_of_a_job_lists_flags_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main("train", "--help")
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for text in ("--out OUT", "--bounds A B", "--config", "--log-level", "does what a test wants", "under 'train:'"):
        assert text in out
    for text in ("out = required", "rows =\n", "strict = false", "level = 0.5", "strict; 100 % of the time."):
        assert text in out


def test_help_lists_the_jobs_without_importing_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main("--help")
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "Does things." in out
    assert "does what a test wants" in out
    assert "is another one" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main("--version")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"program {shared.__version__}\n")


def test_log_level_reaches_the_logger(capsys: pytest.CaptureFixture[str]) -> None:
    settings_of("--out", "o", "--log-level", "error")
    logging.getLogger("x").warning("unheard")
    assert capsys.readouterr().err == ""


def logged_by(*argv: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, str]]]:
    """The exit code, and the lines of JSON on stderr."""
    code = main("train", "--out", "o", *argv)
    return code, [json.loads(line) for line in capfd.readouterr().err.splitlines()]


@pytest.mark.parametrize(
    "ending, code, level, message",
    [
        (DataError("row 3 is wrong"), 2, "error", "program train: row 3 is wrong"),
        (KeyboardInterrupt(), 130, "error", "program train: interrupted"),
        (OSError(errno.ENOSPC, "no space"), 1, "error", "program train: [Errno 28] no space"),
        (RuntimeError("a bug"), 1, "critical", "program train failed unexpectedly"),
    ],
)
def test_lines_for_machines_to_the_end(
    ending: BaseException, code: int, level: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome[:] = [ending]
    got, (line,) = logged_by("--log-format", "json", capfd=capfd)
    assert (got, line["level"], line["message"]) == (code, level, message)
    assert line.get("exception", "").endswith("RuntimeError: a bug") == isinstance(ending, RuntimeError)


def test_a_setting_says_the_format_and_the_flag_sets_it(capfd: pytest.CaptureFixture[str]) -> None:
    job = dataclasses.replace(JOB, log_format="log.format", schema=f"{__name__}:Logged")
    outcome[:] = [DataError("wrong")]
    for argv, is_json in (
        (["log.format=json"], True),
        (["--log-format", "json"], True),
        (["--log-format", "json", "log.format=text"], False),  # overrides win over flags
        ([], False),
    ):
        assert cli.main("program", "Does things.", [job], ["train", "--out", "o", *argv]) == 2
        assert capfd.readouterr().err.startswith("{") == is_json
