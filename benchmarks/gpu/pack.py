"""What must travel, beside the tree, to a machine with an accelerator and no network: at most 60 MiB.

PACK/generated/   the gRPC code that `make proto` makes
PACK/wheels/      of the packages that such a machine lacks, at the locked versions
PACK/store/       roads of a city and some of its trips
PACK/hoser_store/ the city of the reference outputs, for the tests
PACK/run.sh       installs and checks: `bash PACK/run.sh OUT [SECONDS [PARTS]]`

Python 3.12 on x86-64 Linux, with torch, torch-geometric, numba, scipy, safetensors, psutil and pytest there already.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import cities
from benchmarks.common import REPOSITORY, BenchmarkError
from shared import files
from shared.errors import ReportableError

WHEELS = (
    "annotated-types",
    "googleapis-common-protos",
    "grpcio",
    "grpcio-health-checking",
    "grpcio-reflection",
    "protobuf",
    "pydantic",
    "pydantic-core",
    "tensorboard",
    "typing-extensions",
    "typing-inspection",
)
PLATFORMS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64")
PYTHON = "312"
GENERATED = Path("shared") / "rpc" / "teacher"
REFERENCE_CITY = REPOSITORY / "tests" / "reference" / "hoser" / "city"
CITY, CELL_SIZE = "sf_taxi", 0.0005
TRIPS = {"train": 20_000, "val": 500, "test": 200}
MOST_MIB = 60
MIB = 2**20

RUN = """#!/usr/bin/env bash
# bash PACK/run.sh OUT [SECONDS [PARTS]]: installs what travelled and runs the check, in the repository's root.
set -uo pipefail
pack="$(cd "$(dirname "$0")" && pwd)"
cd "$pack/.."
out="$1"; seconds="${2:-470}"; parts="${3:-}"
site="$(mktemp -d)"
python3 -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile --target "$site" \\
  "$pack"/wheels/*.whl || exit 3
mkdir -p shared/rpc/teacher && cp -r "$pack/generated/." shared/rpc/teacher/ || exit 3
export PYTHONPATH="$site" GPU_PACK="$pack" PYTHONUNBUFFERED=1
exec python3 -m benchmarks.gpu --store "$pack/store" --out "$out" --seconds "$seconds" ${parts:+--only "$parts"} \\
  --device "${DEVICE:-cuda}"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the pack anew; what was prepared before is taken again. Returns 0, or 2 if something is missing."""
    parser = argparse.ArgumentParser("benchmarks.gpu.pack", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=REPOSITORY / ".gpu-pack", help="directory of the pack")
    arguments = parser.parse_args(argv)
    try:
        size = make(arguments.out)
    except ReportableError as error:
        print(f"benchmarks.gpu.pack: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: {size / MIB:.1f} MiB")
    return 0


def make(pack: Path) -> int:
    """Fills the directory of a pack; returns its bytes.

    Raises:
        BenchmarkError: something cannot be had, or the pack is too large.
    """
    pack.mkdir(parents=True, exist_ok=True)
    generated = REPOSITORY / GENERATED
    if not generated.is_dir():
        raise BenchmarkError(f"{GENERATED} is missing; `make proto` makes it")
    _copy(generated, pack / "generated")
    _download(pack / "wheels")
    _prepare(_some_trips(), pack / "store")
    _prepare(REFERENCE_CITY, pack / "hoser_store")
    files.write_text(pack / "run.sh", RUN)
    size = sum(path.stat().st_size for path in pack.rglob("*") if path.is_file())
    if size > MOST_MIB * MIB:
        raise BenchmarkError(f"{pack} holds {size / MIB:.0f} MiB, at most {MOST_MIB} may travel")
    return size


def locked(lock: str, name: str) -> str:
    """NAME==VERSION as a lock file has it; raises `BenchmarkError` if it does not know the package."""
    found = re.search(rf"^{re.escape(name)}==[^\s;]+", lock, re.MULTILINE)
    if found is None:
        raise BenchmarkError(f"requirements.lock does not name {name}")
    return found.group()


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), copy_function=shutil.copyfile)


def _download(folder: Path) -> None:
    """Wheels at the locked versions; those that are there already are not asked for again."""
    folder.mkdir(exist_ok=True)
    lock = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    wanted = [locked(lock, name) for name in WHEELS]
    stems = {requirement: requirement.replace("==", "-").replace("_", "-") for requirement in wanted}
    for wheel in folder.glob("*.whl"):
        if "-".join(wheel.name.split("-")[:2]).replace("_", "-") not in stems.values():
            wheel.unlink()
    there = {"-".join(wheel.name.split("-")[:2]).replace("_", "-") for wheel in folder.glob("*.whl")}
    missing = [requirement for requirement in wanted if stems[requirement] not in there]
    if not missing:
        return
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", PYTHON, "--dest", str(folder)]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    if subprocess.run([*command, *missing], check=False).returncode:
        raise BenchmarkError(f"pip cannot download {', '.join(missing)}; its message is above")


def _some_trips() -> Path:
    """The city with all its roads and some of its trips."""
    raw = cities.DATA / CITY
    if not raw.is_dir():
        raise BenchmarkError(f"{raw} is missing: the check needs a city in HOSER format there")
    out = REPOSITORY / ".bench" / "raw" / f"{CITY}_some"
    with files.atomic_directory(out) as folder:
        for name in ("roadmap.geo", "roadmap.rel"):
            shutil.copyfile(raw / name, folder / name)
        for split, count in TRIPS.items():
            lines = (raw / f"{split}.csv").read_bytes().splitlines(keepends=True)
            (folder / f"{split}.csv").write_bytes(b"".join(lines[: 1 + count]))
    return out


def _prepare(raw: Path, out: Path) -> None:
    from student_trainer.prepare import run as prepare
    from student_trainer.prepare.config import GridConfig, PrepareConfig

    with contextlib.redirect_stdout(sys.stderr):
        prepare.run(PrepareConfig(raw=raw, out=out, grid=GridConfig(cell_size=CELL_SIZE)))


if __name__ == "__main__":
    sys.exit(main())
