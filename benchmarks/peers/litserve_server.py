"""LitServe: JSON bodies only, so rows and scores travel as base64; it counts requests."""

import base64
from typing import Any

import litserve
from fastapi import Request

from benchmarks.peers import rows


class Teacher(litserve.LitAPI):  # type: ignore[misc]
    """One worker process with the model."""

    def setup(self, device: str) -> None:
        """Loads the model."""
        self._model = rows.Model()

    def decode_request(self, request: Request) -> rows.Rows:
        """JSON -> rows; LitServe reads the annotation as a real type, and gives the body."""
        body: Any = request
        return rows.from_bytes(base64.b64decode(body["rows"]))

    def batch(self, inputs: list[rows.Rows]) -> list[rows.Rows]:
        """Requests stay apart until the model merges them."""
        return inputs

    def predict(self, inputs: list[rows.Rows]) -> list[rows.Float16]:
        """A batch of requests."""
        return self._model.score_batch(inputs)

    def unbatch(self, output: list[rows.Float16]) -> list[rows.Float16]:
        """One answer a request."""
        return output

    def encode_response(self, output: rows.Float16) -> dict[str, Any]:
        """Scores -> JSON."""
        return {"scores": base64.b64encode(output.tobytes()).decode()}


if __name__ == "__main__":
    api = Teacher(max_batch_size=rows.MAX_REQUESTS, batch_timeout=rows.WAIT_SECONDS)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(host="127.0.0.1", port=rows.port(), generate_client_file=False, log_level="warning")
