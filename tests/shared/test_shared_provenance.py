"""What decides a result is derived from the source: every module that is imported, and no other."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from shared import provenance

JOBS = (
    "student_trainer.prepare.run",
    "student_trainer.generate.run",
    "student_trainer.evaluate.run",
    "student_trainer.compare.run",
    "student_trainer.report.run",
)


@pytest.mark.parametrize("module", JOBS)
def test_every_module_that_is_imported_decides(module: str) -> None:
    roots = {"shared", "student_trainer", "teacher_server"}
    code = f"import sys, {module}; print(*sorted(n for n in sys.modules if n.partition('.')[0] in {roots!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    imported = set(done.stdout.split())
    assert {module, "shared.files"} <= imported
    assert imported <= provenance.import_closure(module).keys()


def by_syntax_tree(source: bytes) -> set[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and not node.level, "imports are absolute"
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return {name for name in found if name.partition(".")[0] in provenance.ROOTS}


def test_imports_are_what_the_syntax_tree_says() -> None:
    """Of every module, and however a statement is written."""
    paths = [path for root in provenance.ROOTS for path in (REPOSITORY / root).rglob("*.py")]
    assert len(paths) > 200
    for path in paths:
        assert set(provenance._imports(path.read_bytes())) == by_syntax_tree(path.read_bytes()), path
    source = b"""
import os, shared.files as f  # shared.not
from shared import (  # shared.not
    log,  # what is said
    cli as c,
)
if True:
    from teacher_server.engine import engine as e, tiler
    import student_trainer
"""
    expected = {"shared", "shared.files", "shared.log", "shared.cli", "student_trainer", "teacher_server.engine"}
    expected |= {"teacher_server.engine.engine", "teacher_server.engine.tiler"}
    assert set(provenance._imports(source)) == by_syntax_tree(source) == expected


def test_what_an_evaluation_imports_only_for_weights_decides_too() -> None:
    closure = provenance.import_closure("student_trainer.evaluate.run")
    assert {"student_trainer.model.weights", "student_trainer.model.time_scale", "shared.store"} <= closure.keys()


@pytest.fixture
def code_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `base`: job imports part, part imports pair.left within a function; pair.right is nobody's."""
    files = {
        "__init__.py": "",
        "job.py": "import base.part",
        "part.py": "def use():\n    from base.pair import left, name\n",
        "pair/__init__.py": "name = 1",
        "pair/left.py": "import os",
        "pair/right.py": "",
        "assets/page.html": "<p>",
    }
    for name, text in files.items():
        path = tmp_path / "base" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    monkeypatch.setattr(provenance, "ROOTS", ("base",))
    monkeypatch.setattr(provenance.importlib.resources, "files", lambda name: tmp_path.joinpath(*name.split(".")))
    provenance._imports.cache_clear()
    return tmp_path / "base"


def test_the_closure_of_a_module(code_base: Path) -> None:
    expected = {"base", "base.job", "base.part", "base.pair", "base.pair.left"}
    assert provenance.import_closure("base.job").keys() == expected


def test_every_change_of_deciding_source_shows_and_no_other(code_base: Path) -> None:
    def digest() -> str:
        return provenance.source_digest("base.job", assets="base.assets")

    before = digest()
    (code_base / "pair" / "right.py").write_text("changed = 1")
    assert digest() == before
    (code_base / "job.py").write_bytes(b"import base.part\r\n")
    as_on_windows = digest()
    (code_base / "job.py").write_bytes(b"import base.part\n")
    assert digest() == as_on_windows != before
    found = {as_on_windows}
    for name in ("pair/left.py", "pair/__init__.py", "assets/page.html"):
        (code_base / name).write_text("changed = 1")
        found.add(digest())
    assert len(found) == 4


def test_without_sources_it_is_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance.importlib.resources, "files", lambda name: tmp_path)
    assert provenance.source_digest("student_trainer.generate.run") == provenance.shared.__version__


def test_what_decides_last_digits_is_named() -> None:
    """Torch's version, and on Linux the processor's name and its widest vector instructions."""
    told = provenance.arithmetic()
    assert f", torch {importlib.metadata.version('torch')}, " in told
    path = Path("/proc/cpuinfo")
    if path.exists() and "model name" in (text := path.read_text()):
        (name, *_) = re.findall(r"model name\s*: (.+)", text)
        assert name.strip() in told
        widest = [label for flag, label in provenance.VECTORS.items() if re.search(rf"\b{flag}\b", text)]
        assert told.endswith(widest[0] if widest else name.strip())
