"""Log lines with ids, and traces that pass from a request to its fit."""

from __future__ import annotations

import json
import logging

from bo_service.telemetry import JsonFormatter, TextFormatter, bind, bound, bound_to, unbind


def record(text: str = "hello", **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "bo", "levelname": "INFO", "msg": text, "created": 0.0})
    vars(made).update(extra)
    return made


def test_a_json_line_carries_the_ids_and_what_came_as_extra() -> None:
    with bound_to(study="s1", job="j1"):
        line = json.loads(JsonFormatter("relay").format(record(status=200)))
    assert line == {
        "time": "1970-01-01T00:00:00.000+00:00",
        "level": "info",
        "process": "relay",
        "logger": "bo",
        "message": "hello",
        "study": "s1",
        "job": "j1",
        "status": 200,
    }


def test_a_json_line_is_one_line_whatever_is_in_it() -> None:
    error = ValueError("two\nlines")
    made = record("a\nb", exc_info=(ValueError, error, None))
    text = JsonFormatter("api").format(made)
    assert "\n" not in text
    assert "two\nlines" in json.loads(text)["error"]


def test_ids_cannot_forge_a_line_of_text() -> None:
    with bound_to(study="x\n2026-01-01 INFO api all is well"):
        text = TextFormatter("api").format(record())
    assert "\n" not in text


def test_ids_are_nested_and_forgotten() -> None:
    unbind()
    with bound_to(request="r"):
        bind(study="s", trial=None)
        with bound_to(study="t"):
            assert bound() == {"request": "r", "study": "t"}
        assert bound() == {"request": "r", "study": "s"}
    assert bound() == {}
