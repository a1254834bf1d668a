"""The daemon: wires address, service, batcher and model together, and ends in order.

    listen -> loading -> load, warm up -> serving -> signal -> draining -> answer what was accepted -> stopped -> exit

`lifecycle` holds the state; health and the probes over HTTP tell it. A second signal ends the daemon at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

import prometheus_client
import psutil
import uvloop
from prometheus_client import CollectorRegistry

import shared
from shared import config, provenance, tracing
from shared.channel import Tokens
from shared.tracing import Tracer
from teacher_server import teachers
from teacher_server.address import Address
from teacher_server.answers.table import AnswerTable, warm_up
from teacher_server.batching.batcher import Batcher
from teacher_server.metrics import Metrics
from teacher_server.scorer import Scorer, Served
from teacher_server.serve import access, exposition, limits, memory, notify, security
from teacher_server.serve.cache_file import Keeper
from teacher_server.serve.config import ServeConfig
from teacher_server.serve.exposition import Exposition
from teacher_server.serve.health import Health
from teacher_server.serve.interceptors import GoneCallers
from teacher_server.serve.lifecycle import Lifecycle, State
from teacher_server.serve.limits import FewRecords
from teacher_server.serve.server import build
from teacher_server.serve.service import TeacherService

log = logging.getLogger(__name__)

T = TypeVar("T")

GRPC_LOG = "grpc._cython.cygrpc"
FLUSH_SECONDS = 1.0
"""How long the last answers may take to leave after the drain."""
REVISION = 12
"""Digits of the source's digest that the metrics tell."""
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
    with tracing.opened(settings.tracing, "teacher-server") as tracer:
        return uvloop.run(_serve(settings, tracer))


async def _serve(settings: ServeConfig, tracer: Tracer | None) -> int:
    stop = _stop_on_signal()
    _quieten_grpc()
    tokens = Tokens(settings.tokens)
    security.check(settings, tokens)
    settings = settings.of_teacher(teachers.read_header(settings.teacher).block_size)
    metrics, lifecycle = _introduce(settings)
    service = TeacherService(settings, metrics, tracer)
    model_thread = ThreadPoolExecutor(1, "model")
    try:
        async with _listening(settings, service, metrics, tokens, lifecycle) as ports:
            loaded = await _unless(stop, _load(settings, model_thread))
            if loaded is None:
                log.info("stopped before the teacher was loaded")
                os._exit(0)  # nothing was accepted; the interpreter would wait for the thread that loads
            scorer, answers, keeper = loaded
            _show(scorer.served, answers, metrics)
            lost = asyncio.Event()

            def end() -> None:
                log.critical("the teacher cannot go on and ends; whoever supervises it starts it again")
                lost.set()
                stop.set()

            batcher = Batcher(
                scorer, answers, model_thread, settings.batching, metrics,
                is_accelerated=scorer.served.device != "cpu", on_lost=end, share=service.quotas.share,
            )  # fmt: skip
            service.open(scorer.served, batcher)
            with memory.settled():
                _enter(lifecycle, State.SERVING)
                metrics.load_seconds.set(time.time() - psutil.Process().create_time())
                _announce(*ports, scorer.served)
                async with keeper.keeping():
                    await stop.wait()
                    _enter(lifecycle, State.DRAINING)
                    code = await _drain(service, settings.drain_seconds)
            return LOST if lost.is_set() else code
    finally:
        model_thread.shutdown(wait=False)


def _introduce(settings: ServeConfig) -> tuple[Metrics, Lifecycle]:
    """Has the log and fresh metrics tell what is known before the teacher is loaded."""
    log.info("settings: %s", config.in_force(settings))
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each counter
    metrics, lifecycle = Metrics(CollectorRegistry()), Lifecycle()
    metrics.build.info({"version": shared.__version__, "revision": provenance.source_digest(__name__)[:REVISION]})
    metrics.follow([state.value for state in State], lambda: lifecycle.state.value)
    if settings.log.access:
        metrics.listeners.append(access.write)
    return metrics, lifecycle


@contextlib.asynccontextmanager
async def _listening(
    settings: ServeConfig, service: TeacherService, metrics: Metrics, tokens: Tokens, lifecycle: Lifecycle
) -> AsyncIterator[tuple[Address, Address | None]]:
    """Around all that callers may see: the addresses of calls and of the metrics, which are closed at the end."""
    others = 0 if settings.metrics_listen == "off" else exposition.CONNECTIONS
    connections = limits.allowed_connections(settings.max_connections, others)
    server, address = build(settings, service, Health(lifecycle), metrics, tokens, connections)
    exposed = _expose(settings, metrics, lifecycle)
    trimming = asyncio.create_task(memory.trim_for_ever())
    try:
        await server.start()
        if exposed is not None:
            exposed.start()
        log.info("loading %s; calls to %s are refused until it is ready", settings.teacher, address)
        notify.tell(State.LOADING)
        yield address, None if exposed is None else exposed.address
    finally:
        _enter(lifecycle, State.STOPPED)
        trimming.cancel()
        await server.stop(FLUSH_SECONDS)
        if exposed is not None:
            await exposed.close()


def _enter(lifecycle: Lifecycle, state: State) -> None:
    lifecycle.enter(state)
    notify.tell(state)


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


async def _load(settings: ServeConfig, model_thread: Executor) -> tuple[Scorer[Any], AnswerTable, Keeper]:
    """Loads and warms up on the model's own thread, while the loop answers that it is loading."""

    def load() -> tuple[Scorer[Any], AnswerTable, Keeper]:
        scorer = teachers.load(settings.teacher, settings.engine)
        sot = scorer.served.header.tokeniser.vocabulary.sot
        answers = AnswerTable(settings.cache.mib * 2**20, scorer.costs, sot)
        if settings.warm_up:
            started = time.perf_counter()
            scorer.warm_up()
            warm_up(answers)
            log.info("warmed up in %.1f s", time.perf_counter() - started)
        return scorer, answers, Keeper(answers, scorer.served.numerics, settings.cache)

    return await asyncio.get_running_loop().run_in_executor(model_thread, load)


def _show(served: Served, answers: AnswerTable, metrics: Metrics) -> None:
    """Has the metrics tell what was loaded."""
    metrics.model.info(
        {
            "revision": served.header.revision,
            "dtype": served.compute_dtype,
            "device": served.device,
            "fingerprint": served.header.tokeniser.fingerprint,
        }
    )
    metrics.watch(answers)


def _announce(address: Address, metrics: Address | None, served: Served) -> None:
    """One line of JSON on stdout, which scripts wait for, and one in the log."""
    log.info("listening on %s", address)
    ready = {
        "listening": str(address),
        "metrics": None if metrics is None else str(metrics),
        "weights_revision": served.header.revision,
        "fingerprint": served.header.tokeniser.fingerprint,
        "device": served.device,
        "compute_dtype": served.compute_dtype,
        "parameters": served.parameters,
    }
    print(json.dumps(ready), flush=True)


async def _drain(service: TeacherService, seconds: float) -> int:
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
