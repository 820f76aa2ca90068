"""Turns: who waits for whom."""

from __future__ import annotations

import asyncio

import pytest

from bo_service.api import turns as module
from bo_service.api.turns import N_AT_ONCE, Turns
from bo_service.domain.ids import ProjectId, StudyId, TrialId


async def settle() -> None:
    """Let every coroutine run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def hold(turns: Turns, name: str, until: asyncio.Event, inside: list[str], label: str) -> None:
    async with turns.of(name):
        inside.append(label)
        await until.wait()


def test_requests_of_one_study_take_turns_in_the_order_they_came() -> None:
    async def check() -> None:
        turns, inside = Turns(), []
        gates = [asyncio.Event() for _ in range(N_AT_ONCE + 2)]
        tasks = [asyncio.create_task(hold(turns, "s", gate, inside, str(i))) for i, gate in enumerate(gates)]
        await settle()
        assert inside == [str(i) for i in range(N_AT_ONCE)]
        gates[0].set()
        await settle()
        assert inside == [str(i) for i in range(N_AT_ONCE + 1)]
        for gate in gates:
            gate.set()
        await asyncio.gather(*tasks)
        assert inside == [str(i) for i in range(N_AT_ONCE + 2)]

    asyncio.run(check())


def test_another_study_does_not_wait() -> None:
    async def check() -> None:
        turns, inside, gate = Turns(), [], asyncio.Event()
        names = ["a"] * (N_AT_ONCE + 1) + ["b"]
        tasks = [asyncio.create_task(hold(turns, name, gate, inside, name)) for name in names]
        await settle()
        assert inside == ["a"] * N_AT_ONCE + ["b"]
        gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(check())


def test_who_gives_up_waiting_keeps_nobodys_turn() -> None:
    async def check() -> None:
        turns, inside, gate = Turns(), [], asyncio.Event()
        holders = [asyncio.create_task(hold(turns, "s", gate, inside, "holds")) for _ in range(N_AT_ONCE)]
        await settle()
        waiting = [asyncio.create_task(hold(turns, "s", gate, inside, "waits")) for _ in range(2)]
        await settle()
        waiting[0].cancel()
        gate.set()
        await asyncio.gather(*holders, waiting[1])
        assert inside.count("waits") == 1
        assert turns._queues == {}

    asyncio.run(check())


def test_a_trials_requests_wait_with_its_study_where_it_was_claimed_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 2)
    turns = Turns()
    for name in ("t1", "t2", "t3"):
        turns.remember(TrialId(name), StudyId("s"))
    assert [turns.study_of(TrialId(name)) for name in ("t1", "t2", "t3")] == ["t1", "s", "s"]


def test_a_study_has_the_same_turns_by_name_and_by_id_and_other_projects_have_their_own() -> None:
    turns, ours, theirs = Turns(), ProjectId("ours"), ProjectId("theirs")
    assert turns.of_study(ours, "digits") != turns.of_study(theirs, "digits")
    turns.remember_name(ours, "digits", StudyId("s"))
    turns.remember_name(ours, "s", StudyId("s"))
    assert turns.of_study(ours, "digits") == turns.of_study(ours, "s") == "s"
    # who only guesses an id waits elsewhere
    assert turns.of_study(theirs, "s") != "s"
