"""`bo status`, `bo audit`: the whole service in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any

import typer

from bo_service.commands.output import Json, connected, console, minute, print_json, print_table, short


def status(as_json: Json = False) -> None:
    """What runs, what waits and what troubles the service; for keys of the operators' project."""
    with connected() as client:
        ready, found = client.readiness(), client.status()
    if as_json:
        print_json({"readiness": ready, **found})
        return
    _print_readiness(ready)
    counts = [
        ("studies", short(found["studies"]) or "none"),
        ("trials", short({state: n for state, n in found["trials"].items() if n}) or "none"),
        ("suggestions", short(found["suggestions"])),
        ("breakers open", found["breakers_open"]),
        ("webhook messages", short(found["deliveries"])),
        ("pushes waiting", found["pushes_waiting"]),
        ("connections", short(found["connections"] or {}) or None),
    ]
    print_table("service", ("what", "now"), counts)
    queues = [
        (name, q["due"], q["resting"], q["running"], f"{q['oldest_seconds']:.1f} s")
        for name, q in found["queues"].items()
    ]
    print_table("jobs", ("queue", "due", "resting", "running", "oldest waits"), queues)
    processes = [
        (p["name"], p["role"], ", ".join(p["queues"]) or None, p["device"] or None, p["trouble"])
        for p in found["processes"]
    ]
    print_table("processes", ("name", "role", "queues", "device", "trouble"), processes)
    fits = [
        (f["surrogate"], f["device"], f["fits"], f["fallbacks"], f"{f['seconds'] / max(f['fits'], 1):.3f} s")
        for f in found["fits"]
    ]
    print_table("fits", ("surrogate", "device", "fits", "fallbacks", "mean time"), fits)
    _print_totals(found)


def _print_totals(found: Mapping[str, Any]) -> None:
    names = ("trials_started", "trials_closed", "trials_requeued", "leases_expired", "job_crashes")
    print_table("so far", ("what", "times"), [(name.replace("_", " "), found[name]) for name in names])
    llm = [
        (m["model"], m["calls"], m["prompt_tokens"] + m["completion_tokens"], f"{m['cost']:.4g}")
        for m in found["llm"]
    ]
    if llm:
        print_table("language models", ("model", "calls", "tokens", "cost"), llm)


def _print_readiness(ready: Mapping[str, Any]) -> None:
    colour = "green" if ready["status"] == "ok" else "red"
    console.print(f"[{colour}]{ready['status']}[/{colour}]")
    for name, check in ready["checks"].items():
        if not check["ok"]:
            console.print(f"  {name}: {check.get('reason', 'not well')}", highlight=False, markup=False)


def audit(
    limit: Annotated[int, typer.Option(min=1, help="so many entries")] = 50, as_json: Json = False
) -> None:
    """Who changed what in the project, newest first."""
    with connected() as client:
        entries = list(islice(client.audit(), limit))
    if as_json:
        print_json(entries)
        return
    rows = [(minute(e["at"]), e["key_name"], e["action"], short(e["subject"]), e["address"]) for e in entries]
    print_table("audit log", ("at", "key", "action", "subject", "from"), rows)
