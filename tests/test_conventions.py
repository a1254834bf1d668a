"""What holds for the whole code base: who imports whom, what is documented, what is never written."""

from __future__ import annotations

import ast
import functools
import importlib.util
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY
from support.command_lines import PACKAGES, parsed_settings

from student_trainer.__main__ import JOBS as STUDENT_JOBS
from teacher_server.__main__ import JOBS as TEACHER_JOBS

ROOTS = ("shared", "teacher_server", "student_trainer")
GENERATED = REPOSITORY / "shared" / "rpc" / "teacher"
MODULES = sorted(
    path for root in ROOTS for path in (REPOSITORY / root).rglob("*.py") if not path.is_relative_to(GENERATED)
)
SOURCES = sorted([*MODULES, *(path for path in (REPOSITORY / "tests").rglob("*.py") if path != Path(__file__))])
README, DOCS = REPOSITORY / "README.md", REPOSITORY / "docs"
PAGES = [README, REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
LONGEST_PAGE = 150
"""Lines of a page that people write."""

ALLOWED = {
    "shared.errors": set(),
    "shared.arrays": set(),
    "shared.ragged": {"shared.arrays"},
    "shared.log": set(),
    "shared.provenance": {"shared", "shared.files"},
    "shared.lock": set(),
    "shared.files": {"shared.errors", "shared.lock"},
    "shared.claims": {"shared.errors", "shared.files", "shared.lock"},
    "shared.torch_archive": {"shared.errors"},
    "shared.jobs": set(),
    "shared.config": {"shared", "shared.errors", "shared.files", "shared.jobs"},
    "shared.extras": {"shared", "shared.errors"},
    "shared.processes": set(),
    "shared.flags": set(),
    "shared.floors": set(),
    "shared.progress": set(),
    "shared.completion": set(),
    "shared.cli": {
        *(
            "shared",
            "shared.completion",
            "shared.config",
            "shared.errors",
            "shared.extras",
            "shared.flags",
            "shared.log",
        ),
        "shared.provenance",
    },
    "shared.grid": {"shared.arrays", "shared.config", "shared.errors"},
    "shared.vocab": {"shared.arrays", "shared.errors", "shared.files", "shared.grid"},
    "shared.demo": {
        *("shared", "shared.claims", "shared.cli", "shared.errors", "shared.flags", "shared.floors", "shared.lock"),
        *("shared.log", "shared.processes", "shared.provenance"),
    },
    "shared.address": set(),
    "shared.training.stop": set(),
    "shared.training.launch": set(),
    "shared.training.heartbeats": set(),
    "shared.training.group": {"shared.training.heartbeats"},
    "shared.training.ranks": {
        *("shared", "shared.arrays", "shared.errors", "shared.log"),
        *("shared.training.group", "shared.training.heartbeats"),
    },
    "shared.training.states": {"shared.errors"},
    "shared.training.generations": {"shared", "shared.errors", "shared.files"},
    "shared.sinks": {"shared", "shared.errors", "shared.files"},
    "shared.training.logbook": {"shared", "shared.errors", "shared.files", "shared.sinks"},
}
"""All that some modules of `shared` may import of it; what lies below does not know what lies above."""


def drawn_rooms(package: str) -> dict[str, set[str]]:
    """Which room may import which, as a table of docs/architecture.md says."""
    (table,) = re.findall(
        rf"^\| `{package}` \|.*\n\|[ -|]+\n((?:\|.*\n)+)", (DOCS / "architecture.md").read_text("utf-8"), re.MULTILINE
    )
    rows = [[re.findall(r"`(\w+)[/.\w]*`", cell) for cell in row.split(" | ")] for row in table.splitlines()]
    return {f"{package}.{room}": {f"{package}.{name}" for name in row[-1]} for row in rows for room in row[0]}


ROOMS = {package: drawn_rooms(package) for package in ("student_trainer", "teacher_server")}
"""Which part of a program knows which, as docs/architecture.md draws it: data flows one way."""

STACKS = {"torch", "torch_geometric", "grpc", "polars", "kahip", "optuna"}
"""What `shared` must not drag in."""
MAY_USE = {"shared.rpc": {"grpc"}, "shared.training": {"torch"}}
"""But for these, which nothing else of `shared` imports."""

BANNED = (
    r"(?<![.\w])(eval|exec)\(",
    r"pickle\.loads?\(",
    r"allow_pickle\s*=\s*True",
    r"weights_only\s*=\s*False",
    r"yaml\.(unsafe_load|full_load)",
    r"shell\s*=\s*True",
    r"\b(TODO|FIXME|XXX|HACK)\b",
    r"raise NotImplementedError",
    r"breakpoint\(",
)


UNPICKLES = {"shared.compiled"}
"""What reads pickles: of files that this user alone can have written, and that begin with their digest."""


def name_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


NAMES = {name_of(path) for path in MODULES}


def imports_of(path: Path) -> set[str]:
    """Modules that a module imports, anywhere in it; of this code base by their own names."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & NAMES
            found |= inner or {node.module}
            if len(inner) < len(node.names):
                found.add(node.module)
    return found


def room_of(name: str) -> str:
    """The room of a module of a program: a package, or the module itself."""
    return ".".join(name.split(".")[:2])


def offenders(rule: Callable[[Path], Iterable[object]], paths: Iterable[Path] = MODULES) -> dict[str, list[object]]:
    """What breaks a rule, file by file; nothing where it holds. (One test for all files: an item each took 20 s.)"""
    found = {name_of(path): list(rule(path)) for path in paths}
    return {name: faults for name, faults in found.items() if faults}


def test_imports_go_one_way() -> None:
    def forbidden(path: Path) -> Iterator[str]:
        name = name_of(path)
        package = name.partition(".")[0]
        stacks = set() if package != "shared" else STACKS - MAY_USE.get(".".join(name.split(".")[:2]), set())
        for other in imports_of(path):
            root = other.partition(".")[0]
            is_above = root == "shared" and name in ALLOWED and other not in ALLOWED[name]
            is_above |= package == "shared" and other.startswith("shared.training") > name.startswith("shared.training")
            if root in stacks | set(ROOTS) - {package, "shared"} or other.endswith("__main__") or is_above:
                yield other

    assert not offenders(forbidden)


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_of_a_program_know_what_lies_below_them(package: str) -> None:
    rooms = ROOMS[package]

    def above(path: Path) -> set[str]:
        room = room_of(name_of(path))
        others = {room_of(other) for other in imports_of(path) if other.startswith(f"{package}.")} - {room}
        return others - rooms[room]

    assert not offenders(above, [path for path in MODULES if room_of(name_of(path)) in rooms])


@pytest.mark.parametrize("package", ROOMS)
def test_every_module_has_its_room_in_the_table_and_none_is_in_a_circle(package: str) -> None:
    rooms = ROOMS[package]
    assert {room_of(name) for name in NAMES if name.startswith(f"{package}.")} - {f"{package}.__main__"} == rooms.keys()
    left = dict(rooms)
    while leaves := [room for room, imported in left.items() if not imported & left.keys()]:
        for room in leaves:
            del left[room]
    assert not left, "these import each other in a circle, or are imported by one"


def test_no_module_imports_itself_through_others() -> None:
    graph = {name_of(path): imports_of(path) & NAMES - {name_of(path)} for path in MODULES}
    while leaves := [name for name, imported in graph.items() if not imported & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, "these import each other in a circle, or are imported by one"


def test_shared_is_imported_without_either_stack() -> None:
    modules = [name for name in sorted(NAMES) if name.startswith("shared") and room_of(name) not in MAY_USE]
    code = f"import sys, {', '.join(modules)}; print(*sorted({STACKS!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "\n"


def public_definitions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Functions and classes of a module and methods of its classes, where every name on the way is public."""
    pending: list[tuple[str, ast.AST]] = [("", tree)]
    while pending:
        prefix, parent = pending.pop()
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith(
                "_"
            ):
                yield prefix + node.name, node
                if isinstance(node, ast.ClassDef):
                    pending.append((f"{prefix}{node.name}.", node))


def is_overload(node: ast.AST) -> bool:
    """Whether it only adds types to a function, which stands below it."""
    return any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in getattr(node, "decorator_list", ()))


def functions_of(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions of a file, inner ones and methods too."""
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@functools.cache
def called_in(path: Path) -> frozenset[str]:
    """The functions that a file calls, as it writes them."""
    return frozenset(ast.unparse(node.func) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call))


def test_what_is_public_has_a_docstring() -> None:
    def undescribed(path: Path) -> Iterator[str]:
        if not ast.get_docstring(tree_of(path)):
            yield "the module"
        for name, node in public_definitions(tree_of(path)):
            if not is_overload(node) and not ast.get_docstring(node):
                yield name

    assert not offenders(undescribed)


def test_test_modules_say_what_they_are_about() -> None:
    assert [name_of(path) for path in SOURCES if path not in MODULES and not ast.get_docstring(tree_of(path))] == []


def test_every_function_is_annotated() -> None:
    """As mypy demands; kept here so that it holds without mypy."""

    def bare(path: Path) -> Iterator[str]:
        for node in functions_of(path):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            yield from (
                f"{node.name}: {argument.arg}"
                for argument in arguments
                if argument.annotation is None and argument.arg not in {"self", "cls"}
            )
            if node.returns is None:
                yield f"{node.name}: what it returns"

    assert not offenders(bare)


def test_nothing_banned_is_written() -> None:
    def banned(path: Path) -> list[str]:
        return [pattern for pattern in BANNED if re.search(pattern, path.read_text(encoding="utf-8"))]

    assert offenders(banned) == {name: [r"pickle\.loads?\("] for name in UNPICKLES}


def test_percentages_have_a_blank() -> None:
    """As everywhere else that people read them: 12.3 %."""

    def percentages(path: Path) -> Iterator[str]:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FormattedValue) and node.format_spec and "%" in ast.unparse(node.format_spec):
                yield ast.unparse(node)

    assert not offenders(percentages)


def test_numba_is_used_through_one_module() -> None:
    """Which decides where what it compiles is kept, and what of it is trusted."""
    importers = {name_of(path) for path in MODULES if any(re.match(r"numba\b", name) for name in imports_of(path))}
    assert importers == {"shared.compiled"}


def test_torch_geometric_is_the_tests_reference_alone() -> None:
    """Importing it takes longer than all else that a command imports."""
    assert not offenders(lambda path: {name for name in imports_of(path) if re.match(r"torch_geometric\b", name)})


def test_progress_bars_are_drawn_through_one_module() -> None:
    """Which decides where a bar may be: never in a file."""
    bars = {"tqdm.tqdm", "tqdm.trange", "tqdm", "trange", "tqdm.auto.tqdm"}
    assert {name_of(path) for path in MODULES if called_in(path) & bars} == {"shared.progress"}


def test_only_commands_print() -> None:
    assert {name_of(path) for path in MODULES if "print" in called_in(path)} <= PRINTERS


PRINTERS = {job.run.partition(":")[0] for job in (*STUDENT_JOBS, *TEACHER_JOBS)} | {
    *("shared.cli", "shared.demo", "student_trainer.tune.worker"),
    *("teacher_server.client.healthcheck", "teacher_server.precompile"),
}
"""What runs a job, and other programs."""


LONGEST_FILE, LONGEST_FUNCTION = 300, 40
"""Lines; of a function without its signature and docstring."""
LONG_FILES = {
    "shared.config": "one place for what a setting may be, how it is read and how it is printed",
    "shared.files": "one place for all writers: atomic, through links, on full disks",
    "shared.wire": "encoding and decoding of one contract, side by side",
    "teacher_server.answers.compiled": "the layout of one memory, which its readers and writers must agree about",
    "teacher_server.answers.table": "the compiled functions of one table, with their arrays",
    "teacher_server.engine.compiled": "one pass over a batch's tokens, in phases that share their arrays",
    "teacher_server.engine.engine": "two ways to compute, which must be the same but for the device",
    "teacher_server.lmtad.model": "one architecture",
    "student_trainer.generate.run": "one job",
    "student_trainer.prepare.raw": "one format",
    "student_trainer.train.cuda_graphs": "a recorded step, and what it falls back to",
}
LONG_FUNCTIONS = {
    "teacher_server.answers.compiled.split": "a request's phases share their cursors; calls cost more",
    "teacher_server.engine.engine.__init__": "what is chosen depends on what was chosen before",
    "student_trainer.tune.trial.train": "the seeds of a trial advance together",
}


def length_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_files_and_functions_are_short_or_say_why() -> None:
    long_files = {name_of(path) for path in MODULES if len(path.read_text("utf-8").splitlines()) > LONGEST_FILE}
    assert long_files == LONG_FILES.keys()
    functions = ((f"{name_of(path)}.{node.name}", length_of(node)) for path in MODULES for node in functions_of(path))
    assert {name for name, length in functions if length > LONGEST_FUNCTION} == LONG_FUNCTIONS.keys()


def test_every_test_module_has_a_name_of_its_own() -> None:
    """pytest imports them by their file names alone."""
    names = [path.name for path in (REPOSITORY / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))


def test_generated_code_is_not_in_the_repository() -> None:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("needs a git checkout")
    listed = ["git", "ls-files", "--", str(GENERATED)]
    assert subprocess.run(listed, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout == ""
    ignored = ["git", "check-ignore", "--quiet", str(GENERATED / "v1" / "teacher_pb2.py")]
    assert subprocess.run(ignored, check=False, cwd=REPOSITORY).returncode == 0


def test_the_repository_stays_lean() -> None:
    """Reference outputs are the only files of size: a clone takes seconds."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("needs a git checkout")
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout.split("\0")
    paths = {name: REPOSITORY / name for name in listed if name}
    sizes = {name: path.stat().st_size for name, path in paths.items() if path.exists()}
    reference = {name: size for name, size in sizes.items() if name.startswith("tests/reference/")}
    assert reference
    assert max(reference.values()) <= 2**20
    assert sum(reference.values()) <= 4 * 2**20
    exempt = {*reference, "requirements.hashes"}
    assert not {name: size for name, size in sizes.items() if size > 300_000 and name not in exempt}


def blocks_of(page: Path, kind: str = "[^\n]*") -> list[str]:
    """The ``` blocks of a page, or those of a language."""
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def command_lines(page: Path) -> list[list[str]]:
    """The commands of both programs in the ``` blocks of a page, by themselves, by torchrun or in a container."""
    lines = itertools.chain.from_iterable(block.replace("\\\n", " ").splitlines() for block in blocks_of(page))
    pattern = re.compile(rf"^\s*(?:\$ )?(?:\.venv/bin/)?((?:{'|'.join(PACKAGES)}) .*?)\s*&?$")
    launched = re.compile(r"^\s*(?:srun )?torchrun .*-m ((?:student_trainer|teacher_server) .*)$")
    found = [match[1] for line in lines if (match := pattern.match(line) or launched.match(line))]
    return [*(shlex.split(line, comments=True) for line in found), *container_commands(page)]


def container_commands(page: Path) -> Iterator[list[str]]:
    """What the trainer's containers in the manifests of a page run."""
    for block in blocks_of(page, "yaml"):
        for args in arguments_in(yaml.safe_load(block)):
            yield ["student-trainer", *args[args.index("train") :]]


def arguments_in(manifest: Any) -> Iterator[list[str]]:
    if isinstance(manifest, dict):
        if isinstance(manifest.get("image"), str) and "trainer" in manifest["image"]:
            yield [str(arg) for arg in manifest["args"]]
        manifest = list(manifest.values())
    if isinstance(manifest, list):
        for value in manifest:
            yield from arguments_in(value)


each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))


@each_page
def test_documented_commands_are_real(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    for program, *argv in command_lines(page):
        expanded = ["host:1" if text == "$TEACHER" else text for text in argv]
        parsed_settings(program.replace("_", "-"), expanded, monkeypatch)


def test_launchers_are_documented_with_commands() -> None:
    """Two torchrun lines, one of Slurm, and a container (twice in a PyTorchJob) for each kind of Kubernetes job."""
    page = DOCS / "distributed.md"
    assert [program for program, *_ in command_lines(page)].count("student_trainer") == 3
    assert len(list(container_commands(page))) == 3


def is_generated(page: Path) -> bool:
    """Whether a program writes the page; its first line then names the module."""
    made = re.match(r"<!-- Generated by `python -m ([\w.]+)[^`]*`; edits are lost\. -->\n", page.read_text("utf-8"))
    return made is not None and importlib.util.find_spec(made[1]) is not None


@each_page
def test_pages_are_short(page: Path) -> None:
    """What is longer is read by nobody; tables that programs write are pages of their own, and say so."""
    assert is_generated(page) or len(page.read_text("utf-8").splitlines()) <= LONGEST_PAGE


def prose(page: Path) -> str:
    """A page without its ``` blocks and `code`."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S))


def links_of(text: str) -> list[str]:
    """Where links and pictures of Markdown lead, as they are written, without those to other hosts."""
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def index_of(page: Path) -> Path:
    """Where a page is listed: one of a folder by the page that is called as the folder."""
    return README if page.parent == DOCS else DOCS / f"{page.parent.name.upper()}.md"


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_every_page_is_listed_once(page: Path) -> None:
    index = index_of(page)
    heading = "More" if index == README else "Pages"
    (listed,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", index.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    targets = [(index.parent / link).resolve() for link in links_of(listed)]
    assert targets.count(page) == 1


def anchors_of(page: Path) -> set[str]:
    """What `#anchor` may name in a page: its headings in lower case, hyphens for blanks, without punctuation."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in links_of(prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            dead.append(link)
    assert not dead
