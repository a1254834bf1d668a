"""Completion as a shell does it, and what `--version` says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from support.command_lines import PACKAGES

from shared import provenance

ASK = """eval "$({program} --print-completion bash)"
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
{function}; printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completed(program: str, *words: str) -> list[str]:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    script = ASK.format(
        program=f"{sys.executable} -m {PACKAGES[program]}",
        words=" ".join(repr(word) for word in (program, *words)),
        function=f"_{program.replace('-', '_')}",
    )
    done = subprocess.run([bash, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (("student-trainer", "pre"), ["prepare", "predict"]),
        (("student-trainer", "train", "--da"), ["--data"]),
        (("student-trainer", "train", "optim.ep"), ["optim.epochs="]),
        (("teacher-server", "query", "--w"), ["--wait"]),
        (("teacher-server", "query", "nothing-like-it"), []),
    ],
)
def test_bash_completes_commands_flags_and_settings(line: tuple[str, ...], found: list[str]) -> None:
    assert completed(*line) == found


def test_zsh_gets_the_same_through_its_own_emulation() -> None:
    command = [sys.executable, "-m", "teacher_server", "--print-completion"]
    bash, zsh = (
        subprocess.run([*command, shell], capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout
        for shell in ("bash", "zsh")
    )
    assert zsh == f"autoload -U +X bashcompinit && bashcompinit\n{bash}"


def test_versions_name_software_commit_torch_and_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = dict(line.split(" ", 1) for line in provenance.versions("program").splitlines())
    assert lines.keys() == {"program", "commit", "torch", "devices"}
    assert lines["devices"].startswith(f"cpu ({provenance.cores()} cores)")
    git = shutil.which("git")
    if git is None or not (REPOSITORY / ".git").exists():
        pytest.skip("needs a git checkout")
    asked = [git, "rev-parse", "HEAD"]
    head = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout.strip()
    assert lines["commit"].split(",")[0] == head[:12]
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    assert provenance.commit() == ""
