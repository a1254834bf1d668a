"""Binary files and the documents beside them.

Where a checksum or a container would stop nearly every change, a target takes what is inside: the harness makes a sound
file around it.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from conftest import write_tiny_teacher
from support.generated_trips import write_generated
from support.random_city import write_random_store

from fuzz.target import Target, as_file
from shared import answers_file, teacher_file
from shared.answers_file import Answers, AnswersHeader
from shared.errors import FileFormatError
from shared.store import Store
from shared.vocab import Tokeniser, Vocabulary
from shared.wire import HistoryMode, ScoreQuery
from student_trainer.data import generated, tables
from student_trainer.distill.offline import FileTeacher
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.runs.checkpoint import Checkpoint, Progress
from teacher_server.answers import saved
from teacher_server.answers.table import AnswerTable, Kept
from teacher_server.lmtad import checkpoint, model
from teacher_server.pretrain import checkpoint as pretraining

ROOM = tempfile.TemporaryDirectory(prefix="fuzz-seeds-")
"""Of good files, removed with the process."""


def _made(name: str, make: Callable[[Path], object]) -> Path:
    path = Path(ROOM.name) / name
    if not path.exists():
        make(path)
    return path


# Teacher files


def read_teacher(data: bytes) -> None:
    """The whole file, and the model that it describes."""
    with as_file(data) as path:
        teacher_file.read_header(path)
        model.load(*teacher_file.read(path))


def _teacher() -> bytes:
    return _made("teacher.safetensors", write_tiny_teacher).read_bytes()


def read_teacher_document(data: bytes) -> None:
    """The JSON document in the header of a sound file."""
    with as_file(b"") as path:
        safetensors.numpy.save_file(
            {"w": np.zeros(2, np.float32)}, path, metadata={"lmtad": data.decode("utf-8", "replace")}
        )
        header = teacher_file.read_header(path)
        model.load(header, {"w": np.zeros(2, np.float32)})


def _teacher_document() -> bytes:
    with safetensors.safe_open(_made("teacher.safetensors", write_tiny_teacher), framework="np") as file:
        return str(file.metadata()["lmtad"]).encode()


# Remembered answers

KEPT = Kept(
    np.array([3, 4], np.int32),
    np.array([1, 2], np.int32),
    np.array([4, 1, 2, 4, 1, 2, 3], np.int32),
    np.array([1, 2, 3], np.uint16),
)
COSTS = np.arange(17, dtype=np.int64)


def read_cache(data: bytes) -> None:
    """What cannot be used is None, and the daemon starts without."""
    with as_file(data) as path:
        _restore(saved.read(path, "n"))


def read_cache_rows(data: bytes) -> None:
    """Arrays whose digest is right."""
    words = np.frombuffer(data[: len(data) // 4 * 4], "<i4")
    cut, halves = len(words) // 4, words.view(np.uint16)[: len(words) // 3]
    with as_file(b"") as path:
        saved.write(path, Kept(words[:cut], words[cut : 2 * cut], words[2 * cut :], halves), "n")
        _restore(saved.read(path, "n"))
        lengths = np.array([len(words)], np.int32)
        saved.write(path, Kept(lengths, np.array([len(halves)], np.int32), words, halves), "n")
        _restore(saved.read(path, "n"))


def _restore(kept: Kept | None) -> None:
    """As the daemon does."""
    if kept is None:
        return
    rows = AnswerTable(2**16, COSTS, sot=99, seed=0)
    try:
        rows.restore(kept)
    except ValueError:
        return
    rows.keep()


def _cache() -> bytes:
    return _made("answers", lambda path: saved.write(path, KEPT, "n")).read_bytes()


# Answers files

ANSWERS = Answers(
    history_lengths=np.array([1, 2], np.int32),
    history_tokens=np.array([0, 1, 2], np.int32),
    choices=np.array([0, 1], np.int32),
    list_lengths=np.array([2, 1], np.int32),
    list_tokens=np.array([1, 2, 0], np.int32),
    log_probs=np.array([-1, 0, -2], np.float16),
)
ANSWERS_HEADER = AnswersHeader("r", Tokeniser(Vocabulary.full(3), None), (2,), 8, 0, "s", (), "float32", "cpu", "fuzz")
QUERY = ScoreQuery(
    HistoryMode.WINDOW,
    ANSWERS.history_tokens,
    ANSWERS.history_lengths,
    ANSWERS.list_tokens,
    ANSWERS.list_lengths,
)


def read_answers(data: bytes) -> None:
    """The whole file, which is then asked."""
    with as_file(data) as path:
        _ask(FileTeacher(path))


def read_answers_rows(data: bytes) -> None:
    """Arrays whose checksum is right: cut out of the bytes."""
    words = np.frombuffer(data[: len(data) // 4 * 4], "<i4")
    lengths, tokens, choices, of_lists, listed = np.array_split(words, 5)
    halves = words.view(np.float16)[: len(words) // 3]
    with as_file(b"") as path:
        for header in (ANSWERS_HEADER, dataclasses.replace(ANSWERS_HEADER, windows=(0,))):
            answers_file.write(path, header, Answers(lengths, tokens, choices, of_lists, listed, halves))
            with contextlib.suppress(FileFormatError):
                _ask(FileTeacher(path))


def _ask(teacher: FileTeacher) -> None:
    teacher.submit(QUERY).exception()


def _answers() -> bytes:
    path = _made("all-answers", lambda path: answers_file.write(path, ANSWERS_HEADER, ANSWERS))
    return path.read_bytes()


# Checkpoints


def _index_of(archive: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return opened.read(next(name for name in opened.namelist() if name.endswith("data.pkl")))


def _with_index(archive: bytes, index: bytes) -> bytes:
    """A torch archive with another pickle, and right checksums."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(changed, "w") as new:
        for entry in old.infolist():
            is_index = entry.filename.endswith("data.pkl")
            new.writestr(entry.filename, index if is_index else old.read(entry))
    return changed.getvalue()


def read_checkpoint(data: bytes) -> None:
    """A run's checkpoint."""
    with as_file(data) as path:
        checkpoints.load(path)


def read_checkpoint_index(data: bytes) -> None:
    """Its pickle alone."""
    read_checkpoint(_with_index(_checkpoint(), data))


@functools.cache
def _checkpoint() -> bytes:
    content = Checkpoint(
        model={"w": torch.arange(4.0)},
        optimizer={"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        scaler={},
        progress=Progress(3, history=[{"epoch": 1, "accuracy": 0.5}]),
        config={"model": {"num_heads": 2}},
        store="s",
        mu=1.0,
        sigma=2.0,
        teacher_revision="",
        sums={"loss": (1.0, 2)},
        random_state={"cpu": torch.zeros(4, dtype=torch.uint8)},
        torch="2",
    )
    return _made("last.pt", lambda path: checkpoints.save(path, content)).read_bytes()


def read_pretraining(data: bytes) -> None:
    """A checkpoint of `pretrain`."""
    with as_file(data) as path:
        pretraining.load(path)


def read_pretraining_index(data: bytes) -> None:
    """Its pickle alone."""
    read_pretraining(_with_index(_pretraining(), data))


@functools.cache
def _pretraining() -> bytes:
    content = pretraining.Checkpoint(
        model={"w": torch.arange(4.0)},
        best={"w": torch.arange(4.0)},
        optimiser={"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        scaler={},
        progress=pretraining.Progress(3, best_loss=0.5, best_epoch=1),
        config={"n_layer": 2},
        store="s",
        order=dict(np.random.default_rng(0).bit_generator.state),
        random={"cpu": torch.zeros(4, dtype=torch.uint8)},
        torch="2",
    )
    return _made("pretraining.pt", lambda path: pretraining.save(path, content, 1)).read_bytes()


def read_upstream(data: bytes) -> None:
    """A checkpoint of the public LM-TAD."""
    with as_file(data) as path:
        checkpoint.architecture(checkpoint.read(path), 2)


def read_upstream_index(data: bytes) -> None:
    """Its pickle alone."""
    read_upstream(_with_index(_upstream(), data))


@functools.cache
def _upstream() -> bytes:
    _, weights = teacher_file.read(_made("teacher.safetensors", write_tiny_teacher))
    state = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    return _made("ckpt.pt", lambda path: torch.save({"model": state, "model_config": {}}, path)).read_bytes()


def _naming_upstream() -> bytes:
    """A pickle with one of the classes that upstream's checkpoints name."""
    return (
        b"\x80\x02}q\x00(X\x05\x00\x00\x00model}X\x04\x00\x00\x00args"
        b"cargparse\nNamespace\n)\x81}X\x01\x00\x00\x00aK\x01sbu."
    )


# Stores and generated trips


def _store() -> Path:
    return _made("store", write_random_store)


def read_manifest(data: bytes) -> None:
    """store.json of a sound store."""
    with as_file(data, "store.json") as path:
        (path.parent / "network").symlink_to(_store() / "network")
        (path.parent / "train").symlink_to(_store() / "train")
        store = Store(path.parent)
        assert isinstance(store.fingerprint, str)
        store.trips("train")
        assert store.time_scale


def read_array(data: bytes) -> None:
    """An array of the network, in memory, and the roads of a split, both ways."""
    with as_file(data, "roads.npy") as path:
        for name in ("times", "offsets", "source_rows"):
            (path.parent / f"{name}.npy").symlink_to(_store() / "train" / f"{name}.npy")
        store = Store(_store())
        store.path = path.parent
        (path.parent / "train").symlink_to(path.parent)
        (path.parent / "network").symlink_to(path.parent)
        for cache in ("ram", "mmap"):
            store.trips("train", cache)


@functools.cache
def _reader() -> tables.Reader:
    """One process for all files, which it survives or does not; ended with this process."""
    reader = tables.Reader()
    atexit.register(reader.close)
    return reader


def read_trips_table(data: bytes) -> None:
    """trips.parquet of a directory that `generate` wrote."""
    folder = _made("generated", lambda path: write_generated(path, Store(_store()), 5))
    with as_file(data, "trips.parquet") as path:
        (path.parent / "summary.json").symlink_to(folder / "summary.json")
        generated.read(path.parent, Store(_store()), _reader().read)


def read_summary(data: bytes) -> None:
    """Its summary.json."""
    folder = _made("generated", lambda path: write_generated(path, Store(_store()), 5))
    with as_file(data, "summary.json") as path:
        (path.parent / "trips.parquet").symlink_to(folder / "trips.parquet")
        generated.read(path.parent, Store(_store()))


def _of_generated(name: str) -> Sequence[bytes]:
    folder = _made("generated", lambda path: write_generated(path, Store(_store()), 5))
    return [(folder / name).read_bytes()]


TARGETS = (
    Target("teacher", read_teacher, lambda: [_teacher()]),
    Target("teacher-document", read_teacher_document, lambda: [_teacher_document()]),
    Target("cache", read_cache, lambda: [_cache()]),
    Target("cache-rows", read_cache_rows, lambda: [KEPT.words.tobytes(), _cache()]),
    Target("answers", read_answers, lambda: [_answers()]),
    Target("answers-rows", read_answers_rows, lambda: [np.ones(15, "<i4").tobytes(), _answers()]),
    Target("checkpoint", read_checkpoint, lambda: [_checkpoint()]),
    Target("checkpoint-index", read_checkpoint_index, lambda: [_index_of(_checkpoint())]),
    Target("pretraining", read_pretraining, lambda: [_pretraining()]),
    Target("pretraining-index", read_pretraining_index, lambda: [_index_of(_pretraining())]),
    Target("upstream", read_upstream, lambda: [_upstream()]),
    Target("upstream-index", read_upstream_index, lambda: [_index_of(_upstream()), _naming_upstream()]),
    Target("manifest", read_manifest, lambda: [(_store() / "store.json").read_bytes()]),
    Target("array", read_array, lambda: [(_store() / "train" / "roads.npy").read_bytes()]),
    Target("trips-table", read_trips_table, lambda: _of_generated("trips.parquet")),
    Target("summary", read_summary, lambda: [json.dumps(json.loads(_of_generated("summary.json")[0])).encode()]),
)
