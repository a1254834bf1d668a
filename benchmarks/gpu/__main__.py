"""The command line: runs the parts one after another and rewrites the results after each.

OUT/gpu.json   figures, failures and details of all parts
OUT/gpu.md     the page
OUT/gpu.log    the end of what the parts said
"""

from __future__ import annotations

import argparse
import datetime
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import page, record, watch
from benchmarks.gpu.part import PARTS
from shared import files
from shared.errors import ReportableError
from shared.store import Store

SHARES = {
    "machine": 30, "tests": 120, "teacher": 100, "compiled": 45, "daemon": 75, "student": 80, "train": 100,
    "generate": 40,
}  # fmt: skip
"""Of the time that is left, a part may take its share among the parts that are left."""
LOG_CHARACTERS = 20_000


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts; returns the exit code (0 all was measured, 1 not, 2 bad input, 130 interrupted)."""
    arguments = _parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = arguments.only.split(",") if arguments.only else list(PARTS)
    try:
        Store(arguments.store)
        arguments.out.mkdir(parents=True, exist_ok=True)
        if arguments.work is not None:
            arguments.work.mkdir(parents=True, exist_ok=True)
            found = _run(names, arguments, arguments.work)
        else:
            with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
                found = _run(names, arguments, Path(folder))
    except (ReportableError, OSError) as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmarks.gpu: interrupted; what was measured before is kept", file=sys.stderr)
        return 130
    print(page.markdown(found))
    return int(any(part["failures"] for part in found["parts"].values()))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks.gpu", description="all that an accelerator is asked to do, measured")
    parser.add_argument("--store", type=Path, required=True, help="store that `student-trainer prepare` wrote")
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--seconds", type=float, default=470.0, help="for all parts together (default 470)")
    parser.add_argument("--only", default="", help=f"parts, separated by commas: {', '.join(PARTS)}")
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto",
        help="auto: the accelerator if there is one; cpu: so little that it only shows that all of it runs",
    )  # fmt: skip
    parser.add_argument("--work", type=Path, help="directory of teachers and runs; none: a temporary one")
    arguments = parser.parse_args(argv)
    if unknown := [name for name in arguments.only.split(",") if name and name not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; parts are {', '.join(PARTS)}")
    if arguments.device != "cpu":
        import torch

        if not torch.cuda.is_available():
            if arguments.device == "cuda":
                parser.error("torch sees no CUDA device here; --device cpu shows that the parts run")
            arguments.device = "cpu"
        else:
            arguments.device = "cuda"
    arguments.store, arguments.out = arguments.store.resolve(), arguments.out.resolve()  # parts have another directory
    arguments.work = arguments.work and arguments.work.resolve()
    return arguments


def _run(names: Sequence[str], arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    deadline = time.monotonic() + arguments.seconds
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": arguments.device,
        "seconds": arguments.seconds,
        "parts": {},
    }
    said: list[str] = []
    for number, name in enumerate(names):
        left = names[number:]
        limit = max(1.0, (deadline - time.monotonic()) * SHARES[name] / sum(SHARES[other] for other in left))
        print(f"{name}: at most {limit:.0f} s", file=sys.stderr, flush=True)
        try:
            found["parts"][name] = _part(name, arguments, work, limit)
        finally:
            log = work / f"{name}.part.log"
            text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
            said.append(f"== {name}\n{text[-LOG_CHARACTERS:]}")
            _write(arguments.out, found, said)
    return found


def _part(name: str, arguments: argparse.Namespace, work: Path, limit: float) -> dict[str, Any]:
    path, log = work / f"{name}.json", work / f"{name}.part.log"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.part", name, "--store", str(arguments.store), "--work", str(work)]
    command += ["--out", str(path), "--device", arguments.device, "--seconds", f"{limit:.1f}"]
    ended = watch.run(command, log, limit, arguments.device == "cuda")
    part = record.read(path)
    if ended.code not in (0, 1) or (ended.code and not part["failures"]):
        what = f"stopped at its limit of {limit:.0f} s" if ended.code is None else f"ended with {ended.code}"
        text = log.read_text(encoding="utf-8", errors="replace")
        part["failures"].append({"what": what, "error": text[-record.TRACEBACK_CHARACTERS :]})
    part |= {"seconds": ended.seconds, "limit": limit, "code": ended.code}
    return part | {"resident_mib": ended.resident_mib, "device_mib": ended.device_mib}


def _write(out: Path, found: dict[str, Any], said: Sequence[str]) -> None:
    files.write_json(out / "gpu.json", files.finite(found))
    files.write_text(out / "gpu.md", page.markdown(files.finite(found)))
    files.write_text(out / "gpu.log", "\n".join(said))


if __name__ == "__main__":
    sys.exit(main())
