"""Hosts that workers may contact for the content of link files.

A *link file* of Girder holds an address that a user wrote. The worker that follows it is inside the
network of the site, where services may trust everyone who reaches them.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from girder_dask import config
from girder_dask.errors import GirderDaskError

__all__ = ["HostRefused", "LinkHosts", "is_public"]

#: The default ports.
PORTS = {"http": 80, "https": 443}

_PUBLIC = "public"
_NONE = {"", "false", "none", "null"}
_PATTERN = re.compile(r"[a-z0-9*?._-]+")
_IPV6_UNICAST = ipaddress.IPv6Network("2000::/3")
_NOT_GLOBAL = [
    ipaddress.ip_network(network)
    for network in (
        "3fff::/20",
        "2001::/23",
        "192.88.99.0/24",
        "168.63.129.16/32",  # the host service of Azure, which its virtual machines reach
    )
]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class HostRefused(Exception):
    """A link leads to a forbidden host. Not an ``OSError``, since clients retry those."""


def is_public(address: Address) -> bool:
    """Return True if an address, or the IPv4 address that it embeds, is on the public internet.

    >>> [is_public(ipaddress.ip_address(a)) for a in ('1.1.1.1', '10.0.0.1', '64:ff9b::a00:1')]
    [True, False, False]
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        inner = _inner(address)
        if inner is not None:
            return is_public(inner)
        if address not in _IPV6_UNICAST:
            return False
    if any(address in network for network in _NOT_GLOBAL if network.version == address.version):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 address embeds for a gateway, or None."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour


@dataclass(frozen=True, slots=True)
class _Rule:
    """A network, or a pattern of names, with a port. Without a port both default ports match."""

    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None
    pattern: str
    port: int | None

    def allows(self, host: str, port: int, address: Address) -> bool:
        """Return True if workers may contact a host at an address."""
        if port != self.port if self.port is not None else port not in PORTS.values():
            return False
        if self.network is not None:
            return address.version == self.network.version and address in self.network
        if isinstance(address, ipaddress.IPv6Address):
            address = _inner(address) or address
        # The owner of an allowed name may let it resolve to this host or a metadata service.
        special = address.is_loopback or address.is_link_local or address.is_multicast
        ordinary = not special and not address.is_unspecified
        return ordinary and fnmatch.fnmatchcase(host, self.pattern)


@dataclass(frozen=True, slots=True)
class LinkHosts:
    """The hosts that links may lead to, of ``girder.worker.link-hosts``.

    Examples
    --------
    >>> hosts = LinkHosts.of(['data.example.org', '10.1.0.0/16:8080'])
    >>> hosts.may_contact('data.example.org', 443, '192.0.2.7')
    True
    >>> hosts.may_contact('other.example.org', 443, '192.0.2.7')
    False
    """

    public: bool = False
    rules: tuple[_Rule, ...] = ()

    @classmethod
    def configured(cls) -> LinkHosts:
        """Return the hosts that this worker's configuration allows."""
        return cls.of(config.get("worker.link-hosts"))

    @classmethod
    def of(cls, value: Any) -> LinkHosts:
        """Return the hosts that a value of the setting allows.

        Raises
        ------
        GirderDaskError
            If the value is invalid.
        """
        if value is None or value is False:
            return cls()
        given = value.split(",") if isinstance(value, str) else value
        if not isinstance(given, (list, tuple)):
            raise _invalid(value)
        names = [str(each).strip().lower() for each in given]
        names = [name for name in names if name not in _NONE]
        rules = tuple(_rule(name) for name in names if name != _PUBLIC)
        return cls(_PUBLIC in names, rules)

    def __str__(self) -> str:
        """Return the allowed hosts in words, for the owner of a job."""
        parts = ["public addresses at the ports 80 and 443"] if self.public else []
        parts += ["the hosts that the operator has listed"] if self.rules else []
        return " and ".join(parts) or "no hosts at all"

    def check(self, url: str) -> SplitResult:
        """Return the parts of an address after the checks that need no name lookup.

        Raises
        ------
        HostRefused
            If it is not a plain address of HTTP, or its host is not allowed at any address.
        """
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), port_of(parts)
        except ValueError:
            raise HostRefused("which is not an address") from None
        if parts.scheme not in PORTS or not host:
            raise HostRefused("which is not an address of http or https")
        if "@" in parts.netloc:
            raise HostRefused("an address with a name or a password in it")
        literal = _literal(host)
        if literal is not None and not self.may_contact(host, port, str(literal)):
            raise HostRefused("which workers may not contact")
        if literal is None and not self._may_resolve(host, port):
            raise HostRefused("which workers may not contact")
        return parts

    def _may_resolve(self, host: str, port: int) -> bool:
        """Return True if a name may be looked up at all."""
        if self.public and port in PORTS.values():
            return True
        return any(
            r.network is not None or fnmatch.fnmatchcase(host, r.pattern) for r in self.rules
        )

    def may_contact(self, host: str, port: int, address: str) -> bool:
        """Return True if workers may contact a host at an address."""
        found = _plain(address)
        if found is None:
            return False
        if any(rule.allows(host, port, found) for rule in self.rules):
            return True
        is_open = self.public and port in PORTS.values()
        return is_open and is_public(found) and not _is_own(str(found))

    def addresses(self, host: str, port: int) -> list[str]:
        """Look a host up once, and return the addresses at which it may be contacted.

        Raises
        ------
        HostRefused
            If there is none. The message does not reveal whether the name exists in the network.
        OSError
            If the name cannot be looked up now.
        """
        name = host.rstrip(".").lower()
        allowed = [a for a in _resolve(host, port) if self.may_contact(name, port, a)]
        if not allowed:
            raise HostRefused("which is not known, or which workers may not contact")
        return allowed

    def check_name(self, url: str) -> None:
        """Refuse an address whose host resolves here to a forbidden one.

        For use with a proxy, which would ask that host. Names that do not resolve here are left to
        the proxy.

        Raises
        ------
        HostRefused
            If workers may not contact the host.
        """
        parts = urlsplit(url)
        host, port = str(parts.hostname), port_of(parts)
        try:
            known = _resolve(host, port)
        except OSError:
            return
        if not all(self.may_contact(host.rstrip("."), port, address) for address in known):
            raise HostRefused("which workers may not contact")


def port_of(parts: SplitResult) -> int:
    """Return the port of an address. Raises ValueError if it is invalid."""
    return parts.port or PORTS.get(parts.scheme, 0)


def _resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host, none if it does not exist. OSError: there is no answer."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as e:
        if e.errno == socket.EAI_AGAIN:
            raise
        return []
    except UnicodeError:
        return []
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def _literal(host: str) -> Address | None:
    """Return the address that a host is written as, in any form that the system accepts."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))  # 127.1, 0x7f000001, 2130706433
    except (OSError, ValueError):
        return None


def _plain(address: str) -> Address | None:
    """Return a parsed address, that of IPv4 if it is mapped into IPv6, or None."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)
    return found if mapped is None else mapped


def _is_own(address: str) -> bool:
    """Return True if an address is one of this host. Nothing is sent: UDP has no handshake."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return str(probe.getsockname()[0]) == address
    except OSError:
        return False  # there is no route to it


def _rule(text: str) -> _Rule:
    network = _network(text)
    if network is not None:
        return _Rule(network, "", None)
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = text, ""
    number = int(port) if port.isdigit() else None
    if (colon and number is None) or (number is not None and not 0 < number < 65536):
        raise _invalid(text)
    network = _network(host.strip("[]"))
    if network is None and not _PATTERN.fullmatch(host):
        raise _invalid(text)
    return _Rule(network, host, number)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _invalid(value: Any) -> GirderDaskError:
    return GirderDaskError(
        f"girder.worker.link-hosts has {value!r:.100}. It is 'public', false, or a list of host "
        "names (*.example.org), addresses and networks (10.1.0.0/16), each with :PORT if it is "
        "neither 80 nor 443."
    )
