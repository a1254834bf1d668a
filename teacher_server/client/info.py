"""`info`: what a teacher file, or a running server, is; one JSON document on stdout."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from shared import teacher_file, wire
from shared.channel import ChannelConfig
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.vocab import Tokeniser
from shared.wire import TeacherInfo
from teacher_server.client.config import InfoConfig
from teacher_server.client.connect import dialled, patiently


def run(settings: InfoConfig) -> None:
    """Prints the description of the file or of the server that answers at the address."""
    if settings.teacher is not None:
        description = describe_file(settings.teacher)
    else:
        description = describe_server(patiently(lambda: _ask(settings), settings.wait))
    print(json.dumps(description, indent=2))


def _ask(settings: InfoConfig) -> TeacherInfo:
    assert settings.address is not None  # the schema demands it, or a file
    return ask(settings.address, settings.timeout, settings.channel)


def describe_file(path: Path) -> dict[str, Any]:
    """The header of a teacher file as plain values; raises `FileFormatError`."""
    header = teacher_file.read_header(path)
    return {
        "teacher": str(path),
        "model": header.model,
        "revision": header.revision,
        **_describe_tokeniser(header.tokeniser),
        "architecture": header.architecture,
        "provenance": header.provenance,
    }


def describe_server(info: TeacherInfo) -> dict[str, Any]:
    """What a server says of itself as plain values."""
    return {
        "revision": info.weights_revision,
        **_describe_tokeniser(info.tokeniser),
        "architecture": {
            "n_layer": info.n_layer,
            "n_head": info.n_head,
            "n_embd": info.n_embd,
            "block_size": info.block_size,
        },
        "parameters": info.parameters,
        "limits": dataclasses.asdict(info.limits),
        "compute_dtype": info.compute_dtype,
        "device": info.device,
        "server_version": info.server_version,
    }


def ask(address: str, timeout: float, channel: ChannelConfig) -> TeacherInfo:
    """Asks a server what it serves.

    Raises:
        TeacherError: it did not answer in time, or refused; `Unavailable` if nothing listens there.
        CompatibilityError: what it answered is malformed.
    """
    with dialled(address, channel) as (teacher, metadata):
        response = teacher.GetTeacher(pb.GetTeacherRequest(), timeout=timeout, metadata=metadata)
    return wire.decode_info(response)


def _describe_tokeniser(tokeniser: Tokeniser) -> dict[str, Any]:
    return {"fingerprint": tokeniser.fingerprint, **tokeniser.to_dict()}
