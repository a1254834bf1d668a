"""The command line of both packages: a table of jobs, each a schema and a function.

What people type by hand has a flag; every other setting is an override `key=value`
or a line in a YAML file. `--help` of a job lists its settings from the schema. What is
wrong with a command line is said before the job's own module, and torch with it, is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import logging
import operator
import re
import shlex
import signal
import textwrap
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from shared import completion, config, extras, log, provenance
from shared.errors import ConfigError, ReportableError
from shared.flags import Once

logger = logging.getLogger(__name__)

DEFAULT_LEVEL: log.Level = "info"


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag that sets one key of the job's schema."""

    name: str
    key: str
    help: str
    metavar: str | tuple[str, ...] | None = None
    nargs: int | str | None = None
    is_switch: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """A command: `schema`, `run` and `check` are import paths `module:name`, imported only when needed.

    `check` refuses what can be refused without `run`'s imports, which take seconds.
    """

    name: str
    summary: str
    schema: str
    run: str
    flags: tuple[Flag, ...] = ()
    extra: str | None = None
    """The extra that it needs, if not its program's own."""
    check: str = ""
    section: str = ""
    """Of YAML files, where another program has a job of the same name; otherwise the job's name."""

    @property
    def yaml_section(self) -> str:
        """Where its settings stand in a YAML file."""
        return self.section or self.name

    log_format: str = ""
    """The key of its schema that says how log lines look; empty: only the flag says it."""


def declared(table: Mapping[str, str]) -> tuple[Job, ...]:
    """The jobs of a table of `shared.jobs`, in its order; imports their declarations, which import nothing slow."""
    return tuple(_import(place) for place in table.values())


def main(
    program: str, description: str, jobs: Sequence[Job], argv: Sequence[str] | None = None, extra: str | None = None
) -> int:
    """Parses, configures, runs; returns the exit code (0 done, 1 failed, 2 bad input, 130 interrupted).

    Args:
        program: what people call it.
        description: one sentence for its help.
        jobs: its commands.
        argv: arguments; those of the process if None.
        extra: of the installation, needed by every job that names none; None if none is.
    """
    jobs = [job if job.extra else dataclasses.replace(job, extra=extra) for job in jobs]
    parser = _Parser(program, description=description)
    parser.add_argument("--version", action=_Version, nargs=0, help="versions, commit and devices")
    parser.add_argument(
        "--print-completion", choices=completion.SHELLS, action=_Completion, help="a script that completes commands"
    )
    parser.jobs = jobs
    commands = parser.add_subparsers(dest="job", metavar="COMMAND", required=True, parser_class=_JobParser)
    for job in jobs:
        _add_job(commands, job)
    arguments = parser.parse_args(argv)
    job = next(job for job in jobs if job.name == arguments.job)
    log.setup(arguments.log_level or DEFAULT_LEVEL, arguments.log_format or "text")
    with contextlib.ExitStack() as ending:
        return _run(f"{program} {job.name}", job, arguments, ending)


def _run(name: str, job: Job, arguments: argparse.Namespace, ending: contextlib.ExitStack) -> int:
    """Runs a job and says how it failed; what `ending` holds is closed after that."""
    try:
        with extras.needed(job.extra):
            settings = _settings(job, arguments)
            ending.enter_context(log.captured())
            with _terminated_as_interrupted():
                if job.check:
                    _import(job.check)(settings)
                return int(_import(job.run)(settings) or 0)
    except ReportableError as error:
        log.say(name, str(error))
        return 2
    except KeyboardInterrupt:
        log.say(name, "interrupted")
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:  # a full disk, a directory that may not be written: the machine's trouble, no bug
        logger.debug("the failure in full", exc_info=True)
        log.say(name, str(error))
        return 1
    except Exception:
        if not log.is_json():
            raise
        logger.critical("%s failed unexpectedly", name, exc_info=True)  # as one line; a traceback is many
        return 1


def _settings(job: Job, arguments: argparse.Namespace) -> config.Section:
    """What the command line and its files say; log lines look as they say from here on."""
    paths, overrides = _split(arguments.config)
    flags = {flag.key: given for flag in job.flags if (given := getattr(arguments, flag.key)) is not None}
    if arguments.log_format and job.log_format:
        flags[job.log_format] = arguments.log_format
    settings: config.Section = config.load(
        _import(job.schema), job.yaml_section, paths, [*overrides, *arguments.overrides], flags
    )
    if job.log_format:
        log.setup(arguments.log_level or DEFAULT_LEVEL, log_format(job, settings))
    return settings


def log_format(job: Job, settings: config.Section) -> log.Format:
    """What a job's settings say of log lines."""
    found: log.Format = operator.attrgetter(job.log_format)(settings)
    return found


def command(program: str, *arguments: str) -> str:
    """A command line as one types it: a shell reads the same arguments."""
    return shlex.join([program, *arguments])


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Makes SIGTERM end a job as Ctrl-C does, with its checkpoint written and its temporary files removed.

    Schedulers and containers stop with SIGTERM. A job with handlers of its own replaces this one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Parser(argparse.ArgumentParser):
    """The parser of a program, which knows its commands."""

    jobs: Sequence[Job]


class _Version(argparse.Action):
    """Prints what is installed, where it is from and what it can run on."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(provenance.versions(parser.prog))
        parser.exit()


class _Completion(argparse.Action):
    """Prints a script for a shell."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, shell: Any, option: object = None) -> None:
        assert isinstance(parser, _Parser)
        words = {}
        for job in parser.jobs:
            flags = [*(flag.name for flag in job.flags), "--config", "--log-level", "--help"]
            with contextlib.suppress(ImportError):  # the settings of a command whose extra is missing
                flags += [f"{key}=" for key, _, _ in config.describe(_import(job.schema))]
            words[job.name] = flags
        print(completion.script(parser.prog, str(shell), words), end="")
        parser.exit()


class _JobParser(argparse.ArgumentParser):
    """A parser of a job: settings may stand anywhere among the flags, and help ends with them."""

    job: Job

    def format_help(self) -> str:
        where = f"key=value, or in a YAML file under '{self.job.yaml_section}:'; key= for none"
        lines = [super().format_help(), f"settings ({where}):"]
        try:
            with extras.needed(self.job.extra):
                described = config.describe(self._schema)
        except ConfigError as error:
            return "\n".join([*lines, f"  {error}"]) + "\n"
        for key, default, doc in described:
            lines.append(f"  {key} = {default}".rstrip())
            lines += textwrap.wrap(doc, 96, initial_indent="      ", subsequent_indent="      ")
        return "\n".join(lines) + "\n"

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As its parent, which takes only one group of settings and leaves those after the next flag over."""
        found, left = super().parse_known_args(args, namespace)
        for text in left:
            if text.startswith("-"):
                self.error(f"unknown flag {text.partition('=')[0]}{self._advice(text, args or ())}")
        found.overrides = [*found.overrides, *left]
        return found, []

    def _advice(self, flag: str, args: Sequence[str]) -> str:
        """The setting that an unknown flag may stand for, with its value, or flags like it."""
        name, equals, value = flag.lstrip("-").partition("=")
        if not equals:
            place = list(args).index(flag)
            value = next(iter(args[place + 1 : place + 2]), "")
            if not value or value.startswith("-") or "=" in value:
                value = "VALUE"
        flags = {known.name.lstrip("-"): known.name for known in self.job.flags}
        near = [flags[found] for found in config.similar(name, list(flags))]
        near += [f"{key}={value}" for key in config.similar(name, [k for k, _, _ in config.describe(self._schema)])]
        return f"; did you mean {' or '.join(shlex.quote(text) for text in near[:3])}?" if near else ""

    @property
    def _schema(self) -> Any:
        return _import(self.job.schema)


def _add_job(commands: Any, job: Job) -> None:
    parser = commands.add_parser(job.name, help=job.summary, description=job.summary)
    parser.job = job
    for flag in job.flags:
        if flag.is_switch:
            parser.add_argument(flag.name, dest=flag.key, action=Once, nargs=0, help=flag.help)
        else:
            parser.add_argument(
                flag.name, dest=flag.key, action=Once, metavar=flag.metavar, nargs=flag.nargs, help=flag.help
            )
    parser.add_argument(
        "--config",
        nargs="+",
        action="extend",
        default=[],
        metavar="YAML",
        help="configuration files; a later one wins",
    )
    levels = get_args(log.Level)
    parser.add_argument(
        "--log-level", action=Once, choices=levels, help=f"what is worth a line (default {DEFAULT_LEVEL})"
    )
    parser.add_argument(
        "--log-format", action=Once, choices=get_args(log.Format), help="lines for people, or for machines (text)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any setting below, a.b=value")


def _split(after_config: list[str]) -> tuple[list[Path], list[str]]:
    """Paths and overrides: `--config a.yaml b.yaml key=value` takes them all; ./a=b.yaml is a path."""
    overrides = [text for text in after_config if re.match(r"[\w.]+=", text)]
    return [Path(text) for text in after_config if text not in overrides], overrides


def _import(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
