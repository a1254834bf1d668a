"""The daemon: wires address, service, batcher and model together, and ends in order.

    listen -> NOT_SERVING -> load, warm up -> SERVING -> signal -> NOT_SERVING -> drain -> exit

A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import Awaitable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import prometheus_client
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]  # the stubs lack it
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from shared.channel import Tokens
from shared.errors import ConfigError, ReportableError
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from teacher_server import heap, security
from teacher_server.address import Address, check_free
from teacher_server.answers import saved as cache_file
from teacher_server.answers.config import CacheConfig
from teacher_server.answers.table import AnswerTable as RowTable
from teacher_server.answers.table import warm_up
from teacher_server.batching.batcher import Batcher
from teacher_server.config import ServeConfig
from teacher_server.interceptors import SERVICE, GoneCallers, TeacherInterceptor
from teacher_server.metrics import Exposition, Metrics
from teacher_server.scorer import Scorer
from teacher_server.service import TeacherService

if TYPE_CHECKING:
    from teacher_server.engine.engine import Engine

log = logging.getLogger(__name__)

T = TypeVar("T")

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
HEALTH_NAMES = ("", SERVICE)
DESCRIBED = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
"""What reflection tells of."""
GRPC_LOG = "grpc._cython.cygrpc"
FLUSH_SECONDS = 1.0
"""How long the last answers may take to leave after the drain; open health watches last as long."""


def serve(settings: ServeConfig) -> int:
    """Serves until a signal; returns the exit code.

    Raises:
        ConfigError: an address is taken or not of this machine.
        FileFormatError: the teacher file cannot be read.
    """
    return uvloop.run(_serve(settings))


async def _serve(settings: ServeConfig) -> int:
    stop = _stop_on_signal()
    logging.getLogger(GRPC_LOG).addFilter(GoneCallers())
    tokens = Tokens(settings.tokens)
    security.check(settings, tokens)
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each counter
    metrics = Metrics(CollectorRegistry())
    service: TeacherService[Any] = TeacherService(settings, metrics)
    health = health_aio.HealthServicer()
    await _set_health(health, NOT_SERVING)
    server, address = build(settings, service, health, metrics, tokens)
    exposition = _expose(settings, metrics)
    described = _describe(settings, health)
    model_thread = ThreadPoolExecutor(1, "model")
    trimming = asyncio.create_task(heap.trim_for_ever())
    try:
        await server.start()
        if described is not None:
            await described.start()
        log.info("listening on %s, loading %s", address, settings.teacher)
        loaded = await _unless(stop, _load(settings, model_thread))
        if loaded is None:
            return 0
        scorer, rows = loaded
        _open(service, scorer, rows, model_thread, settings, metrics)
        heap.settle()
        await _set_health(health, SERVING)
        _announce(address, exposition, scorer)
        await stop.wait()
        await health.enter_graceful_shutdown()
        code = await _drain(service, settings.drain_seconds)
        _keep(rows, scorer, settings.cache)
        return code
    finally:
        trimming.cancel()
        await server.stop(FLUSH_SECONDS)
        if described is not None:
            await described.stop(None)
        if exposition is not None:
            exposition.close()
        model_thread.shutdown(wait=False)


def build(
    settings: ServeConfig,
    service: TeacherService[Any],
    health: health_aio.HealthServicer,
    metrics: Metrics,
    tokens: Tokens | None = None,
) -> tuple[grpc.aio.Server, Address]:
    """The gRPC server, bound but not started, and where it listens.

    Raises:
        ConfigError: the address is taken or not of this machine, or a file of `tls` cannot be used.
    """
    interceptors: list[grpc.aio.ServerInterceptor] = [TeacherInterceptor(metrics)]
    if tokens:
        interceptors.insert(0, security.TokenInterceptor(tokens, metrics))
    server = grpc.aio.server(interceptors=interceptors, options=_options(settings))
    rpc.add_TeacherServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if settings.reflection == "on":
        reflection.enable_server_reflection(DESCRIBED, server)
    return server, _bind(server, settings.listen, security.server_credentials(settings.tls))


def _describe(settings: ServeConfig, health: health_aio.HealthServicer) -> grpc.aio.Server | None:
    """A server of its own for reflection, if it was asked for."""
    if settings.reflection in ("on", "off"):
        return None
    server = grpc.aio.server(options=_options(settings))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection(DESCRIBED, server)
    log.info("reflection on %s", _bind(server, settings.reflection, None))
    return server


def _bind(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials | None) -> Address:
    address = Address.parse(listen)
    check_free(address)
    try:
        if credentials is None:
            port = server.add_insecure_port(str(address))
        else:
            port = server.add_secure_port(str(address), credentials)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {address}: {error}; choose another address") from None
    return address if address.path else address.with_port(port)


def _options(settings: ServeConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # a second daemon on the port must fail, not take half of the calls
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),  # an answer is smaller than its question
        ("grpc.keepalive_time_ms", round(1000 * settings.keepalive_seconds)),  # notice machines that have vanished
        ("grpc.keepalive_timeout_ms", round(1000 * settings.keepalive_seconds / 3)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.ping_timeout_ms", round(1000 * settings.keepalive_seconds / 3)),  # otherwise 60 s come first
        ("grpc.http2.max_pings_without_data", 0),  # gRPC would stop after two
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # trainers ping while their student computes
    ]


def _expose(settings: ServeConfig, metrics: Metrics) -> Exposition | None:
    if settings.metrics_listen == "off":
        return None
    return Exposition(Address.parse(settings.metrics_listen), metrics.registry)


async def _load(settings: ServeConfig, model_thread: Executor) -> tuple[Engine, RowTable]:
    """Loads and warms up on the model's own thread, while the loop answers that it is loading."""

    def load() -> tuple[Engine, RowTable]:
        from teacher_server.engine import engine  # torch takes seconds to import

        scorer = engine.load(settings.teacher, settings.engine)
        rows = RowTable(settings.cache.mib * 2**20, scorer.costs, scorer.header.tokeniser.vocabulary.sot)
        if settings.warm_up:
            started = time.perf_counter()
            scorer.warm_up()
            warm_up(rows)
            log.info("warmed up in %.1f s", time.perf_counter() - started)
        _restore(rows, scorer, settings.cache)
        return scorer, rows

    return await asyncio.get_running_loop().run_in_executor(model_thread, load)


def _restore(rows: RowTable, scorer: Scorer[Any], settings: CacheConfig) -> None:
    """Remembers what an earlier daemon with this teacher has kept."""
    kept = None if settings.file is None else cache_file.read(settings.file, scorer.numerics)
    if kept is None:
        return
    try:
        rows.restore(kept)
    except ValueError as error:
        log.warning("the remembered answers in %s are damaged (%s); starting without them", settings.file, error)
    else:
        log.info("remembered %d answers from %s", rows.rows, settings.file)


def _keep(rows: RowTable, scorer: Scorer[Any], settings: CacheConfig) -> None:
    """Keeps what is remembered for the next daemon with this teacher."""
    if settings.file is None:
        return
    kept = rows.keep()
    try:
        cache_file.write(settings.file, kept, scorer.numerics)
    except (OSError, ReportableError) as error:
        log.error("could not keep the remembered answers in %s: %s", settings.file, error)
    else:
        log.info("kept %d answers in %s", len(kept.key_words), settings.file)


def _open(
    service: TeacherService[Any],
    scorer: Scorer[Any],
    rows: RowTable,
    model_thread: Executor,
    settings: ServeConfig,
    metrics: Metrics,
) -> None:
    metrics.model.info(
        {
            "revision": scorer.header.revision,
            "dtype": scorer.compute_dtype,
            "device": scorer.device,
            "fingerprint": scorer.header.tokeniser.fingerprint,
        }
    )
    metrics.watch(rows)
    service.open(scorer, Batcher(scorer, rows, model_thread, settings.batching, metrics))


def _announce(address: Address, exposition: Exposition | None, scorer: Scorer[Any]) -> None:
    """One line of JSON on stdout: scripts wait for it."""
    ready = {
        "listening": str(address),
        "metrics": None if exposition is None else str(exposition.address),
        "weights_revision": scorer.header.revision,
        "fingerprint": scorer.header.tokeniser.fingerprint,
        "device": scorer.device,
        "compute_dtype": scorer.compute_dtype,
        "parameters": scorer.parameters,
    }
    print(json.dumps(ready), flush=True)


async def _drain(service: TeacherService[Any], seconds: float) -> int:
    log.info("draining: accepted requests are answered, new ones refused; a second signal stops at once")
    try:
        async with asyncio.timeout(seconds):
            await service.drain()
    except TimeoutError:
        log.error("gave up after %g s with %d requests unanswered", seconds, service.unanswered)
        os._exit(1)  # the interpreter would wait for the model thread, which may be what hangs
    log.info("drained")
    return 0


def _stop_on_signal() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; a second one has its default effect."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def on_signal() -> None:
        stop.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stop


async def _unless(stop: asyncio.Event, work: Awaitable[T]) -> T | None:
    """The result of `work`, or None if `stop` is set first."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    return working.result() if working.done() else None


async def _set_health(health: health_aio.HealthServicer, status: int) -> None:
    for name in HEALTH_NAMES:
        await health.set(name, status)
