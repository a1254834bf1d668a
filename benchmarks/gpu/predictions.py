"""What was expected of an NVIDIA H100 before anything had run on one: limits of the hardware, and predictions.

From data sheets, kernel counts on the meta device and arithmetic; none of it was measured. They stand beside the
figures of any device, as a measure, and are of no other use.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Of a figure, in its unit.

    Attributes:
        limit: what an H100 could do at best, as text; empty if nothing was worked out.
        expected: of the code as it was written without a GPU; empty likewise.
        wanted: after what was planned then: compiled assembling, fused attention, graphs; empty likewise.
    """

    limit: str = ""
    expected: str = ""
    wanted: str = ""


PREDICTIONS: dict[str, Prediction] = {
    "machine/device copy": Prediction(limit="3,350 (HBM3, read and written)"),
    "machine/host to device, pinned": Prediction(limit="64 (PCIe 5)"),
    "machine/device to host, pinned": Prediction(limit="64 (PCIe 5)"),
    "machine/matmul 8192 float16": Prediction(limit="989 (dense, data sheet)"),
    "machine/launch": Prediction(expected="5 to 8"),
    "teacher/largest tile": Prediction(limit="0.4", expected="8", wanted="1"),
    "teacher/host per new state": Prediction(expected="9", wanted="1"),
    "teacher/host per known position": Prediction(expected="0.36", wanted="0.15"),
    "teacher/model per new state": Prediction(limit="0.5", expected="1.5"),
    "teacher/every state new": Prediction(limit="1,800,000 to 2,500,000", expected="100,000", wanted="400,000"),
    "teacher/first pass": Prediction(limit="18,000,000 (10 % new)", expected="800,000", wanted="3,000,000"),
    "teacher/second pass": Prediction(expected="2,800,000", wanted="2,800,000"),
    "teacher/2,000 windows at once": Prediction(expected="330,000"),
    "daemon/one client, cold, daemon ÷ engine": Prediction(wanted="0.9"),
    "daemon/eight clients, cold, daemon ÷ engine": Prediction(wanted="0.9"),
    "student/ours float32": Prediction(limit="400 to 500", expected="125 to 165", wanted="300"),
    "student/ours float16": Prediction(limit="400 to 500", expected="125 to 165", wanted="300"),
    "student/ours bfloat16": Prediction(limit="400 to 500", expected="125 to 165", wanted="300"),
    "student/ours float32, fed": Prediction(limit="400 to 500", expected="70 to 95", wanted="300"),
    "student/ours float16, fed": Prediction(limit="400 to 500", expected="70 to 95", wanted="300"),
    "student/ours bfloat16, fed": Prediction(limit="400 to 500", expected="70 to 95", wanted="300"),
    "student/kernels of a float32 step": Prediction(expected="810"),
    "student/kernels of a float16 step": Prediction(expected="900"),
    "student/syncs of a float32 step": Prediction(limit="1", expected="9", wanted="1"),
    "student/host: field": Prediction(expected="8.6"),
    "student/host: packing": Prediction(expected="0.3"),
    "student/host: all of a step": Prediction(expected="10.4", wanted="2"),
    "student/host: batch": Prediction(expected="1.5", wanted="1.5"),
    "student/host: query": Prediction(expected="0.25", wanted="0.25"),
    "train/vanilla": Prediction(expected="70 to 95", wanted="300"),
    "generate/beam search, device": Prediction(limit="250,000 (host: 7.8 µs a step, two threads)", expected="60,000"),
    "train/cold ÷ vanilla, time of a step": Prediction(limit="1", wanted="1.05"),
    "train/warm ÷ vanilla, time of a step": Prediction(limit="1", wanted="1.05"),
}
"""By part and name of the figure."""
