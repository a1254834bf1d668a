"""Files of `torch.save`: what is refused before torch sees it, and that the checks cost no memory."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY

from shared import torch_archive
from shared.errors import FileFormatError

GIB = 2**30


def save(path: Path, **values: object) -> Path:
    torch.save({"w": torch.arange(4.0), **values}, path)
    return path


def rewrite(source: Path, target: Path, index: bytes, **options: Any) -> Path:
    """The archive with another index."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **options) as new:
        for entry in old.infolist():
            is_index = entry.filename.endswith("data.pkl")
            new.writestr(entry.filename, index if is_index else old.read(entry))
    return target


def index_of(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


@pytest.mark.parametrize(
    "value",
    [
        torch.nn.Parameter(torch.ones(2)),
        torch.nn.Linear(2, 3).state_dict(),
        torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict(),
        torch.ones(2, dtype=torch.bfloat16),
        torch.zeros(3, dtype=torch.uint8),
        {"sizes": torch.Size([1, 2]), "dtype": torch.float16, "device": torch.device("cpu")},
        [1, 2.5, None, True, "text", (1, 2), 2**70],
    ],
    ids=["parameter", "weights", "optimizer", "bfloat16", "bytes", "torch's own", "plain"],
)
def test_what_weights_need_passes(tmp_path: Path, value: object) -> None:
    path = save(tmp_path / "w.pt", value=value)
    torch_archive.check(path)
    torch.load(path, weights_only=True)


def test_records_that_the_caller_knows_pass(tmp_path: Path) -> None:
    path = rewrite(save(tmp_path / "a.pt"), tmp_path / "b.pt", b"\x80\x02cargparse\nNamespace\n.")
    torch_archive.check(path, {"argparse.Namespace"})
    with pytest.raises(FileFormatError, match=r"names argparse\.Namespace, which .* nothing was executed"):
        torch_archive.check(path)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"c__builtin__\nbytearray\n", "__builtin__.bytearray"),
        (b"cbuiltins\nset\n", "builtins.set"),
        (b"c_codecs\nencode\n", "_codecs.encode"),
        (b"ctorch\n_storage_of\n", "torch._storage_of"),
        (b"ctorch.storage\n_load_from_bytes\n", "torch.storage._load_from_bytes"),
        (b"(ios\nsystem\n", "os.system"),
        (b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93", "None"),
        (b"\x82\x01", "1"),
    ],
    ids=["bytearray", "set", "codecs", "torch", "bytes as storage", "INST", "STACK_GLOBAL", "EXT1"],
)
def test_all_other_names_are_refused(tmp_path: Path, name: bytes, shown: str) -> None:
    path = rewrite(save(tmp_path / "a.pt"), tmp_path / "b.pt", b"\x80\x04" + name + b".")
    with pytest.raises(FileFormatError, match=f"names {shown}, which no file of weights needs"):
        torch_archive.check(path)


@pytest.mark.parametrize("index", [b"", b"\x80\x02", b"garbage", b"\x80\x02X\xff\xff\xff\x7fa.", b"\x80\x02\x8b\x00"])
def test_an_index_that_is_none(tmp_path: Path, index: bytes) -> None:
    path = rewrite(save(tmp_path / "a.pt"), tmp_path / "b.pt", index)
    with pytest.raises(FileFormatError, match="is not a readable checkpoint"):
        torch_archive.check(path)


def test_a_compressed_bomb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data.pkl", "w") as record:
        for _ in range(64):
            record.write(bytes(2**20))
    with pytest.raises(FileFormatError, match="was compressed"):
        torch_archive.check(path)


def test_records_that_overlap_are_refused(tmp_path: Path) -> None:
    """Thousands of names for the same bytes: each would be read."""
    path = tmp_path / "overlap.pt"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/data/0", bytes(2**16))
        archive.filelist += [archive.filelist[1]] * 1000
    path.write_bytes(buffer.getvalue())
    with pytest.raises(FileFormatError, match=r"its records claim .* more than it has"):
        torch_archive.check(path)


@pytest.mark.parametrize("count", [0, 2])
def test_one_index(tmp_path: Path, count: int) -> None:
    path = tmp_path / "c.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(count):
            archive.writestr(f"{i}/data.pkl", b"\x80\x02}.")
    with pytest.raises(FileFormatError, match=f"holds {count} records data.pkl"):
        torch_archive.check(path)


READERS = {
    "weights": "from student_trainer.runs.checkpoint import load_tensors as read",
    "upstream": "from teacher_server.lmtad.checkpoint import read",
}


@pytest.mark.integration
@pytest.mark.parametrize("reader", READERS)
def test_a_few_bytes_that_ask_for_memory_get_none(tmp_path: Path, reader: str) -> None:
    """`bytearray(8 GiB)`, which torch's own weights-only reader grants; and a shape of 2^44 over 16 bytes."""
    source = save(tmp_path / "a.pt")
    asking = b"\x80\x02}q\x00X\x05\x00\x00\x00modelc__builtin__\nbytearray\n\x8a\x05"
    index, shape = index_of(source), b"K\x00K\x04\x85q\x08K\x01\x85"
    assert shape in index
    claim = b"K\x00\x8a\x06" + (2**44).to_bytes(6, "little") + b"\x85q\x08K\x00\x85"
    paths = [
        rewrite(source, tmp_path / "b.pt", asking + (8 * GIB).to_bytes(5, "little") + b"\x85Rs."),
        rewrite(source, tmp_path / "c.pt", index.replace(shape, claim)),
    ]
    code = f"""
import resource, sys
from pathlib import Path
from typing import Any
from shared.errors import FileFormatError
{READERS[reader]}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        read(Path(path))
    except FileFormatError as error:
        print(error)
    else:
        sys.exit("read")
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
sys.exit(grown if grown > 100_000 else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    assert "bytearray" in done.stdout
    assert "claims the shape" in done.stdout
