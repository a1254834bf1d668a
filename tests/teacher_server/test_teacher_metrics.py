"""Names that dashboards and alerts rely on, and that counting follows what happens."""

from __future__ import annotations

import asyncio
import typing

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from shared.errors import InvalidRequest, Overloaded
from teacher_server.answers.table import AnswerTable
from teacher_server.metrics import DECLARED, CutReason, Metrics, Rejection

CONTRACT = {
    ("teacher_requests", "counter"),
    ("teacher_request_seconds", "histogram"),
    ("teacher_scored_positions", "counter"),
    ("teacher_batches", "counter"),
    ("teacher_batch_requests", "histogram"),
    ("teacher_batch_positions", "histogram"),
    ("teacher_batch_padded_tokens", "histogram"),
    ("teacher_queue_wait_seconds", "histogram"),
    ("teacher_compute_seconds", "histogram"),
    ("teacher_queue_positions", "gauge"),
    ("teacher_queue_requests", "gauge"),
    ("teacher_in_flight_requests", "gauge"),
    ("teacher_open_streams", "gauge"),
    ("teacher_credit_positions", "gauge"),
    ("teacher_rejected", "counter"),
    ("teacher_expired", "counter"),
    ("teacher_cancelled", "counter"),
    ("teacher_caller_requests", "counter"),
    ("teacher_caller_positions", "counter"),
    ("teacher_caller_limited", "counter"),
    ("teacher_model", "info"),
    ("teacher_state", "gauge"),
    ("teacher_build", "info"),
    ("teacher_load_seconds", "gauge"),
    ("teacher_certificate_expiry_timestamp_seconds", "gauge"),
}
CONTRACT_OF_ROWS = {
    ("teacher_positions", "counter"),
    ("teacher_cache_evictions", "counter"),
    ("teacher_cache_rows", "gauge"),
    ("teacher_cache_bytes", "gauge"),
    ("teacher_cache_limit_bytes", "gauge"),
}


def test_names_are_the_contract() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    found = {(metric.name, metric.type) for metric in registry.collect() if metric.name.startswith("teacher_")}
    assert found == CONTRACT
    names = {metric.name for metric in registry.collect()}
    assert {"process_resident_memory_bytes", "python_info", "python_gc_collections"} <= names


def test_what_is_declared_is_what_the_class_annotates() -> None:
    assert typing.get_type_hints(Metrics) == {name: declared.kind for name, declared in DECLARED.items()}


@pytest.mark.parametrize(("name", "reasons"), [("teacher_batches", CutReason), ("teacher_rejected", Rejection)])
def test_the_help_explains_every_reason(name: str, reasons: type[CutReason | Rejection]) -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    (text,) = (metric.documentation for metric in registry.collect() if metric.name == name)
    assert all(f"{reason} ({reason.meaning})" in text for reason in reasons)


def test_a_loaded_teacher_counts_its_rows() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    before = {(metric.name, metric.type) for metric in registry.collect()}
    metrics.watch(AnswerTable(2**20, np.arange(9), sot=0))
    found = {(metric.name, metric.type) for metric in registry.collect()} - before
    assert found == CONTRACT_OF_ROWS
    for outcome in ("hit", "wait", "miss"):
        assert registry.get_sample_value("teacher_positions_total", {"outcome": outcome}) == 0
    assert registry.get_sample_value("teacher_cache_limit_bytes") == pytest.approx(2**20, rel=0.001)


def test_reasons_are_there_before_they_happen() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    reasons = ("queue_full", "draining", "loading", "invalid", "unauthenticated", "calls", "quota")
    assert reasons == tuple(Rejection)
    for reason in reasons:
        assert registry.get_sample_value("teacher_rejected_total", {"reason": reason}) == 0
    cuts = ("idle", "full", "deadline", "drain")
    assert cuts == tuple(CutReason)
    for reason in cuts:
        assert registry.get_sample_value("teacher_batches_total", {"reason": reason}) == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("x"), "INVALID_ARGUMENT"),
        (Overloaded("x"), "RESOURCE_EXHAUSTED"),
        (asyncio.CancelledError(), "CANCELLED"),
        (ZeroDivisionError(), "INTERNAL"),
    ],
)
def test_request_is_counted_by_what_it_raises(error: BaseException, code: str) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    with pytest.raises(type(error)), metrics.request("Score"):
        assert registry.get_sample_value("teacher_in_flight_requests") == 1
        raise error
    assert registry.get_sample_value("teacher_in_flight_requests") == 0
    assert registry.get_sample_value("teacher_requests_total", {"method": "Score", "code": code}) == 1
    assert registry.get_sample_value("teacher_request_seconds_count", {"method": "Score"}) == 1
    invalid = registry.get_sample_value("teacher_rejected_total", {"reason": "invalid"})
    assert invalid == (code == "INVALID_ARGUMENT")
