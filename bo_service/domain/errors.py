"""ServiceError
+- Invalid           the caller mends the named fields
+- NotFound          the caller has a wrong id, or no right to see it
+- Conflict          the caller changes the request: name taken, other value already recorded
|  +- MeaningChanged   the edit would change what old data mean; the caller branches the study
|  +- LeaseLost        the worker drops the trial; another attempt owns it
|  +- TrialClosed      the trial has its result; nothing to do
|  `- StudyClosed      the study takes no more trials
+- Unauthorized      the caller gives a valid key
+- Forbidden         the caller needs a key of a wider scope
+- RateLimited       the caller waits as long as `Retry-After` says
`- Unavailable       the caller tries again later
   `- Contention        the service tries again itself; the caller only where that failed
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from surrogates.errors import Problem


class ServiceError(Exception):
    """Anything the service raises on purpose; `code` is public and stable."""

    code: ClassVar[str] = "internal"

    def __init__(self, detail: str, *, hint: str = "", **extras: Any) -> None:
        self.detail = detail
        self.hint = hint
        self.extras = extras
        super().__init__(f"{detail} ({hint})" if hint else detail)


class Invalid(ServiceError):
    """The input breaks the rules; every field at fault is named."""

    code = "validation_failed"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        first = str(self.problems[0]) if self.problems else "invalid input"
        more = f" and {len(self.problems) - 1} more" if len(self.problems) > 1 else ""
        super().__init__(first + more)


class NotFound(ServiceError):
    """There is no such thing in this project."""

    code = "not_found"

    def __init__(self, kind: str, key: str) -> None:
        super().__init__(f"no {kind} {key!r} in this project", kind=kind, key=key)


class Conflict(ServiceError):
    """The request contradicts what is recorded."""

    code = "conflict"


class NameTaken(Conflict):
    """The project has another study of this name."""

    code = "name_taken"


class MeaningChanged(Conflict):
    """The edit would change the meaning of recorded data."""

    code = "meaning_changed"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            "; ".join(map(str, self.problems)),
            hint="branch the study: POST /v1/studies/{study}/branch copies the trials that stay valid",
        )


class LeaseLost(Conflict):
    """The lease ended or another attempt holds the trial."""

    code = "lease_lost"


class TrialClosed(Conflict):
    """The trial is already closed."""

    code = "trial_closed"


class StudyClosed(Conflict):
    """The study takes no more work in its present state."""

    code = "study_closed"


class NotConfigured(Conflict):
    """The service lacks a setting without which it cannot do this."""

    code = "not_configured"


class IdempotencyMismatch(Conflict):
    """The key was used before with another request."""

    code = "idempotency_mismatch"


class Unauthorized(ServiceError):
    """No valid API key came with the request."""

    code = "unauthorized"


class Forbidden(ServiceError):
    """The key's scope does not reach this far."""

    code = "forbidden"


class RateLimited(ServiceError):
    """The caller asks more often than it may."""

    code = "rate_limited"

    def __init__(self, detail: str, *, hint: str, wait: float) -> None:
        super().__init__(detail, hint=hint)
        self.wait = wait
        """Seconds until the next request is answered."""


class PayloadTooLarge(ServiceError):
    """The body is larger than the service accepts."""

    code = "payload_too_large"


class Unavailable(ServiceError):
    """The service cannot answer now; trying again later is right."""

    code = "unavailable"


class Contention(Unavailable):
    """Two transactions stood in each other's way; the same one may succeed at once."""

    code = "contention"
