"""What a process says about itself: log lines that carry ids, and traces that follow a request into its fit."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, Literal

from opentelemetry import propagate, trace

NOTHING: Final[Mapping[str, str]] = MappingProxyType({})

_ids: ContextVar[Mapping[str, str]] = ContextVar("bo_ids", default=NOTHING)

SILENT: Final = ("ax.storage.sqa_store.with_db_settings_base",)
"""What a library says of a store of its own that nobody uses here."""

STANDARD: Final = frozenset(vars(logging.makeLogRecord({})))
"""What every log record has; anything else came with `extra`."""

tracer: Final = trace.get_tracer("bo_service")
"""Does nothing until `start_tracing` gives it somewhere to send spans."""


def bind(**ids: str | None) -> None:
    """Let every later log line of this request or job carry these ids; names as in the API, such as `study`."""
    _ids.set({**_ids.get(), **{name: value for name, value in ids.items() if value}})


def unbind() -> None:
    """Forget all ids: the next request or job starts clean."""
    _ids.set(NOTHING)


def bound() -> Mapping[str, str]:
    """The ids bound now."""
    return _ids.get()


@contextmanager
def bound_to(**ids: str | None) -> Iterator[None]:
    """Ids for the lines inside."""
    token = _ids.set({**_ids.get(), **{name: value for name, value in ids.items() if value}})
    try:
        yield
    finally:
        _ids.reset(token)


class TextFormatter(logging.Formatter):
    """A line for people, ids at its end."""

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {process} %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        ids = " ".join(f"{name}={_on_one_line(value)}" for name, value in bound().items())
        text = super().format(record)
        return f"{text} [{ids}]" if ids else text


def _on_one_line(value: str) -> str:
    """A stranger's text must not look like another line of the log."""
    return value[:128] if value.isprintable() else repr(value[:128])


class JsonFormatter(logging.Formatter):
    """A JSON object a line: time, level, process, logger, message, the bound ids and what came as `extra`."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
            **bound(),
            **{name: value for name, value in vars(record).items() if name not in STANDARD},
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(line, default=str)


def start_logging(process: str, *, level: str, form: Literal["text", "json"]) -> None:
    """Send every log line of this process to stderr, in the form the settings ask for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if form == "json" else TextFormatter(process))
    for name in SILENT:
        logging.getLogger(name).disabled = True
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def start_tracing(process: str) -> None:
    """Send spans by OTLP over HTTP; where to is for the OTEL_EXPORTER_OTLP_* variables to say.

    Raises: SystemExit where the SDK is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise SystemExit("BO_TRACING needs OpenTelemetry: pip install 'bo-service[otel]'") from error
    provider = TracerProvider(resource=Resource.create({"service.name": f"bo-service-{process}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def traceparent() -> str | None:
    """The current span in W3C form, for whoever goes on with the work; None where nothing is traced."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get("traceparent")


@contextmanager
def span(
    name: str, attributes: Mapping[str, str | int | float], *, parent: str | None = None
) -> Iterator[trace.Span]:
    """A span around the work inside, under the span that `parent` names or the current one."""
    context = propagate.extract({"traceparent": parent}) if parent else None
    with tracer.start_as_current_span(name, context=context, attributes=dict(attributes)) as current:
        yield current
