"""Coverage-guided fuzzing with atheris, a process a target: `python -m fuzz --seconds 60 [TARGET ...]`.

Prints a line a target: executions, new inputs, and the finding if there was one, whose input is kept in OUT. Exits
with 1 if there was any. Compiled code checks its bounds meanwhile (numba).
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import fuzz
import shared

RSS_LIMIT_MIB, LONGEST_SECONDS, LONGEST_INPUT = 2560, 25, 16384
"""Of one process, and of one input."""
INSTRUMENTED = ["shared", "teacher_server", "student_trainer", "zipfile", "pickletools"]


def main() -> int:
    """Fuzzes the named targets, or all, one after another."""
    parser = argparse.ArgumentParser("fuzz", description=(fuzz.__doc__ or "").partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=60, help="of each target")
    parser.add_argument("--out", type=Path, default=Path(".fuzz"), help="directory of corpora and findings")
    parser.add_argument("--within", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.within:
        return _fuzz(arguments.within, arguments.out, arguments.seconds)
    from fuzz.test_fuzz_targets import TARGETS

    names = [target.name for target in TARGETS]
    if unknown := set(arguments.targets) - set(names):
        parser.error(f"no target {', '.join(sorted(unknown))}; targets are {', '.join(names)}")
    print("| target | executions | seconds | inputs kept | finding |\n| --- | ---: | ---: | ---: | --- |")
    found = [_run(name, arguments.seconds, arguments.out) for name in arguments.targets or names]
    return int(any(found))


def _run(name: str, seconds: int, out: Path) -> bool:
    """Fuzzes one target in a process of its own; whether there was a finding."""
    command = [sys.executable, "-m", "fuzz", "--within", name, "--seconds", str(seconds), "--out", str(out)]
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(out / "numba")}
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    said = done.stderr.decode(errors="replace") + done.stdout.decode(errors="replace")
    log = out / f"{name}.log"
    log.write_text(said, encoding="utf-8")
    executions = re.findall(r"stat::number_of_executed_units:\s*(\d+)", said) or re.findall(r"^#(\d+)\s", said, re.M)
    kept = len(list((out / "corpus" / name).iterdir())) if (out / "corpus" / name).is_dir() else 0
    reason = "" if done.returncode == 0 else _reason(said, log)
    shown = f"{int(executions[-1]):,}" if executions else "?"
    print(f"| {name} | {shown} | {time.monotonic() - started:.0f} | {kept} | {reason or 'none'} |", flush=True)
    return bool(reason)


def _reason(said: str, log: Path) -> str:
    wanted = re.findall(r"^(?:ERROR: |==\d+== ERROR: |[\w.]+(?:Error|Exception|Interrupt)\b).*$", said, re.M)
    return f"{wanted[0][:100] if wanted else 'it ended'}; see {log}"


def _fuzz(name: str, out: Path, seconds: int) -> int:
    """This process becomes libFuzzer's."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED, exclude=_compiled()):
        from fuzz.target import attempt
        from fuzz.test_fuzz_targets import TARGETS

    target = next(target for target in TARGETS if target.name == name)
    logging.getLogger().setLevel(logging.CRITICAL)  # readers that start without a file say why; here a million times
    corpus, findings = out / "corpus" / name, out / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
        attempt(target, seed)  # compiles what is compiled, before the clock runs
    longest = max(LONGEST_INPUT, 2 * max(map(len, target.seeds())))
    options = [f"-max_total_time={seconds}", f"-timeout={LONGEST_SECONDS}", f"-rss_limit_mb={RSS_LIMIT_MIB}"]
    options += [f"-max_len={longest}", f"-artifact_prefix={findings}/{name}-", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: void(attempt(target, data)))
    atheris.Fuzz()
    return 0


def _compiled() -> list[str]:
    """Modules with functions that numba compiles, which must be as they were written."""
    root = Path(shared.__file__).parent.parent
    paths = [path for name in INSTRUMENTED for path in (root / name).rglob("*.py")]
    found = [path for path in paths if "import compiled" in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(root).with_suffix("").parts) for path in found]


def void(_: object) -> None:
    """libFuzzer takes what a target returns for a verdict on the input."""


if __name__ == "__main__":
    sys.exit(main())
