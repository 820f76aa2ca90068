"""Where webhooks may point: hostile URLs, addresses in disguise, exceptions by name."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from bo_service.domain.errors import Invalid
from bo_service.domain.target import AllowList, Target, check_addresses, is_public, parsed_target
from bo_service.receivers import Receivers

NOBODY = AllowList()
PUBLIC = ip_address("93.184.215.14")

MALFORMED = {
    "ftp://example.com/": "https",
    "file:///etc/passwd": "https",
    "gopher://example.com/": "https",
    "//example.com/": "https",
    "example.com": "https",
    "https://": "host",
    "https:///hook": "host",
    "https://user@example.com/": "user information",
    "https://user:pw@example.com/": "user information",
    "https://example.com@169.254.169.254/": "user information",
    "https://example.com/#part": "fragment",
    "https://example.com\\@127.0.0.1/": "character",
    "https://exa mple.com/": "character",
    "https://example.com/\r\nX-Injected: 1": "character",
    "https://example.com/\x00": "character",
    "https://éxample.com/": "character",
    "https://①②⑦.0.0.1/": "character",
    "https://127。0。0。1/": "character",
    "https://example.com:22/": "port 22",
    "https://example.com:25/": "port 25",
    "https://example.com:0/": "port 0",
    "https://example.com:99999/": "not a URL",
    "https://example.com:x/": "not a URL",
    "https://2130706433/": "odd form",
    "https://0x7f000001/": "odd form",
    "https://0x7f.0.0.1/": "odd form",
    "https://0177.0.0.1/": "odd form",
    "https://127.1/": "odd form",
    "https://127.0.0.1.5/": "odd form",
    "https://example.0x/": "odd form",
    "https://[::1/": "not a URL",
    "https://[fe80::1%25eth0]/": "brackets",
    "https://[127.0.0.1]/": "brackets|not a URL",
    "https://exa..mple.com/": "host",
    "https://-x.com/": "host",
    "https://exa%6dple.com/": "host",
    "https://" + "a" * 64 + ".com/": "host",
    "https://example.com/" + "a" * 2048: "characters",
}


@pytest.mark.parametrize("url", MALFORMED, ids=lambda url: url[:40])
def test_a_malformed_or_misleading_url_is_refused_by_name(url: str) -> None:
    with pytest.raises(Invalid, match=MALFORMED[url]) as refused:
        parsed_target(url)
    assert [problem.path for problem in refused.value.problems] == ["url"]


NOT_PUBLIC = [
    "0.0.0.0",  # noqa: S104  refused, not listened on
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.8",
    "192.0.2.1",
    "192.168.1.1",
    "192.88.99.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2002:a00:1::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_an_address_that_is_not_of_the_open_internet_is_known_in_any_dress(text: str) -> None:
    assert not is_public(ip_address(text))
    with pytest.raises(Invalid, match="nobody who may be called"):
        check_addresses(Target("https", "example.com", 443, "/"), [ip_address(text)], NOBODY)


@pytest.mark.parametrize("text", ["93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_a_public_address_is_public(text: str) -> None:
    assert is_public(ip_address(text))


def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    with pytest.raises(Invalid, match="url"):
        check_addresses(Target("https", "example.com", 443, "/"), [PUBLIC, ip_address("10.0.0.1")], NOBODY)


def test_a_name_that_does_not_exist_and_one_that_leads_inside_are_not_told_apart() -> None:
    def told(*addresses: str) -> str:
        receivers = Receivers(NOBODY, lambda *_: [ip_address(a) for a in addresses])
        with pytest.raises(Invalid) as refused:
            receivers.check("https://db.internal/")
        return str(refused.value)

    assert told() == told("10.0.0.1")


@pytest.mark.parametrize("host", ["localhost", "localhost.", "LOCALHOST"])
def test_the_machines_own_names_lead_inside(host: str) -> None:
    with pytest.raises(Invalid, match="nobody who may be called"):
        Receivers(NOBODY).check(f"https://{host}:8443/")


@pytest.mark.parametrize("url", ["https://127.0.0.1/", "https://[::1]/", "https://[::ffff:127.0.0.1]:8443/x"])
def test_an_address_written_out_is_checked_like_one_looked_up(url: str) -> None:
    with pytest.raises(Invalid, match="nobody who may be called"):
        Receivers(NOBODY).check(url)


def test_plain_http_is_for_named_receivers_alone() -> None:
    with pytest.raises(Invalid, match="https"):
        Receivers(NOBODY, lambda *_: [PUBLIC]).check("http://example.com/")
    assert Receivers(AllowList.of(["example.com"]), lambda *_: [PUBLIC]).check("http://example.com/")


def test_the_operator_allows_hosts_by_name_and_addresses_by_network() -> None:
    inside = [ip_address("10.1.2.3")]
    for allow in (["Hooks.Lan."], ["10.1.0.0/16"], ["10.1.2.3"]):
        target, addresses = Receivers(AllowList.of(allow), lambda *_: inside).check(
            "http://hooks.lan:8080/a?b=c"
        )
        assert (target, list(addresses)) == (Target("http", "hooks.lan", 8080, "/a?b=c"), inside)
    for allow in (["other.lan"], ["10.2.0.0/16"], ["lan"], ["fd00::/8"]):
        with pytest.raises(Invalid):
            Receivers(AllowList.of(allow), lambda *_: inside).check("https://hooks.lan/")


def test_an_exception_that_is_neither_host_nor_network_is_told_by_its_setting() -> None:
    for entry in ("http://hooks.lan", "10.0.0.0/99", "*.lan", "", "127.1"):
        with pytest.raises(Invalid, match="BO_WEBHOOK_ALLOW"):
            AllowList.of([entry])


def test_a_good_url_is_taken_apart() -> None:
    assert parsed_target("https://Hooks.Example.com./a/b?c=d") == Target(
        "https", "hooks.example.com", 443, "/a/b?c=d"
    )
    assert parsed_target("https://example.com?x").path == "/?x"
    assert parsed_target("https://[2606:4700::1111]:8443/").host_header == "[2606:4700::1111]:8443"
    assert parsed_target("http://example.com:80/").host_header == "example.com"
