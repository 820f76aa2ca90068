"""What a database may do to a transaction, in the service's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg
from sqlalchemy import make_url
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from bo_service.domain.errors import Contention, Unavailable

CONTENTION: Final = frozenset(("40001", "40P01", "55P03"))
"""PostgreSQL: serialization failure, deadlock, lock not available."""

NO_PRIVILEGE: Final = "42501"

STATEMENT_TIMEOUT: Final = "57014"

UNREACHABLE: Final = ("08", "57P", "53")
"""PostgreSQL's classes: connection lost, server shutting down, resources exhausted."""

SQLITE_PASSING: Final = ("database is locked", "unable to open database file", "disk i/o error")


@contextmanager
def translated() -> Iterator[None]:
    """Let what passes with time leave as Unavailable; a defect of ours stays what it is.

    Raises: Contention where the transaction may be tried again at once, Unavailable where later.
    """
    try:
        yield
    except PoolTimeout as error:
        raise Unavailable(
            "every database connection is busy",
            hint="try again; BO_DATABASE_POOL_SIZE sets how many there are",
        ) from error
    except DBAPIError as error:
        if (reason := _passing(error)) is None:
            raise
        raise reason from error


@contextmanager
def named(url: str) -> Iterator[None]:
    """Say which database cannot be opened, and why, without its password.

    Raises: Unavailable.
    """
    shown = make_url(url).render_as_string(hide_password=True)
    try:
        yield
    except OSError as error:
        raise Unavailable(f"BO_DATABASE_URL: {shown}: {error.strerror}") from error
    except DBAPIError as error:
        state = str(getattr(error.orig, "sqlstate", None) or "")
        # SQLite says DatabaseError of a file that is no database
        is_its_fault = isinstance(error, OperationalError) or type(error) is DatabaseError
        if not is_its_fault and state != NO_PRIVILEGE:
            raise
        reason = " ".join(str(error.orig).split()) or type(error.orig).__name__
        raise Unavailable(f"BO_DATABASE_URL: {shown}: {reason[:300]}") from error


def _passing(error: DBAPIError) -> Unavailable | None:
    """The failure in our words if it may pass by itself."""
    state = str(getattr(error.orig, "sqlstate", None) or "")
    if state in CONTENTION:
        return Contention("another transaction was in the way", hint="try again")
    if state == STATEMENT_TIMEOUT:
        return Unavailable(
            "a database statement took too long", hint="BO_DATABASE_STATEMENT_SECONDS sets the limit"
        )
    text = str(error.orig).lower()
    if "disk is full" in text or state == "53100":
        return Unavailable("the database's disk is full", hint="free some space, and send the request again")
    is_gone = error.connection_invalidated or state.startswith(UNREACHABLE)
    # psycopg gives no state where there was nobody to give one
    has_no_answer = isinstance(error.orig, psycopg.OperationalError) and not state
    if is_gone or has_no_answer or any(sign in text for sign in SQLITE_PASSING):
        return Unavailable("the database does not answer", hint="try again; see /readyz")
    return None
