"""What pyproject.toml promises: versions that follow from the generator's, extras that hold what their code imports."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import shared
from shared import extras, processes
from shared.errors import ConfigError

PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
GRPC = ("grpcio", "grpcio-health-checking", "grpcio-reflection")
BROUGHT = {"report": ("report", "trainer"), "tune": ("tune", "report", "trainer"), "wandb": ("wandb", "trainer"),
           "convert": ("convert", "trainer")}  # fmt: skip
INSEPARABLE = {"pydantic_core": "pydantic", "llvmlite": "numba", "triton": "torch", "google": "protobuf"}
"""Modules whose distribution comes with another one, or shares its name with others."""
NAMESPACES = {"opentelemetry": {"opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-grpc"}}
"""Modules that many distributions share, and those of them that an extra asks for."""
DISTRIBUTIONS = metadata.packages_distributions()
CLIENT = {"__init__", "__main__", "address", "early", "client"}
"""What of `teacher_server` works without the extra, beside all settings."""


def declared(extra: str | None) -> dict[str, Requirement]:
    """What an extra asks for by itself, or the project without extras, by canonical name."""
    project = PYPROJECT["project"]
    texts = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return {canonicalize_name(found.name): found for found in map(Requirement, texts)}


def lowest(requirement: Requirement) -> str:
    (bound,) = (part.version for part in requirement.specifier if part.operator in {">=", "=="})
    return bound


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The code that the build step generates, by name."""
    out = tmp_path_factory.mktemp("generated")
    command = [sys.executable, "setup.py", "--quiet", "build_grpc", "--build-lib", str(out)]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    return {path.name: path.read_text() for path in out.rglob("*.py*")}


@pytest.mark.parametrize("target", ["demo", "serve", "train"])
def test_who_uses_it_installs_no_developer_tools(target: str, tmp_path: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")
    command = [make, "--dry-run", target, f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    installed = [line for line in done.stdout.splitlines() if "pip install" in line]
    assert [line.rpartition(" ")[2] for line in installed] == ["torch", "'.[report,teacher]'"]
    assert "downloading torch" in done.stdout


def test_the_generator_is_one_version_everywhere() -> None:
    build = {found.name: found for found in map(Requirement, PYPROJECT["build-system"]["requires"])}
    (pin,) = build["grpcio-tools"].specifier
    lock = (REPOSITORY / "requirements.lock").read_text()
    assert pin.operator == "=="
    assert declared("dev")["grpcio-tools"].specifier == build["grpcio-tools"].specifier
    assert f"\ngrpcio-tools=={pin.version}\n" in lock


def test_lower_bounds_are_what_the_generated_code_asks_for(generated: dict[str, str]) -> None:
    (grpc,) = re.findall(r"GRPC_GENERATED_VERSION = '(.+)'", generated["teacher_pb2_grpc.py"])
    runtime = re.search(r"Domain\.PUBLIC,\s*(\d+),\s*(\d+),\s*(\d+),", generated["teacher_pb2.py"])
    assert runtime is not None
    asked = declared(None) | declared("teacher")
    assert {name: lowest(asked[name]) for name in GRPC} == dict.fromkeys(GRPC, grpc)
    major, minor, patch = map(int, runtime.groups())
    assert str(asked["protobuf"].specifier) == f"<{major + 1},>={major}.{minor}.{patch}"


def test_make_proto_has_generated_what_the_build_generates(generated: dict[str, str]) -> None:
    folder = REPOSITORY / "shared" / "rpc" / "teacher" / "v1"
    assert generated == {path.name: path.read_text() for path in folder.glob("teacher_pb2*.py*")}


def distribution_of(module: str) -> str:
    """What installs a module, by canonical name."""
    if module in INSEPARABLE:
        return INSEPARABLE[module]
    (name,) = {canonicalize_name(found) for found in DISTRIBUTIONS[module]}
    return name


@pytest.mark.parametrize("extra", extras.EXTRAS)
def test_the_table_of_modules_is_that_of_pyproject(extra: str) -> None:
    brought = declared(extra).keys() - {shared.DISTRIBUTION}
    named = [NAMESPACES.get(module) or {distribution_of(module)} for module in extras.EXTRAS[extra]]
    assert set().union(*named) == brought


def test_all_is_all() -> None:
    (everything,) = declared("all").values()
    assert everything.extras == extras.EXTRAS.keys()


def third_party(path: Path) -> set[str]:
    """Top-level modules that a file imports, anywhere in it, and that are neither Python's nor ours."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    tops = {name.partition(".")[0] for name in found}
    return tops - sys.stdlib_module_names - {"shared", "teacher_server", "student_trainer"}


def needed_by(path: Path) -> tuple[str, ...]:
    """The extras that the code of a file may count on."""
    package, *rest = path.relative_to(REPOSITORY).with_suffix("").parts
    if package == "shared":
        return {"compiled": ("teacher",), "sinks": ("trainer",), "training": ("trainer",)}.get(rest[0], ())
    if package == "teacher_server":
        return () if rest[0] in CLIENT or rest[-1] == "config" else ("teacher",)
    return BROUGHT.get({"pipeline": "report"}.get(rest[0], rest[0]), ("trainer",))


def sources() -> Iterator[Path]:
    for package in ("shared", "teacher_server", "student_trainer"):
        yield from (path for path in (REPOSITORY / package).rglob("*.py") if "rpc/teacher" not in path.as_posix())


def test_code_imports_what_its_extra_brings() -> None:
    assert len(list(sources())) > 100
    base, on_request = set(declared(None)), modules_on_request()
    for path in sources():
        brought = base.union(*map(declared, needed_by(path)))
        asked = {distribution_of(module) for module in third_party(path) - on_request}
        assert asked <= brought, path


def modules_on_request() -> frozenset[str]:
    return frozenset().union(*(extras.EXTRAS[extra] for extra in extras.ON_REQUEST))


def test_other_extras_are_imported_only_when_a_setting_asks_for_them() -> None:
    modules = modules_on_request()
    for path in sources():
        at_once = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.Import)]
        assert not {alias.name for node in at_once for alias in node.names} & modules, path


def missing(module: str, extra: str | None) -> str:
    with pytest.raises(ConfigError) as caught, extras.needed(extra):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    return str(caught.value)


def test_the_extra_is_named() -> None:
    assert missing("optuna.storages", "tune") == (
        "the module optuna is not installed; this needs the extra [tune]: "
        "pip install 'lmtad-hoser-distill[tune]' (in a checkout: pip install -e '.[tune]')"
    )
    assert "[trainer]" in missing("torch", "trainer") and "[teacher]" in missing("torch", "teacher")
    assert "[wandb]" in missing("wandb", "trainer")


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    for module, extra in (("student_trainer.nothing", "trainer"), ("pandas", "tune"), ("torch", None)):
        with pytest.raises(ModuleNotFoundError), extras.needed(extra):
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def test_both_packages_refuse_another_shared_in_the_same_words() -> None:
    texts = [(REPOSITORY / package / "__init__.py").read_text() for package in ("teacher_server", "student_trainer")]
    a, b = (text[text.index("def _refuse_another_shared") :].partition("\n\n\n") for text in texts)
    assert a[0] == b[0]
    assert all("\n_refuse_another_shared()\n" in text for text in texts)


def test_a_process_imports_what_this_one_imports(tmp_path: Path) -> None:
    """Beside packages of the same names, and with a module path that only this process has."""
    for name in ("shared", "student_trainer", "only_here"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the folder was imported')\n")
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "only_here.py").write_text("import shared, student_trainer\nprint(shared.__file__)\n")
    sys.path.append(str(tmp_path / "path"))
    try:
        done = subprocess.run(
            processes.command("only_here"), env=processes.environment(), cwd=tmp_path, capture_output=True, text=True
        )
    finally:
        sys.path.remove(str(tmp_path / "path"))
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, shared.__file__, "")


def test_the_version_is_the_same_wherever_it_stands() -> None:
    changes = (REPOSITORY / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+)", changes, re.MULTILINE)[0] == shared.__version__
    for path in (REPOSITORY / "docker").glob("*.Dockerfile"):
        assert f"\nARG VERSION={shared.__version__}\n" in path.read_text()
    pages = "".join(path.read_text() for path in (REPOSITORY / "docs").glob("*.md"))
    assert set(re.findall(r"student-trainer:(\d[\w.]*)", pages)) == {shared.__version__}


@pytest.mark.integration
def test_a_wire_contract_that_breaks_callers_is_found(tmp_path: Path) -> None:
    """`make buf` compares with `proto/released.json`."""
    (buf,) = re.findall(r"^BUF := (.+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    shutil.copytree(REPOSITORY / "proto", tmp_path, dirs_exist_ok=True)
    compare = [*buf.split(), "breaking", "--against", "released.json"]
    if shutil.which(compare[0]) is None:
        pytest.skip("npm is not installed")
    before = subprocess.run(compare, cwd=tmp_path, capture_output=True, text=True)
    if before.returncode and "npm" in before.stderr:
        pytest.skip("npm reaches no registry and has not fetched buf before")
    assert before.returncode == 0, before.stdout + before.stderr
    contract = tmp_path / "teacher" / "v1" / "teacher.proto"
    contract.write_text(re.sub(r"^ *bytes candidate_tokens = .*$", "", contract.read_text(), flags=re.MULTILINE))
    after = subprocess.run(compare, cwd=tmp_path, capture_output=True, text=True)
    assert after.returncode == 100
    assert 'Previously present field "5" with name "candidate_tokens"' in after.stdout
