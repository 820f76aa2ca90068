"""Where processor time and memory go: the service, its compute, the database, the load.

On a machine that others use, trials a second say as much about the others; processor time a trial says little of them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE_MEGABYTES = os.sysconf("SC_PAGE_SIZE") / 2**20

PARTS = ("http", "compute", "relay", "postgres", "redis", "load")


@dataclass
class Usage:
    """Seconds of processor time of each part, and of the whole machine."""

    seconds: Counter[str] = field(default_factory=Counter)
    machine_busy: float = 0.0

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {self.seconds[part]:.1f}" for part in PARTS if self.seconds[part] >= 0.05)
        others = self.machine_busy - sum(self.seconds.values())
        return f"processor seconds: {parts}; others on this machine {max(others, 0.0):.1f}"

    def milliseconds_each(self, n: int) -> str:
        """Processor time for one of n things."""
        each = {part: 1e3 * self.seconds[part] / max(n, 1) for part in PARTS}
        parts = ", ".join(f"{part} {value:.2f}" for part, value in each.items() if value >= 0.005)
        return f"processor ms each: {parts} = {sum(each.values()):.2f}"


@contextmanager
def measured() -> Iterator[Usage]:
    """What the descendants of this process use meanwhile, this process included."""
    usage, before, busy = Usage(), _seconds(), _machine_busy()
    yield usage
    after = _seconds()
    for pid, (part, seconds) in after.items():
        usage.seconds[part] += seconds - before.get(pid, (part, 0.0))[1]
    usage.machine_busy = _machine_busy() - busy


def megabytes(part: str) -> list[float]:
    """Resident memory of each process of a part."""
    found = []
    for pid, (of, _) in _seconds().items():
        if of == part:
            # it may have ended meanwhile
            with suppress(OSError, IndexError):
                found.append(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_MEGABYTES)
    return found


def _machine_busy() -> float:
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system) / TICKS


def _seconds() -> dict[int, tuple[str, float]]:
    """Part and processor seconds of this process, its descendants, and the database server they use."""
    found: dict[int, tuple[int, str, float]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        # what ended children of a database server used counts, too: connections come and go
        ticks = fields[11:15] if int(entry.name) in postmasters else fields[11:13]
        found[int(entry.name)] = (int(fields[1]), command, sum(map(int, ticks)) / TICKS)
    ours = {os.getpid()} | {pid for pid in postmasters if pid in found}
    while True:
        more = {pid for pid, (parent, _, _) in found.items() if parent in ours} - ours
        if not more:
            break
        ours |= more
    return {pid: (_part(pid, found), found[pid][2]) for pid in ours if pid in found}


postmasters: set[int] = set()
"""Database servers started for a benchmark: they are nobody's children."""


def _part(pid: int, found: dict[int, tuple[int, str, float]]) -> str:
    """The part a process belongs to, by its command or that of the nearest ancestor that tells."""
    signs = {
        "workers.embedded": "compute",
        "celery": "compute",
        "bo_service compute": "compute",
        "workers.relay": "relay",
        "bo_service up": "http",
        "granian": "http",
        "redis-server": "redis",
        "valkey-server": "redis",
        "postgres": "postgres",
    }
    while pid in found and pid != os.getpid():
        parent, command, _ = found[pid]
        for sign, part in signs.items():
            if sign in command:
                return part
        pid = parent
    return "load"
