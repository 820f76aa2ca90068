"""A model of one study that says which answers to concurrent requests make sense."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from bo_service.domain.study import StudyState
from bo_service.domain.trial import TrialState
from tests.flow.test_protocol_machine import Expected, Model

MAX_ATTEMPTS = 3
PARALLELISM = 4

LEASED = ("heartbeat", "complete", "fail", "infeasible", "release")
OFTEN = ("claim", "claim", "claim", "complete", "complete", "expire", "resume")
KINDS = (*OFTEN, *LEASED, "abandon", "cancel", "attach", "pause")
SELDOM = st.sampled_from([*[None] * 9, "a"])
"""A key that other requests had before."""


@dataclass(frozen=True)
class Recipe:
    """A request, as far as it can be told before the service has answered anything."""

    kind: str
    which: int = 0
    """Which of the leases seen so far it is about, from the newest on."""
    worker: str = "w1"
    count: int = 1
    value: float = 0.0
    flag: bool = False
    key: str | None = None


@dataclass(frozen=True)
class Request:
    """A request as it is sent."""

    kind: str
    method: str
    path: str
    body: dict[str, Any] = field(hash=False)
    trial: str = ""
    lease: str = ""
    recipe: Recipe = field(default_factory=lambda: Recipe("claim"))
    key: str | None = None

    @property
    def identity(self) -> str:
        return f"{self.method} {self.path} {self.body}"


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    body: dict[str, Any] = field(hash=False)
    is_replayed: bool = False

    @property
    def code(self) -> str:
        return str(self.body.get("code", ""))

    def __str__(self) -> str:
        given = [(trial["number"], trial["lease"]) for trial in self.body.get("trials", [])]
        return f"{self.status} {self.code or self.body.get('state', given)}{' again' * self.is_replayed}"


@dataclass
class World:
    """The study as it may be, and the answers kept under idempotency keys."""

    model: Model = field(default_factory=Model)
    replies: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)

    def after(self, request: Request, answer: Answer) -> Iterator[World]:
        """The worlds in which this answer to this request makes sense."""
        known = self.replies.get(request.key) if request.key else None
        if known is not None:
            fits = answer.is_replayed and answer.body == known[1]
            if known[0] != request.identity:
                fits = answer.code == "idempotency_mismatch"
            if fits:
                yield self
            return
        if answer.is_replayed or answer.code == "idempotency_mismatch":
            return
        for act in ACTS[request.kind]:
            world = deepcopy(self)
            if act(world.model, request, answer):
                if request.key and answer.status in (200, 201):
                    world.replies[request.key] = (request.identity, answer.body)
                yield world


Act = Callable[[Model, Request, Answer], bool]
"""Changes the model as the request would; whether the answer is the one the model gives."""


def claim(model: Model, request: Request, answer: Answer) -> bool:
    given, count = answer.body["trials"], request.recipe.count
    if model.state is not StudyState.ACTIVE:
        return answer.status == 202 and given == []
    mine = [
        i
        for i, t in model.trials.items()
        if t.state is TrialState.RUNNING and t.worker == request.recipe.worker
    ]
    mine = mine[:count] if request.recipe.flag else []
    room = max(PARALLELISM - model.n(TrialState.RUNNING), 0)
    waiting = [i for i, t in model.trials.items() if t.state is TrialState.QUEUED]
    waiting = waiting[: min(count - len(mine), room)]
    ids = [trial["id"] for trial in given]
    if ids[: len(mine) + len(waiting)] != mine + waiting:
        return False
    new = given[len(mine) + len(waiting) :]
    if len(new) > min(count - len(mine) - len(waiting), room - len(waiting)):
        return False
    for trial in new:
        # numbers follow each other in the order of the claims
        if trial["id"] in model.trials or trial["number"] != len(model.trials) + 1:
            return False
        model.trials[trial["id"]] = Expected(number=trial["number"], state=TrialState.QUEUED)
    for trial in given:
        expected = model.trials[trial["id"]]
        if trial["id"] not in mine:
            expected.attempt += 1
            expected.n_counted += 1
        if expected.lease == trial["lease"] or trial["attempt"] != expected.attempt:
            return False
        expected.state, expected.worker, expected.lease = (
            TrialState.RUNNING,
            request.recipe.worker,
            trial["lease"],
        )
    return answer.status == (200 if given else 202)


def refusal(model: Model, request: Request) -> str | None:
    """The code with which a report under this lease must be refused, if it must."""
    expected = model.trials[request.trial]
    if not expected.state.is_open:
        return "trial_closed"
    return None if expected.state is TrialState.RUNNING and expected.lease == request.lease else "lease_lost"


def refused(answer: Answer, code: str | None) -> bool | None:
    """Whether the answer is this refusal; None where the model has none and goes on."""
    if code is not None:
        return answer.status == 409 and answer.code == code
    return None if answer.status == 200 else False


def heartbeat(model: Model, request: Request, answer: Answer) -> bool:
    known = refused(answer, refusal(model, request))
    if known is not None:
        return known
    return answer.body["should_stop"] == model.trials[request.trial].stop_requested


def complete(model: Model, request: Request, answer: Answer) -> bool:
    expected, value = model.trials[request.trial], request.recipe.value
    same = expected.lease == request.lease and expected.result == str(value)
    if not expected.state.is_open and same:
        return answer.status == 200 and answer.body["state"] == expected.state.value
    known = refused(answer, refusal(model, request))
    if known is not None:
        return known
    expected.result = str(value)
    expected.state = TrialState.FAILED if math.isnan(value) else TrialState.COMPLETED
    expected.value = None if math.isnan(value) else value
    return answer.body["state"] == expected.state.value


def ended(expected: Expected, *, may_retry: bool) -> None:
    again = may_retry and expected.n_counted < MAX_ATTEMPTS and not expected.stop_requested
    expected.state = TrialState.QUEUED if again else TrialState.FAILED


def fail(model: Model, request: Request, answer: Answer) -> bool:
    known = refused(answer, refusal(model, request))
    if known is not None:
        return known
    ended(model.trials[request.trial], may_retry=request.recipe.flag)
    return answer.body["state"] == model.trials[request.trial].state.value


def infeasible(model: Model, request: Request, answer: Answer) -> bool:
    known = refused(answer, refusal(model, request))
    if known is not None:
        return known
    model.trials[request.trial].state = TrialState.INFEASIBLE
    return answer.body["state"] == "INFEASIBLE"


def release(model: Model, request: Request, answer: Answer) -> bool:
    known = refused(answer, refusal(model, request))
    if known is not None:
        return known
    expected = model.trials[request.trial]
    if expected.stop_requested:
        expected.state = TrialState.ABANDONED
    else:
        expected.state = TrialState.QUEUED
        expected.n_counted -= 1
    return answer.body["state"] == expected.state.value


def abandon(model: Model, request: Request, answer: Answer) -> bool:
    expected = model.trials[request.trial]
    known = refused(answer, None if expected.state.is_open else "trial_closed")
    if known is not None:
        return known
    expected.state = TrialState.ABANDONED
    return answer.body["state"] == "ABANDONED"


def cancel(model: Model, request: Request, answer: Answer) -> bool:
    expected = model.trials[request.trial]
    known = refused(answer, None if expected.state.is_open else "trial_closed")
    if known is not None:
        return known
    if expected.state is TrialState.RUNNING:
        expected.stop_requested = True
    else:
        expected.state = TrialState.ABANDONED
    return answer.body["state"] == expected.state.value


def reaped(model: Model, request: Request, _: Answer) -> bool:
    """The reaper found the lease ended."""
    expected = model.trials[request.trial]
    if expected.state is not TrialState.RUNNING:
        return False
    ended(expected, may_retry=True)
    return True


def spared(*_: Any) -> bool:
    """Somebody renewed or closed the trial before the reaper came."""
    return True


def attach(model: Model, request: Request, answer: Answer) -> bool:
    if answer.status != 201 or answer.body["number"] != len(model.trials) + 1:
        return False
    model.trials[answer.body["id"]] = Expected(
        number=answer.body["number"], state=TrialState.COMPLETED, value=request.recipe.value
    )
    return True


def move(model: Model, request: Request, answer: Answer) -> bool:
    model.state = StudyState.PAUSED if request.kind == "pause" else StudyState.ACTIVE
    return answer.status == 200 and answer.body["state"] == model.state.value


ACTS: dict[str, tuple[Act, ...]] = {
    "claim": (claim,),
    "heartbeat": (heartbeat,),
    "complete": (complete,),
    "fail": (fail,),
    "infeasible": (infeasible,),
    "release": (release,),
    "abandon": (abandon,),
    "cancel": (cancel,),
    "expire": (reaped, spared),
    "attach": (attach,),
    "pause": (move,),
    "resume": (move,),
}

RECIPES = st.builds(
    Recipe,
    kind=st.sampled_from(KINDS),
    which=st.integers(0, 4),
    worker=st.sampled_from(["w1", "w2", "w3"]),
    count=st.integers(1, 3),
    value=st.one_of(st.integers(-5, 5).map(float), st.just(math.nan)),
    flag=st.booleans(),
    key=SELDOM,
)
CLAIMS = st.builds(
    Recipe,
    kind=st.just("claim"),
    worker=st.sampled_from(["w1", "w2", "w3"]),
    count=st.integers(1, 2),
    flag=st.booleans(),
    key=SELDOM,
)
VALUES = st.integers(-2, 2).map(float)


def explained(world: World, exchanges: list[tuple[Request, Answer]]) -> Iterator[World]:
    """The worlds after these exchanges in this order; none where an answer does not fit."""
    if not exchanges:
        yield world
        return
    (request, answer), *rest = exchanges
    for after in world.after(request, answer):
        yield from explained(after, rest)
