"""The daemon: wires address, service, batcher and model together, and ends in order.

    listen -> loading -> load, warm up -> serving -> signal -> draining -> answer what was accepted -> stopped -> exit

`lifecycle` holds the state; health and the probes over HTTP tell it. A second signal ends the daemon at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import prometheus_client
import uvloop
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from shared import teacher_file
from shared.channel import Tokens
from shared.errors import ConfigError, ReportableError
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from teacher_server import admission, exposition, heap, security
from teacher_server.address import Address, check_free
from teacher_server.admission import SERVICE, FewRecords, PublicInterceptor
from teacher_server.answers import saved as cache_file
from teacher_server.answers.config import CacheConfig
from teacher_server.answers.table import AnswerTable as RowTable
from teacher_server.answers.table import warm_up
from teacher_server.batching.batcher import Batcher
from teacher_server.config import ServeConfig
from teacher_server.exposition import Exposition
from teacher_server.health import HEALTH, Health
from teacher_server.interceptors import GoneCallers, TeacherInterceptor
from teacher_server.lifecycle import Lifecycle, State
from teacher_server.metrics import Metrics
from teacher_server.scorer import Scorer
from teacher_server.service import TeacherService

if TYPE_CHECKING:
    from teacher_server.engine.engine import Engine

log = logging.getLogger(__name__)

T = TypeVar("T")

DESCRIBED = (SERVICE, HEALTH, reflection.SERVICE_NAME)
"""What reflection tells of."""
REFLECTION_CONNECTIONS = 8
"""Of a listener of its own for reflection."""
GRPC_LOG = "grpc._cython.cygrpc"
FLUSH_SECONDS = 1.0
"""How long the last answers may take to leave after the drain."""
LOST = 1
"""Exit code after the scorer was lost."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""They drain the daemon."""


def serve(settings: ServeConfig) -> int:
    """Serves until a signal; returns the exit code.

    Raises:
        ConfigError: an address is taken or not of this machine, or there are too few file descriptors.
        FileFormatError: the teacher file cannot be read.
    """
    return uvloop.run(_serve(settings))


async def _serve(settings: ServeConfig) -> int:
    stop = _stop_on_signal()
    _quieten_grpc()
    tokens = Tokens(settings.tokens)
    security.check(settings, tokens)
    header = teacher_file.read_header(settings.teacher)
    settings = settings.of_teacher(header.architecture["block_size"])
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each counter
    metrics, lifecycle = Metrics(CollectorRegistry()), Lifecycle()
    service: TeacherService[Any] = TeacherService(settings, metrics)
    health = Health(lifecycle)
    connections = admission.allowed_connections(settings.max_connections, _other_connections(settings))
    server, address = build(settings, service, health, metrics, tokens, connections)
    exposed = _expose(settings, metrics, lifecycle)
    described = _describe(settings, health)
    model_thread = ThreadPoolExecutor(1, "model")
    trimming = asyncio.create_task(heap.trim_for_ever())
    try:
        await server.start()
        if described is not None:
            await described.start()
        if exposed is not None:
            exposed.start()
        log.info("listening on %s, loading %s", address, settings.teacher)
        loaded = await _unless(stop, _load(settings, model_thread))
        if loaded is None:
            log.info("stopped before the teacher was loaded")
            os._exit(0)  # nothing was accepted; the interpreter would wait for the thread that loads
        scorer, rows = loaded
        lost = asyncio.Event()

        def end() -> None:
            log.critical("the teacher cannot go on and ends; whoever supervises it starts it again")
            lost.set()
            stop.set()

        _open(service, scorer, rows, model_thread, settings, metrics, end)
        heap.settle()
        lifecycle.enter(State.SERVING)
        _announce(address, exposed, scorer)
        await stop.wait()
        lifecycle.enter(State.DRAINING)
        code = await _drain(service, settings.drain_seconds)
        _keep(rows, scorer, settings.cache)
        return LOST if lost.is_set() else code
    finally:
        lifecycle.enter(State.STOPPED)
        trimming.cancel()
        await server.stop(FLUSH_SECONDS)
        if described is not None:
            await described.stop(None)
        if exposed is not None:
            await exposed.close()
        model_thread.shutdown(wait=False)


def build(
    settings: ServeConfig,
    service: TeacherService[Any],
    health: Health,
    metrics: Metrics,
    tokens: Tokens | None = None,
    connections: int | None = None,
) -> tuple[grpc.aio.Server, Address]:
    """The gRPC server, bound but not started, and where it listens.

    Args:
        tokens: that callers must show; none: they need not.
        connections: that it may have; none: as many as the settings say.

    Raises:
        ConfigError: the address is taken or not of this machine, or a file of `tls` cannot be used.
    """
    connections = connections or settings.max_connections
    interceptors: list[grpc.aio.ServerInterceptor] = [
        TeacherInterceptor(metrics, settings.max_calls),
        PublicInterceptor(connections),
    ]
    if tokens:
        interceptors.insert(0, security.TokenInterceptor(tokens, metrics))
    options = admission.options(settings, connections, settings.max_message_bytes)
    server = grpc.aio.server(interceptors=interceptors, options=options)
    rpc.add_TeacherServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if settings.reflection == "on":
        reflection.enable_server_reflection(DESCRIBED, server)
    return server, _bind(server, settings.listen, security.server_credentials(settings.tls))


def _describe(settings: ServeConfig, health: Health) -> grpc.aio.Server | None:
    """A server of its own for reflection, if it was asked for."""
    if settings.reflection in ("on", "off"):
        return None
    options = admission.options(settings, REFLECTION_CONNECTIONS, admission.PUBLIC_BYTES)
    server = grpc.aio.server(interceptors=[PublicInterceptor(REFLECTION_CONNECTIONS)], options=options)
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


def _other_connections(settings: ServeConfig) -> int:
    """Those of the other listeners."""
    described = 0 if settings.reflection in ("on", "off") else REFLECTION_CONNECTIONS
    return described + (0 if settings.metrics_listen == "off" else exposition.CONNECTIONS)


def _expose(settings: ServeConfig, metrics: Metrics, lifecycle: Lifecycle) -> Exposition | None:
    if settings.metrics_listen == "off":
        return None
    return Exposition(Address.parse(settings.metrics_listen), metrics.registry, lifecycle)


def _quieten_grpc() -> None:
    """What callers can make gRPC log is little; of what its core writes past `logging`, see `__main__`."""
    logging.getLogger(GRPC_LOG).addFilter(GoneCallers())
    few = FewRecords()
    for handler in logging.getLogger().handlers:
        handler.addFilter(few)


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
    on_lost: Callable[[], None],
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
    is_accelerated = scorer.device != "cpu"
    batcher = Batcher(
        scorer, rows, model_thread, settings.batching, metrics, is_accelerated=is_accelerated, on_lost=on_lost
    )
    service.open(scorer, batcher)


def _announce(address: Address, exposed: Exposition | None, scorer: Scorer[Any]) -> None:
    """One line of JSON on stdout: scripts wait for it."""
    ready = {
        "listening": str(address),
        "metrics": None if exposed is None else str(exposed.address),
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
    """Set by the first of `SIGNALS`; a second one has its default effect. What nohup ignores stays ignored."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    numbers = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]

    def on_signal() -> None:
        stop.set()
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    return stop


async def _unless(stop: asyncio.Event, work: Awaitable[T]) -> T | None:
    """The result of `work`, or None if `stop` is set first."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    return working.result() if working.done() else None
