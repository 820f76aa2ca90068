"""BoServiceError
+- BadUrl         the URL given, or BO_URL, is none: mend it
+- Unreachable    the service did not answer, after all retries; try again later
+- StudyDiffers   the study to load has other parameters or metrics: choose another name
+- SecretLost     it was done, but the answer with the secret got lost and is not given again; rotate what was made
`- Refused        the service said no; `code`, `detail`, `hint` and `problems` say why
   +- NotFound    a wrong id or name
   +- LeaseLost   another attempt owns the trial: drop it
   +- TrialClosed the trial has its result
   `- StudyClosed the study takes no more work
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final


class BoServiceError(Exception):
    """Anything that goes wrong between this client and the service."""


class BadUrl(BoServiceError):
    """BO_URL, or the URL given, is not one of a service."""


class Unreachable(BoServiceError):
    """No answer, or only temporary refusals, after all retries."""


class StudyDiffers(BoServiceError):
    """There is another study of the name that was to be loaded or created."""


class SecretLost(BoServiceError):
    """What was made has a secret that nobody saw: the service keeps none, so a repeated answer lacks it."""


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One field at fault: its path, the reason, and what to do instead."""

    field: str
    reason: str
    hint: str | None


class Refused(BoServiceError):
    """The service refused a request."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.code = str(problem.get("code", "http_error"))
        self.detail = str(problem.get("detail", ""))
        self.hint = problem.get("hint")
        self.problems: Sequence[FieldProblem] = [
            FieldProblem(str(p.get("field", "")), str(p.get("reason", "")), p.get("hint"))
            for p in problem.get("problems", [])
        ]
        self.problem = dict(problem)
        super().__init__(self._text())

    def _text(self) -> str:
        lines = [f"{self.code}: {self.detail}"] if not self.problems else [f"{self.code}:"]
        lines += [f"  {p.field}: {p.reason}" + (f" ({p.hint})" if p.hint else "") for p in self.problems]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


class NotFound(Refused):
    """There is no such thing in the key's project."""


class LeaseLost(Refused):
    """The lease is over or another attempt holds the trial."""


class TrialClosed(Refused):
    """The trial is already closed."""


class StudyClosed(Refused):
    """The study takes no more work in its state."""


BY_CODE: Final[Mapping[str, type[Refused]]] = {
    "not_found": NotFound,
    "lease_lost": LeaseLost,
    "trial_closed": TrialClosed,
    "study_closed": StudyClosed,
}


def refusal(status: int, problem: Mapping[str, Any]) -> Refused:
    """The error for a problem document."""
    return BY_CODE.get(str(problem.get("code")), Refused)(status, problem)
