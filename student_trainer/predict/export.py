"""`student-trainer export`: a student and its network as one file that torch runs without this project."""

from __future__ import annotations

import io
import json
from typing import Any

import torch

import shared
from shared import claims, files
from student_trainer.predict.config import ExportConfig
from student_trainer.predict.portable import PortableStudent
from student_trainer.predict.predictor import Predictor

FORMAT = "hoser-portable/1"
DESCRIPTION = "student.json"
"""Name of the description among the file's extra files."""


def run(settings: ExportConfig) -> int:
    """Writes the file; prints its description as JSON on stdout."""
    with claims.file(settings.out):
        return _run(settings)


def _run(settings: ExportConfig) -> int:
    predictor = Predictor.load(settings.weights, settings.data, candidate_top_k=settings.candidate_top_k)
    student = portable(predictor)
    described = describe(predictor, student) | {"weights_sha256": files.file_digest(settings.weights)}
    stream = io.BytesIO()
    torch.export.save(trace(student), stream, extra_files={DESCRIPTION: json.dumps(described)})
    content = stream.getvalue()
    with files.atomic_path(settings.out) as temporary:
        temporary.write_bytes(content)
    print(json.dumps({"out": str(settings.out), "bytes": len(content), **described}))
    return 0


def portable(predictor: Predictor) -> PortableStudent:
    """What a predictor on the CPU computes, with tensors alone."""
    return PortableStudent(predictor.last_step, predictor.network, predictor.scale, predictor.candidate_top_k).eval()


def trace(student: PortableStudent) -> torch.export.ExportedProgram:
    """The student as a graph for any number of trips and steps, one included."""
    trips, steps = torch.export.Dim("trips", min=1), torch.export.Dim("steps", min=1)
    of_steps, of_trips = {0: trips, 1: steps}, {0: trips}
    shapes = {"roads": of_steps, "times": of_steps, "length": of_trips, "destination": of_trips}
    zeros = torch.zeros(2, 3, dtype=torch.int64)
    example = (zeros, zeros.clone(), torch.tensor([3, 2]), torch.tensor([0, 0]))  # one tensor twice would be one input
    with torch.no_grad():
        return torch.export.export(student, example, dynamic_shapes=shapes)


def describe(predictor: Predictor, student: PortableStudent) -> dict[str, Any]:
    """What goes in and what comes out, and what it was made of."""
    return {
        "format": FORMAT,
        "inputs": {
            "roads": "int64 [B, T], roads entered so far, padded to the right with 0",
            "times": "int64 [B, T], entry times, seconds since 1970 on the data's clock, padded alike",
            "length": "int64 [B], roads of each trip, at least 1",
            "destination": "int64 [B], the road where each trip ends",
        },
        "outputs": {
            "roads": f"int64 [B, {student.successors.shape[1]}], candidates, -1 where there are fewer",
            "probabilities": "float64, of which each is the next road",
            "seconds": "float32, from the entry of the last road to that of each",
        },
        "roads": predictor.network.num_roads,
        "store": predictor.store.fingerprint,
        "software": shared.__version__,
        "torch": torch.__version__,
    }
