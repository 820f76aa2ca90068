"""A trace from a request to the fit it causes, received by a collector."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.collector import PARENT, TRACE, TRACEPARENT, Collector, collecting
from tests.waiting import until


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as server:
        yield server


def test_a_fit_belongs_to_the_trace_of_the_request_that_caused_it(
    start_service, collector, make_spec
) -> None:
    traced = start_service(**collector.environment)
    with traced.http() as http:
        headers = {"traceparent": TRACEPARENT}
        study = http.post("/v1/studies", json=make_spec(), headers=headers).json()["id"]
    wanted = {"POST /v1/studies", "bo.advance", "bo.propose"}
    until(lambda: wanted <= collector.of_trace(TRACE).keys(), "the spans")
    spans = collector.of_trace(TRACE)
    assert spans["POST /v1/studies"].parent_span_id.hex() == PARENT
    assert spans["bo.advance"].parent_span_id == spans["POST /v1/studies"].span_id
    assert spans["bo.propose"].parent_span_id == spans["bo.advance"].span_id
    attributes = {a.key: a.value.string_value for a in spans["bo.advance"].attributes}
    assert attributes["bo.study"] == study
