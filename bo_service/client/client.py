"""The client: one method for each thing the service does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import httpx2

from bo_service.client.errors import NotFound, Refused, StudyDiffers, Unreachable
from bo_service.client.events import read_events
from bo_service.client.models import ClaimedTrial, Claims, Event, Heartbeat, Study, Suggestion, Trial
from bo_service.client.transport import Transport
from bo_service.client.webhooks import Webhooks
from bo_service.domain.spec import StudySpec

if TYPE_CHECKING:
    from bo_service.client.handle import TrialHandle
    from bo_service.client.optimize import OptimizeResult

Value = float | tuple[float, float] | Mapping[str, float]
"""A metric's value: a number, (value, standard error), or {"value", "sem"}."""

Metrics = Mapping[str, Value]
SpecLike = StudySpec | Mapping[str, Any]

LOST_KEY: Final = "put another one in its place, with a grace: `bo key rotate {id} --grace 3600`"


def metrics_json(metrics: Metrics) -> dict[str, Any]:
    """Metrics as the service takes them; NaN and infinities as texts, since JSON has no words for them."""
    found: dict[str, Any] = {}
    for name, given in metrics.items():
        if isinstance(given, tuple):
            value, sem = given
            found[name] = {"value": _number(value), "sem": _number(sem)}
        elif isinstance(given, Mapping):
            found[name] = {key: None if part is None else _number(part) for key, part in given.items()}
        else:
            found[name] = _number(given)
    return found


def _number(value: Any) -> float | str:
    number = float(value)
    # NaN is the one value that differs from itself
    return number if number == number and abs(number) != float("inf") else str(number)  # noqa: PLR0124


def refuse_another(found: Study, wanted: Mapping[str, Any]) -> None:
    """Raises: StudyDiffers where a study has other parameters or metrics than a specification, by name."""
    for part in ("parameters", "metrics"):
        there = {item["name"] for item in (found.spec or {})[part]}
        here = {item["name"] for item in wanted[part]}
        if there != here:
            raise StudyDiffers(
                f"the study {found.name!r} that is there has the {part} {', '.join(sorted(there))}, not"
                f" {', '.join(sorted(here))}: choose another name, or branch it"
            )


class Client:
    """Talks to one service; use it as a context manager.

    Without arguments: BO_URL and BO_API_KEY, else the local service started by `bo up`. A call is retried for
    `patience_seconds` while the service is away; retried POSTs are harmless. Every method may raise Unreachable
    and Refused (or one of its kinds: NotFound, LeaseLost, TrialClosed, StudyClosed).
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout_seconds: float = 30.0,
        patience_seconds: float = 60.0,
    ) -> None:
        self._http = Transport(url, key, timeout_seconds=timeout_seconds, patience_seconds=patience_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        return self._http.url

    @property
    def key(self) -> str | None:
        return self._http.key

    @property
    def webhooks(self) -> Webhooks:
        """Whom the service tells of studies."""
        return Webhooks(self._http)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # studies

    def create_study(self, spec: SpecLike, *, load_if_exists: bool = False) -> Study:
        """Create a study; a problem in the specification raises Refused with every field at fault.

        `load_if_exists` gives the study of this name where there is one, as it is: the same parameters and metrics
        by name, whatever became of their ranges. Raises: StudyDiffers where they are others.
        """
        body = spec.model_dump(mode="json") if isinstance(spec, StudySpec) else dict(spec)
        try:
            return Study.from_json(self._http.json("POST", "/v1/studies", body=body))
        except Refused as error:
            if not load_if_exists or error.code != "name_taken":
                raise
        found = self.study(str(body["name"]))
        refuse_another(found, body)
        return found

    def study(self, study: str) -> Study:
        """A study by id or name."""
        return Study.from_json(self._http.json("GET", f"/v1/studies/{study}"))

    def studies(self, *, state: str | None = None) -> Iterator[Study]:
        """Studies of the key's project, newest first."""
        params = {"state": state} if state else {}
        return (Study.from_json(item) for item in self._pages("/v1/studies", params))

    def edit(self, study: str, **changes: Any) -> Study:
        """Widen ranges, raise budgets, change policies; see PATCH /v1/studies."""
        return Study.from_json(self._http.json("PATCH", f"/v1/studies/{study}", body=changes))

    def _move(self, study: str, verb: str, reason: str | None) -> Study:
        return Study.from_json(
            self._http.json("POST", f"/v1/studies/{study}/{verb}", body={"reason": reason})
        )

    def pause(self, study: str, *, reason: str | None = None) -> Study:
        """Give out no more trials for now."""
        return self._move(study, "pause", reason)

    def resume(self, study: str, *, reason: str | None = None) -> Study:
        """Give out trials again."""
        return self._move(study, "resume", reason)

    def stop(self, study: str, *, reason: str | None = None) -> Study:
        """End the search."""
        return self._move(study, "stop", reason)

    def archive(self, study: str, *, reason: str | None = None) -> Study:
        """Close the study for good."""
        return self._move(study, "archive", reason)

    def branch(self, study: str, name: str, **changes: Any) -> Mapping[str, Any]:
        """A new study with changed fields and the trials still valid in it; the report has `study`, `copied`, ..."""
        body = {"name": name, "changes": changes}
        report: dict[str, Any] = self._http.json("POST", f"/v1/studies/{study}/branch", body=body)
        return report | {"study": Study.from_json(report["study"])}

    def best(self, study: str) -> Trial | None:
        """The best feasible trial of a study with one objective."""
        found = self._http.json("GET", f"/v1/studies/{study}/best")["trial"]
        return Trial.from_json(found) if found else None

    def pareto(self, study: str) -> list[Trial]:
        """The feasible trials that no other dominates."""
        return [
            Trial.from_json(item) for item in self._http.json("GET", f"/v1/studies/{study}/pareto")["items"]
        ]

    def fits(self, study: str, *, limit: int = 20) -> list[Mapping[str, Any]]:
        """The latest fits with their diagnostics, newest first."""
        items: list[Mapping[str, Any]] = self._http.json(
            "GET", f"/v1/studies/{study}/fits", params={"limit": limit}
        )["items"]
        return items

    def export(self, study: str, *, form: Literal["csv", "jsonl"] = "jsonl") -> str:
        """Every closed trial as CSV or JSON lines."""
        return self._http.call("GET", f"/v1/studies/{study}/export", params={"format": form}).text

    def import_trials(
        self,
        study: str,
        source: Path | Sequence[Mapping[str, Any]],
        *,
        dry_run: bool = False,
        skip_bad_rows: bool = False,
    ) -> Mapping[str, Any]:
        """Import a .csv or .jsonl file, or rows like `{"parameters": ..., "metrics": ...}`."""
        if isinstance(source, Path):
            content = source.read_bytes()
            media = "text/csv" if source.suffix == ".csv" else "application/x-ndjson"
        else:
            import json  # noqa: PLC0415

            content, media = "\n".join(json.dumps(row) for row in source).encode(), "application/x-ndjson"
        report: Mapping[str, Any] = self._http.json(
            "POST",
            f"/v1/studies/{study}/trials/import",
            content=content,
            headers={"Content-Type": media},
            params={"dry_run": dry_run, "skip_bad_rows": skip_bad_rows},
            extra_seconds=300.0,
        )
        return report

    def events(self, study: str, *, after: int = 0, follow: bool = True) -> Iterator[Event]:
        """What happened after an id and what happens next; reconnects and resumes by itself."""
        return read_events(self._http, study, after=after, follow=follow)

    # trials

    def claim(
        self,
        study: str,
        worker: str,
        *,
        count: int = 1,
        wait_seconds: float = 0.0,
        fixed: Mapping[str, Any] | None = None,
        lease_seconds: float | None = None,
        reclaim: bool = True,
        push: str | None = None,
    ) -> Claims:
        """Ask for trials; waits up to `wait_seconds` for a suggestion.

        `push` is what a message to a fleet brings; see workers.pushed.
        """
        body: dict[str, Any] = {
            "worker": worker,
            "count": count,
            "wait_seconds": wait_seconds,
            "fixed": dict(fixed or {}),
            "lease_seconds": lease_seconds,
            "reclaim": reclaim,
        } | ({"push": push} if push else {})
        # asked again, the service gives back what this worker holds
        found = self._http.json(
            "POST",
            f"/v1/studies/{study}/trials",
            body=body,
            extra_seconds=wait_seconds,
            is_repeatable=reclaim,
        )
        return Claims(
            trials=[ClaimedTrial.from_json(item) for item in found["trials"]],
            study_state=found["study_state"],
            reason=found["reason"],
            limited_by=found["limited_by"],
            retry_after_seconds=found.get("retry_after_seconds"),
        )

    def trial(self, trial_id: str) -> Trial:
        """One trial; `raw` has its attempts, observations and notes."""
        return Trial.from_json(self._http.json("GET", f"/v1/trials/{trial_id}"))

    def trial_numbered(self, study: str, number: int) -> Trial:
        """A trial by its number in a study; `raw` has its attempts, observations and notes."""
        params = {"number": number}
        found = self._http.json("GET", f"/v1/studies/{study}/trials", params=params)["items"]
        if not found:
            problem = {"code": "not_found", "detail": f"study {study!r} has no trial {number}"}
            raise NotFound(404, problem)
        return self.trial(found[0]["id"])

    def trials(
        self, study: str, *, state: str | Sequence[str] | None = None, updated_since: str | None = None
    ) -> Iterator[Trial]:
        """The trials of a study, page after page."""
        params: dict[str, Any] = {"limit": 500}
        if state:
            params["state"] = [state] if isinstance(state, str) else list(state)
        if updated_since:
            params["updated_since"] = updated_since
        return (Trial.from_json(item) for item in self._pages(f"/v1/studies/{study}/trials", params))

    def heartbeat(self, trial: ClaimedTrial) -> Heartbeat:
        """Keep the lease."""
        return Heartbeat(
            **self._http.json("PUT", f"/v1/trials/{trial.id}/heartbeat", body={"lease": trial.lease})
        )

    def report(self, trial: ClaimedTrial, step: int, metrics: Metrics) -> Heartbeat:
        """Intermediate values at a step; also keeps the lease."""
        body = {"lease": trial.lease, "step": step, "metrics": metrics_json(metrics)}
        return Heartbeat(**self._http.json("POST", f"/v1/trials/{trial.id}/observations", body=body))

    def _close(self, trial: ClaimedTrial, verb: str, **body: Any) -> Trial:
        full = {"lease": trial.lease, **body}
        # the same result under the same lease is recorded once
        repeatable = verb == "complete"
        found = self._http.json("POST", f"/v1/trials/{trial.id}/{verb}", body=full, is_repeatable=repeatable)
        return Trial.from_json(found)

    def complete(
        self,
        trial: ClaimedTrial,
        metrics: Metrics,
        *,
        cost: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        stopped_early: bool = False,
    ) -> Trial:
        """Close with a result; NaN and infinity close as FAILED or INFEASIBLE, by the study's policy."""
        return self._close(
            trial,
            "complete",
            metrics=metrics_json(metrics),
            cost=cost,
            metadata=dict(metadata or {}),
            stopped_early=stopped_early,
        )

    def fail(
        self,
        trial: ClaimedTrial,
        reason: str,
        *,
        retry: bool | None = None,
        exit: Literal["error", "timeout"] = "error",  # noqa: A002  the API's word
    ) -> Trial:
        """End the attempt without a result."""
        return self._close(trial, "fail", reason=reason[-60_000:], retry=retry, exit=exit)

    def infeasible(self, trial: ClaimedTrial, reason: str = "") -> Trial:
        """Close as INFEASIBLE."""
        return self._close(trial, "infeasible", reason=reason[-60_000:])

    def release(self, trial: ClaimedTrial) -> Trial:
        """Give the trial back unevaluated."""
        return self._close(trial, "release")

    def abandon(self, trial_id: str, *, reason: str | None = None) -> Trial:
        """Close an open trial for good, whoever holds it."""
        return Trial.from_json(
            self._http.json("POST", f"/v1/trials/{trial_id}/abandon", body={"reason": reason})
        )

    def cancel(self, trial_id: str, *, reason: str | None = None) -> Trial:
        """Ask a running trial to stop; close a waiting one."""
        return Trial.from_json(
            self._http.json("POST", f"/v1/trials/{trial_id}/cancel", body={"reason": reason})
        )

    def attach(
        self,
        study: str,
        parameters: Mapping[str, Any],
        metrics: Metrics | None = None,
        *,
        state: str = "COMPLETED",
        cost: float | None = None,
    ) -> Trial:
        """Record a trial that was evaluated elsewhere."""
        body = {
            "parameters": dict(parameters),
            "metrics": metrics_json(metrics or {}),
            "state": state,
            "cost": cost,
        }
        return Trial.from_json(self._http.json("POST", f"/v1/studies/{study}/trials/attach", body=body))

    # suggestions

    def enqueue(self, study: str, parameters: Mapping[str, Any]) -> Suggestion:
        """Have this configuration evaluated next."""
        body = {"parameters": dict(parameters)}
        return Suggestion.from_json(self._http.json("POST", f"/v1/studies/{study}/suggestions", body=body))

    def suggestions(self, study: str, *, state: str | None = None) -> list[Suggestion]:
        """Suggestions, newest first."""
        params = {"state": state} if state else {}
        found = self._http.json("GET", f"/v1/studies/{study}/suggestions", params=params)
        return [Suggestion.from_json(item) for item in found["items"]]

    def suggestion(self, suggestion_id: str) -> Suggestion:
        """One suggestion with its provenance."""
        return Suggestion.from_json(self._http.json("GET", f"/v1/suggestions/{suggestion_id}"))

    def cancel_suggestion(self, suggestion_id: str) -> Suggestion:
        """Take a prepared suggestion back."""
        return Suggestion.from_json(self._http.json("DELETE", f"/v1/suggestions/{suggestion_id}"))

    # the service

    def surrogates(self) -> list[Mapping[str, Any]]:
        """The installed surrogates with the schemas of their options."""
        items: list[Mapping[str, Any]] = self._http.json("GET", "/v1/surrogates")["items"]
        return items

    def info(self) -> Mapping[str, Any]:
        """The service's version, and project and scope of this key."""
        found: Mapping[str, Any] = self._http.json("GET", "/v1/info")
        return found

    def readiness(self) -> Mapping[str, Any]:
        """Database and compute as the service sees them, degraded or not. Raises: Unreachable."""
        try:
            answer = httpx2.get(f"{self.url}/readyz", timeout=10.0)
        except httpx2.TransportError as error:
            raise Unreachable(f"GET {self.url}/readyz: {error}") from error
        found: Mapping[str, Any] = answer.json()
        return found

    def status(self) -> Mapping[str, Any]:
        """The whole service in numbers; for keys of the operators' project."""
        found: Mapping[str, Any] = self._http.json("GET", "/v1/status")
        return found

    def audit(self) -> Iterator[Mapping[str, Any]]:
        """Who changed what in the project, newest first."""
        return self._pages("/v1/audit", {})

    def create_key(
        self,
        name: str,
        scope: str,
        *,
        project: str | None = None,
        expires_in_seconds: float | None = None,
    ) -> Mapping[str, Any]:
        """A new key; `key` in the answer is shown this once. Raises: SecretLost."""
        body = {"name": name, "scope": scope, "project": project, "expires_in_seconds": expires_in_seconds}
        return self._http.secret_of("/v1/keys", name="key", hint=LOST_KEY, body=body)

    def keys(self) -> list[Mapping[str, Any]]:
        """The project's keys."""
        items: list[Mapping[str, Any]] = self._http.json("GET", "/v1/keys")["items"]
        return items

    def rotate_key(self, key_id: str, *, grace_seconds: float = 0.0) -> Mapping[str, Any]:
        """A new key in this one's place, which works for the grace; `key` in the answer is shown this once.

        A grace leaves time to rotate once more where the answer gets lost. Raises: SecretLost.
        """
        body = {"grace_seconds": grace_seconds}
        return self._http.secret_of(f"/v1/keys/{key_id}/rotate", name="key", hint=LOST_KEY, body=body)

    def revoke_key(self, key_id: str) -> Mapping[str, Any]:
        """End a key."""
        found: Mapping[str, Any] = self._http.json("DELETE", f"/v1/keys/{key_id}")
        return found

    def optimize(
        self,
        study: SpecLike | str,
        objective: Callable[[TrialHandle], Any],
        *,
        trials: int | None = None,
        workers: int = 1,
        progress: bool = True,
        load_if_exists: bool = False,
    ) -> OptimizeResult:
        """Evaluate `objective` here until `trials` more are done or the study stops; see optimize.run.

        A name, or a specification with `load_if_exists`, goes on with a study that is there.
        """
        from bo_service.client.optimize import run  # noqa: PLC0415  it imports this module

        if not isinstance(study, str):
            study = self.create_study(study, load_if_exists=load_if_exists).id
        return run(self, study, objective, n_trials=trials, n_workers=workers, with_progress=progress)

    def wait(self, study: str, *, poll_seconds: float = 0.5) -> Study:
        """Return when the study is no longer ACTIVE."""
        while (found := self.study(study)).state == "ACTIVE":
            time.sleep(poll_seconds)
        return found

    def _pages(self, path: str, params: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        cursor: str | None = None
        while True:
            page = self._http.json("GET", path, params={**params, **({"cursor": cursor} if cursor else {})})
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return
