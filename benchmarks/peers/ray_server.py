"""Ray Serve over gRPC: raw bytes; it counts requests. Its proxy has no bind address."""

from __future__ import annotations

import signal
from typing import Any

import ray
from google.protobuf.wrappers_pb2 import BytesValue
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions

from benchmarks.peers import rows

APPLICATION = "rows"


@serve.deployment(max_ongoing_requests=1000)
class Teacher:
    """One replica with the model."""

    def __init__(self) -> None:
        self._model = rows.Model()

    @serve.batch(max_batch_size=rows.MAX_REQUESTS, batch_wait_timeout_s=rows.WAIT_SECONDS)  # type: ignore[untyped-decorator]
    async def score(self, asked: list[rows.Rows]) -> list[rows.Float16]:
        """A batch of requests."""
        return self._model.score_batch(asked)

    async def Score(self, request: Any) -> Any:  # noqa: N802 - the method of the service
        """The handler of a call."""
        scores = await self.score(rows.from_bytes(request.value))
        return BytesValue(value=scores.tobytes())


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    services = ["benchmarks.peers.ray_service.add_to_server"]
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host="127.0.0.1", port=0),
        grpc_options=gRPCOptions(port=rows.port(), grpc_servicer_functions=services),
    )
    serve.run(Teacher.bind(), name=APPLICATION)  # type: ignore[attr-defined]
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    ray.shutdown()
