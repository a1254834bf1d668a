"""The gRPC service that Ray's proxy is told of: bytes there, bytes back."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import BytesValue

from benchmarks.peers.plain_server import METHOD, SERVICE


def add_to_server(servicer: Any, server: Any) -> None:
    """What protoc would write for `rpc Score (BytesValue) returns (BytesValue)`."""
    handler = grpc.unary_unary_rpc_method_handler(
        getattr(servicer, METHOD), BytesValue.FromString, BytesValue.SerializeToString
    )
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler})])
