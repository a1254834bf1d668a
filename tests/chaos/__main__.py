"""The command line; exit code 0: every cell ended as it should, 1: some did not, 2: bad arguments."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))  # as pytest has it

from tests.chaos.faults import FAULTS  # noqa: E402
from tests.chaos.kills import run_kills  # noqa: E402
from tests.chaos.matrix import HEADER, TRAINERS, TRANSPORTS, Lab, cells, earlier, run_matrix  # noqa: E402
from tests.chaos.processes import CellFailed  # noqa: E402

NAMES: dict[str, Collection[str]] = {"fault": FAULTS, "transport": TRANSPORTS, "trainers": TRAINERS}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cells that are wanted, and the kills."""
    lists = "\n".join(f"  {part}: {', '.join(names)}" for part, names in NAMES.items())
    parser = argparse.ArgumentParser(
        "python -m tests.chaos", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=f"names:\n{lists}"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="PART=NAME[,NAME...]", help="only these cells")
    parser.add_argument("--missing", action="store_true", help="only those that OUT does not hold yet")
    parser.add_argument("--seconds-of-stop", type=float, default=30.0, help="how long SIGSTOP lasts")
    parser.add_argument(
        "--kills", type=int, default=20, help="how often a trainer is killed and resumed; 0: not at all"
    )
    parser.add_argument("--work", type=Path, default=REPOSITORY / ".bench" / "chaos", help="for stores and runs")
    parser.add_argument("--out", type=Path, default=REPOSITORY / ".bench" / "chaos" / "matrix", help="OUT.md, OUT.json")
    arguments = parser.parse_args(argv)
    only: dict[str, list[str]] = {}
    for part, _, names in (text.partition("=") for text in arguments.only):
        only[part] = names.split(",")
        if unknown := [name for name in only[part] if name not in NAMES.get(part, ())]:
            parser.error(f"no {part} {', '.join(unknown)}; see --help")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # teachers and trainers are ended on the way out
    done = earlier(arguments.out) if arguments.missing else {}
    chosen = [cell for cell in cells(only) if cell not in done]
    print(f"{len(chosen)} cells", " | ".join(HEADER), sep="\n", flush=True)
    try:
        results = run_matrix(chosen, arguments.work, arguments.out, arguments.seconds_of_stop)
        if arguments.kills:
            steps = run_kills(Lab(arguments.work), arguments.kills)
            print(f"killed at steps {steps}: the same weights", flush=True)
    except CellFailed as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1
    bad = [found for found in results if not found.is_good]
    print(f"{len(results) - len(bad)} of {len(results)} cells ended as they should", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
