"""Where each peer is installed, and how: `python -m benchmarks.peers.environments` (`make bench-peers`).

An environment lies under WORK/peers/<name>. It sees this one's packages (torch, numpy) after its own, so that a peer
brings only what differs: PyTriton needs an older numpy and protobuf, Ray a newer protobuf than PyTriton's.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
WORK = REPOSITORY / ".bench"


@dataclasses.dataclass(frozen=True)
class Peer:
    """A package that serves models.

    Attributes:
        name: of its environment.
        package: on the package index.
        extras: of the package.
        version: that was measured.
        server: module of its server; BentoML's is started by its own command.
        adapter: how it is asked; see `client.ADAPTERS`.
        wire: how rows and scores travel, for the table.
    """

    name: str
    package: str
    version: str
    server: str
    adapter: str
    wire: str
    extras: str = ""

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}{self.extras}=={self.version}"


PEERS = (
    Peer("mosec", "mosec", "0.9.8", "mosec_server", "mosec", "HTTP, raw bytes"),
    Peer("litserve", "litserve", "0.2.19", "litserve_server", "litserve", "HTTP, base64 in JSON"),
    Peer("bentoml", "bentoml", "1.4.39", "bentoml_server", "bentoml", "HTTP, JSON lists"),
    Peer("ray", "ray", "2.60.0", "ray_server", "ray", "gRPC, raw bytes", "[serve]"),
    Peer("pytriton", "nvidia-pytriton", "0.7.0", "pytriton_server", "pytriton", "gRPC, raw bytes"),
)


def find(peer: Peer, work: Path) -> tuple[Path, str] | None:
    """Interpreter that has the peer, this one or its own, and the version there; None if it is not installed."""
    for python in (Path(sys.executable), _python(peer, work)):
        if python.exists():
            code = f"import importlib.metadata as m; print(m.version({peer.package!r}))"
            done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return python, done.stdout.strip()
    return None


def make(peer: Peer, work: Path) -> None:
    """Makes the peer's environment; torch, found in this one, is never downloaded."""
    folder = work / "peers" / peer.name
    venv.create(folder, with_pip=True, clear=True)
    ours = sysconfig.get_path("purelib")
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (own / "zz_shared.pth").write_text(f"{ours}\n")
    command = [
        str(_python(peer, work)),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        peer.requirement,
    ]
    subprocess.run(command, check=True)


def _python(peer: Peer, work: Path) -> Path:
    return work / "peers" / peer.name / "bin" / "python"


def main(argv: Sequence[str] | None = None) -> int:
    """Makes what is not there yet; returns the exit code."""
    parser = argparse.ArgumentParser("benchmarks.peers.environments", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(peer.name for peer in PEERS)}; default: all")
    parser.add_argument("--work", type=Path, default=WORK, help="directory of the environments")
    arguments = parser.parse_args(argv)
    for peer in PEERS:
        if (not arguments.names or peer.name in arguments.names) and find(peer, arguments.work) is None:
            print(f"{peer.requirement} -> {arguments.work / 'peers' / peer.name}", flush=True)
            make(peer, arguments.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
