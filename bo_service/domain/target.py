"""Where a webhook may point: URLs taken apart strictly, and addresses that are public or allowed by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final
from urllib.parse import SplitResult, urlsplit

from bo_service.domain.errors import Invalid
from surrogates.errors import Problem

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL_CHARACTERS: Final = 2048
DEFAULT_PORTS: Final = {"https": 443, "http": 80}
FIRST_FREE_PORT: Final = 1024
"""Below it live services that speak no HTTP; of those only the web's own ports are called."""

_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMBER: Final = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)")

_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_TRANSLATED: Final = IPv6Network("64:ff9b::/96")
"""NAT64: the last four bytes are an IPv4 address."""

_6TO4: Final = IPv6Network("2002::/16")
_NOT_PUBLIC: Final = (
    IPv4Network("192.0.0.0/24"),  # protocol assignments
    IPv4Network("192.88.99.0/24"),  # relays of 6to4
    IPv6Network("2001::/23"),  # Teredo and other tunnels
)

NOT_ALLOWED: Final = "leads to nobody who may be called"
"""One sentence for a name that does not exist and for one that leads inside: else it would tell them apart."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart; nothing else reads it, so no two readers can disagree about it."""

    scheme: str
    host: str
    """A name in lower case without a final dot, or an address without brackets."""
    port: int
    path: str
    """Path and query as they are sent."""

    @property
    def address(self) -> Address | None:
        """The host where it is an address."""
        return _address(self.host)

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def parsed_target(url: str) -> Target:
    """Take a webhook's URL apart. Raises: Invalid naming `url`."""
    if len(url) > MAX_URL_CHARACTERS:
        raise _refused(f"has {len(url)} characters, at most {MAX_URL_CHARACTERS} are taken")
    if not all("!" <= character <= "~" for character in url) or "\\" in url:
        raise _refused(
            "has a character that no URL has", "percent-encode it; write other alphabets' names as xn--..."
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _refused("is not a URL") from error
    if parts.scheme not in DEFAULT_PORTS:
        raise _refused("is not an https URL", "start it with https://")
    if "@" in parts.netloc:
        raise _refused("has user information", "messages are signed; leave out what stands before the @")
    if "#" in url:
        raise _refused("has a fragment", "leave out # and what follows it")
    if port is None:
        port = DEFAULT_PORTS[parts.scheme]
    elif port < FIRST_FREE_PORT and port not in DEFAULT_PORTS.values():
        raise _refused(f"has port {port}", f"use 443, 80, or one from {FIRST_FREE_PORT} on")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, _host(parts), port, path)


def _host(parts: SplitResult) -> str:
    host = (parts.hostname or "").removesuffix(".")
    if "[" in parts.netloc:
        if "%" in host or not isinstance(_address(host), IPv6Address):
            raise _refused("has brackets around something that is no IPv6 address")
        return host
    if _address(host) is not None:
        return host
    if len(host) > 253 or not _NAME.fullmatch(host):
        raise _refused("has no valid host name")
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        raise _refused(
            "has an address in an odd form", "write it as four numbers with dots, such as 192.0.2.1"
        )
    return host


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _refused(reason: str, hint: str = "") -> Invalid:
    return Invalid([Problem("url", reason, hint)])


def is_public(address: Address) -> bool:
    """Whether it is an address of the open internet, in itself and in the IPv4 address it may carry."""
    if isinstance(address, IPv6Address):
        carried = _carried(address)
        if carried is not None:
            return is_public(carried)
        if address not in _GLOBAL_UNICAST:
            return False
    if any(address in network for network in _NOT_PUBLIC):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _carried(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address a packet to this one would reach, where it is a translated or tunnelled one."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _TRANSLATED:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour if address in _6TO4 else None


@dataclass(frozen=True, slots=True)
class AllowList:
    """Receivers inside the network that an operator named: hosts by name, addresses by network."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, entries: Iterable[str]) -> AllowList:
        """From hosts and CIDRs. Raises: Invalid naming BO_WEBHOOK_ALLOW."""
        hosts: set[str] = set()
        networks: list[Network] = []
        for entry in entries:
            host = entry.strip().lower().removesuffix(".")
            try:
                networks.append(ip_network(host, strict=False))
            except ValueError:
                if not _NAME.fullmatch(host) or _NUMBER.fullmatch(host.rpartition(".")[2]):
                    reason = f"{entry!r} is neither a host nor a network"
                    hint = 'write it like ["hooks.example.org", "10.1.0.0/16"]'
                    raise Invalid([Problem("BO_WEBHOOK_ALLOW", reason, hint)]) from None
                hosts.add(host)
        return cls(frozenset(hosts), tuple(networks))

    def names(self, target: Target, address: Address) -> bool:
        """Whether the operator allowed this host or this address."""
        if target.host in self.hosts:
            return True
        return any(address in network for network in self.networks if network.version == address.version)


def check_addresses(target: Target, addresses: Sequence[Address], allow: AllowList) -> None:
    """Every address must be public, and the connection encrypted, unless the operator allowed it.

    Raises: Invalid naming `url`.
    """
    are_named = [allow.names(target, address) for address in addresses]
    if target.scheme != "https" and not (are_named and all(are_named)):
        raise _refused("is not an https URL", "plain http is for receivers named in BO_WEBHOOK_ALLOW")
    is_fine = [named or is_public(address) for named, address in zip(are_named, addresses, strict=True)]
    if not is_fine or not all(is_fine):
        raise _refused(
            NOT_ALLOWED,
            "the name must exist and all its addresses be public; BO_WEBHOOK_ALLOW names exceptions",
        )
