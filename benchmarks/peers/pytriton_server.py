"""PyTriton: Triton in front of a Python function; tensors as raw bytes over gRPC; it counts rows."""

from __future__ import annotations

import os

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers import rows


def main() -> None:
    """Serves until the process is ended."""
    model, width = rows.Model(), int(os.environ[rows.WIDTH])

    @batch  # type: ignore[untyped-decorator]
    def score(**inputs: rows.Rows) -> dict[str, rows.Float16]:
        return {"scores": model.score(inputs["rows"])}

    config = TritonConfig(
        grpc_address="127.0.0.1",
        grpc_port=rows.port(),
        allow_http=True,  # PyTriton asks over HTTP whether its server is ready
        http_address="127.0.0.1",
        http_port=rows.port() + 1,
        allow_metrics=False,
    )
    with Triton(config=config) as triton:
        for size in rows.sizes():
            triton.bind(
                model_name=f"rows_{size}",
                infer_func=score,
                inputs=[Tensor(name="rows", dtype=np.int32, shape=(width,))],
                outputs=[Tensor(name="scores", dtype=np.float16, shape=(width - 1 - rows.WINDOW,))],
                config=ModelConfig(
                    max_batch_size=size * rows.MAX_REQUESTS,
                    batcher=DynamicBatcher(max_queue_delay_microseconds=int(1e6 * rows.WAIT_SECONDS)),
                ),
            )
        triton.serve()


if __name__ == "__main__":
    main()
