"""The teacher file: one safetensors file with weights, model, architecture, vocabulary and grid.

The header's metadata holds a JSON document under `lmtad`; nothing in the file can be
executed. Reading the header needs no torch, so that `prepare` can take a teacher's grid.

The header names the model that the weights are of; a file without a name holds an LM-TAD. Files of LM-TADs have the
format and the revisions of the versions that knew no other model; files of others have a format that those refuse.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from shared import files
from shared.errors import FileFormatError
from shared.vocab import Tokeniser

LMTAD = "lmtad"
"""The model of files that name none."""
FORMAT, OTHERS = "lmtad-teacher/1", "any-teacher/1"
"""Of an LM-TAD's file, and of another model's."""
_OCCUPIED = "vocabulary.occupied_cells"

Weights = dict[str, npt.NDArray]


@dataclasses.dataclass(frozen=True)
class TeacherHeader:
    """What a teacher file says about its weights.

    Attributes:
        architecture: the model's sizes, of which `block_size` is every model's; of an LM-TAD also n_layer, n_head,
            n_embd, vocab_size and bias.
        tokeniser: vocabulary and grid.
        revision: digest of the weights, the architecture and the tokeniser.
        provenance: where the weights come from; free-form, for people.
        model: whose weights they are, a name in `teacher_server.teachers`.
    """

    architecture: dict[str, Any]
    tokeniser: Tokeniser
    revision: str
    provenance: dict[str, Any]
    model: str = LMTAD

    @property
    def block_size(self) -> int:
        """Tokens of the longest context with SOT; raises `FileFormatError` if the header does not say."""
        size = self.architecture.get("block_size")
        if type(size) is not int or size < 1:
            raise FileFormatError(f"the teacher file's architecture has no block_size, or a wrong one: {size!r}")
        return size


def write(
    path: Path,
    weights: Weights,
    architecture: dict[str, Any],
    tokeniser: Tokeniser,
    provenance: dict[str, Any],
    model: str = LMTAD,
) -> TeacherHeader:
    """Writes a teacher file atomically and returns its header."""
    revision = _revision(weights, architecture, tokeniser, model)
    document = {
        "format": _format_of(model),
        "model": model,
        "architecture": architecture,
        **tokeniser.to_dict(),
        "revision": revision,
        "provenance": provenance,
    }
    tensors = {name: np.asarray(array, order="C") for name, array in weights.items()}  # others are written scrambled
    if tokeniser.vocabulary.occupied is not None:
        tensors[_OCCUPIED] = tokeniser.vocabulary.occupied
    with files.atomic_path(path) as temporary:
        safetensors.numpy.save_file(tensors, temporary, metadata={"lmtad": json.dumps(document)})
    return TeacherHeader(architecture, tokeniser, revision, provenance, model)


def read_header(path: Path) -> TeacherHeader:
    """Reads everything but the weights.

    Raises:
        FileFormatError: the file is missing, truncated or not a teacher file.
    """
    return _read(path, with_weights=False)[0]


def read(path: Path) -> tuple[TeacherHeader, Weights]:
    """Reads a teacher file and checks its weights against its revision.

    Raises:
        FileFormatError: as `read_header`; or the weights are not those of the revision.
    """
    header, weights = _read(path, with_weights=True)
    if _revision(weights, header.architecture, header.tokeniser, header.model) != header.revision:
        raise FileFormatError(f"{path}: the weights do not match the revision in the header; the file is damaged")
    return header, weights


def _read(path: Path, with_weights: bool) -> tuple[TeacherHeader, Weights]:
    if not path.is_file():
        raise FileFormatError(f"no teacher file at {path}; make one with `teacher-server export` or `pretrain`")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            document = json.loads((file.metadata() or {}).get("lmtad", "null"))
            names = set(file.keys())
            occupied = file.get_tensor(_OCCUPIED) if _OCCUPIED in names else None
            weights = {n: file.get_tensor(n) for n in sorted(names - {_OCCUPIED})} if with_weights else {}
    except (safetensors.SafetensorError, json.JSONDecodeError, OSError, TypeError) as error:
        raise FileFormatError(f"{path} is not a teacher file, or is truncated: {error}") from None
    if not isinstance(document, dict) or document.get("format") != _format_of(document.get("model", LMTAD)):
        raise FileFormatError(
            f"{path} is not a teacher file ({FORMAT}); make one from a checkpoint: `teacher-server export`"
        )
    return _header(path, document, occupied), weights


def _header(path: Path, document: dict[str, Any], occupied: npt.NDArray | None) -> TeacherHeader:
    try:
        return TeacherHeader(
            architecture=document["architecture"],
            tokeniser=Tokeniser.from_dict(document, occupied),
            revision=document["revision"],
            provenance=document["provenance"],
            model=document.get("model", LMTAD),
        )
    except KeyError as error:
        raise FileFormatError(f"{path}: the header lacks {error}; the file is damaged") from None
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from None


def _format_of(model: object) -> str:
    return FORMAT if model == LMTAD else OTHERS


def _revision(weights: Weights, architecture: dict[str, Any], tokeniser: Tokeniser, model: str) -> str:
    parts: list[bytes | str] = [json.dumps(architecture, sort_keys=True), tokeniser.fingerprint]
    parts += [] if model == LMTAD else [model]
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        parts += [f"{name} {array.dtype.str} {array.shape}", array.tobytes()]
    return files.digest(*parts)[:16]
