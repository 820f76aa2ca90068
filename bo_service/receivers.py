"""Which receivers of webhooks may be called: names looked up here, every address checked."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from bo_service.domain.target import Address, AllowList, Target, check_addresses, parsed_target
from bo_service.orchestrator.deliver import LOOKUP_SECONDS

Lookup = Callable[[str, int], Sequence[Address]]
"""The addresses of a host name; empty where it has none."""


def look_up(host: str, port: int) -> Sequence[Address]:
    """Ask the machine's resolver, which knows no time limit of its own, for LOOKUP_SECONDS."""
    found: list[Address] = []

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return
        found.extend(dict.fromkeys(ip_address(str(answer[4][0])) for answer in answers))

    thread = threading.Thread(target=ask, name="look-up", daemon=True)
    thread.start()
    thread.join(LOOKUP_SECONDS)
    return [] if thread.is_alive() else found


@dataclass(frozen=True, slots=True)
class Receivers:
    """Decides about URLs; the addresses it gives are the ones to connect to, so that no second answer counts."""

    allow: AllowList
    look_up: Lookup = look_up

    def check(self, url: str) -> tuple[Target, Sequence[Address]]:
        """The URL taken apart and its addresses, all of them fit to be called. Raises: Invalid naming `url`."""
        target = parsed_target(url)
        given = target.address
        addresses = self.look_up(target.host, target.port) if given is None else [given]
        check_addresses(target, addresses, self.allow)
        return target, addresses
