"""Wake-ups between the processes of a service on PostgreSQL; a lost one costs a poll, never data."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import psycopg
from sqlalchemy import make_url

from bo_service.domain.ids import StudyId
from bo_service.outages import DATABASE

JOBS: Final = "bo_jobs"
STUDIES: Final = "bo_studies"

GATHER_SECONDS: Final = 0.005
"""News of so long travel together: NOTIFY takes a lock that all committing transactions share."""

LONGEST_BACKOFF: Final = 3.0


def _nothing(*_: Any) -> None:
    return None


class PostgresSignals:
    """Says and hears, through LISTEN/NOTIFY, that jobs wait and that studies changed; see ports.Wakeup.

    Two threads with a connection each, made again when it breaks. What others said meanwhile is not heard, so
    `on_gap` is called after every new connection: whoever waits should look for himself.
    """

    def __init__(
        self,
        url: str,
        *,
        on_jobs: Callable[[], None] | None = None,
        on_study: Callable[[StudyId], None] | None = None,
        on_gap: Callable[[], None] | None = None,
    ) -> None:
        self._url = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._on_jobs, self._on_study = on_jobs or _nothing, on_study or _nothing
        self._on_gap = on_gap or _nothing
        self._channels = [JOBS] * (on_jobs is not None) + [STUDIES] * (on_study is not None)
        self._unsaid: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._has_news = threading.Event()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def compute(self) -> None:
        """See ports.Wakeup."""
        self._say(JOBS, "")

    def study_changed(self, study_id: StudyId) -> None:
        """See ports.Wakeup."""
        self._say(STUDIES, study_id)

    def start(self) -> None:
        """Start the thread that speaks and, where something is listened for, the one that hears."""
        work = [("say", self._speak)] + ([("hear", self._hear)] if self._channels else [])
        for name, act in work:
            thread = threading.Thread(
                target=self._keep, args=(f"signals-{name}", act), name=f"signals-{name}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End both threads."""
        self._stopping.set()
        self._has_news.set()
        for thread in self._threads:
            thread.join(2.0)

    def _say(self, channel: str, payload: str) -> None:
        with self._lock:
            self._unsaid.add((channel, payload))
        self._has_news.set()

    def _keep(self, name: str, act: Callable[[psycopg.Connection[Any]], None]) -> None:
        """Do it over a connection, and over the next one when that breaks."""
        pause = 0.1
        while not self._stopping.is_set():
            try:
                with psycopg.connect(self._url, autocommit=True) as connection:
                    pause = 0.1
                    DATABASE.over(name)
                    act(connection)
            except psycopg.Error as error:
                DATABASE.note(name, " ".join(str(error).split()))
                self._stopping.wait(pause)
                pause = min(2 * pause, LONGEST_BACKOFF)

    def _speak(self, connection: psycopg.Connection[Any]) -> None:
        while not self._stopping.is_set():
            self._has_news.wait()
            self._stopping.wait(GATHER_SECONDS)
            self._has_news.clear()
            with self._lock:
                unsaid, self._unsaid = self._unsaid, set()
            channels, payloads = [c for c, _ in unsaid], [p for _, p in unsaid]
            try:
                connection.execute(
                    "SELECT pg_notify(c, p) FROM unnest(%s::text[], %s::text[]) AS news(c, p)",
                    (channels, payloads),
                )
            except psycopg.Error:
                # said over the next connection
                with self._lock:
                    self._unsaid |= unsaid
                self._has_news.set()
                raise

    def _hear(self, connection: psycopg.Connection[Any]) -> None:
        for channel in self._channels:
            connection.execute(f'LISTEN "{channel}"'.encode())
        self._on_gap()
        while not self._stopping.is_set():
            for news in connection.notifies(timeout=1.0):
                if news.channel == JOBS:
                    self._on_jobs()
                else:
                    self._on_study(StudyId(news.payload))
