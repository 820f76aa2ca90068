"""Celery's connections to the broker: tried again every few seconds, and calm about it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from celery import Celery
from celery.app.amqp import AMQP
from kombu import Connection
from kombu.exceptions import OperationalError

from bo_service.outages import BROKER, BrokerAway

LONGEST_PAUSE_SECONDS: Final = 3.0
"""Between two tries to connect: Celery's own pauses grow to half a minute, and a study waits that long."""

# containers run as root without harm to anybody: what is executed are our own tasks, and nothing is unpickled
warnings.filterwarnings("ignore", message="You're running the worker with superuser privileges")


class PatientConnection(Connection):  # type: ignore[misc]  # kombu carries no types
    """Connects again after 1, 2, 3, 3 ... seconds; a line when the broker goes, and one a minute."""

    def ensure_connection(
        self, errback: Callable[..., None] | None = None, max_retries: int | None = None, **options: Any
    ) -> Connection:
        """See kombu; where the tries are without end, their failures are noted instead of logged."""

        def note(error: Exception, _: float) -> None:
            BROKER.note("connecting", f"{self.as_uri()}: {error}")

        pauses = {"interval_start": 1.0, "interval_step": 1.0, "interval_max": LONGEST_PAUSE_SECONDS}
        is_endless = max_retries is None and options.get("timeout") is None
        super().ensure_connection(note if is_endless else errback, max_retries, **pauses | options)
        BROKER.over("connecting")
        return self


class PatientAMQP(AMQP):  # type: ignore[misc]
    """Celery's messages over such connections."""

    Connection = PatientConnection


@contextmanager
def broker_errors(through: Celery) -> Iterator[None]:
    """What a broker that is away makes of a call. Raises: BrokerAway."""
    connection = through.connection_for_write()
    try:
        yield
    except (OperationalError, OSError, *connection.connection_errors) as error:
        raise BrokerAway(f"{connection.as_uri()}: {error}") from error
    BROKER.over()
