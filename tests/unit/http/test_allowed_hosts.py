"""The hosts that links may lead to."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest

from girder_dask.http import allowed_hosts
from girder_dask.http.allowed_hosts import HostRefused, LinkHosts, is_public

PUBLIC = "93.184.215.14"

NOT_PUBLIC = """
    127.0.0.1 127.8.8.8 0.0.0.0 0.1.2.3 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254
    100.64.0.1 100.100.100.200 192.0.0.1 192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1
    233.252.0.1 239.1.1.1 240.0.0.1 255.255.255.255 192.88.99.1 :: ::1 ::7f00:1 ::ffff:127.0.0.1
    168.63.129.16
    ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::1
    2002:7f00:1:: 2002:a00:1:: 2001:0:4136:e378:8000:63bf:3fff:fdd2 fe80::1 fe80::1%1 fec0::1
    fc00::1 fd00:ec2::254 ff02::1 ff0e::1 2001:db8::1 3fff::1 100::1 5f00::1 4000::1
"""


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
def test_what_is_no_public_address(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    assert not LinkHosts.of("public").may_contact("example.org", 80, address)


@pytest.mark.parametrize(
    "address", [PUBLIC, "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::101:101", "2002:101:101::"]
)
def test_what_is_a_public_address(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
    assert LinkHosts.of("public").may_contact("example.org", 443, address)
    for port in (22, 8080, 8786, 27017):
        assert not LinkHosts.of("public").may_contact("example.org", port, address)
    for nothing in (False, None, [], "", "false"):
        assert not LinkHosts.of(nothing).may_contact("example.org", 443, address)


def test_the_own_public_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service on all addresses of a host is also reachable at its public one."""
    monkeypatch.setattr(allowed_hosts, "is_public", lambda _: True)
    assert not LinkHosts.of("public").may_contact("example.org", 80, "127.0.0.1")


@pytest.mark.parametrize(
    ("rule", "host", "port", "address", "allowed"),
    [
        ("data.example.org", "data.example.org", 443, "10.0.0.1", True),
        ("data.example.org", "evil-data.example.org", 443, "10.0.0.1", False),
        ("data.example.org", "data.example.org.evil.net", 443, "10.0.0.1", False),
        ("data.example.org", "data.example.org", 8080, "10.0.0.1", False),
        ("data.example.org:8080", "data.example.org", 8080, "10.0.0.1", True),
        ("data.example.org:8080", "data.example.org", 80, "10.0.0.1", False),
        ("*.example.org", "a.example.org", 80, "10.0.0.1", True),
        ("*.example.org", "example.org", 80, "10.0.0.1", False),
        ("*.example.org", "a.example.org", 80, "169.254.169.254", False),
        ("*.example.org", "a.example.org", 80, "127.0.0.1", False),
        ("*.example.org", "a.example.org", 80, "64:ff9b::7f00:1", False),
        ("*.example.org", "a.example.org", 80, "2002:a9fe:a9fe::", False),
        ("10.1.0.0/16", "a.example.org", 80, "10.1.2.3", True),
        ("10.1.0.0/16", "a.example.org", 80, "10.2.2.3", False),
        ("10.1.0.0/16", "a.example.org", 80, "::ffff:10.1.2.3", True),
        ("10.1.0.0/16:9000", "a.example.org", 9000, "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3", 80, "10.1.2.3", True),
        ("[fd00::7]:8000", "a.example.org", 8000, "fd00::7", True),
        ("fd00::/8", "a.example.org", 443, "fd00::7", True),
        ("127.0.0.0/8", "localhost", 80, "127.0.0.1", True),
    ],
)
def test_a_list_of_hosts(rule: str, host: str, port: int, address: str, allowed: bool) -> None:
    hosts = LinkHosts.of([rule])
    assert hosts.may_contact(host, port, address) is allowed
    assert not hosts.may_contact("other.example.net", 443, PUBLIC), (
        "public has to be listed as well"
    )
    assert LinkHosts.of([rule, "public"]).may_contact("other.example.net", 443, PUBLIC)


def test_lookups_that_fail_for_now_are_no_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(OSError, match="try again"):
        LinkHosts.of("public").addresses("example.org", 80)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
    with pytest.raises(HostRefused):
        LinkHosts.of("public").addresses("example.org", 80)
