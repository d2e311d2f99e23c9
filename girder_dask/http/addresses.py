"""Which hosts a worker may ask for the content of link files.

A *link file* of Girder names any address that a user cares to write. The worker that follows
it stands in the network of the site, where services trust whoever reaches them.
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

#: The ports that are meant where none is named.
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
        "168.63.129.16/32",  # where virtual machines of Azure ask their host
    )
]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class HostRefused(Exception):
    """A link leads where workers may not go. It is no ``OSError``, which HTTP clients retry."""


def is_public(address: Address) -> bool:
    """Say whether an address is one of the public internet, by what it leads to.

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
    """Return the IPv4 address to which an IPv6 address leads through a gateway."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour


@dataclass(frozen=True, slots=True)
class _Rule:
    """A network, or a pattern of names, and a port (None: the usual ones)."""

    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None
    pattern: str
    port: int | None

    def allows(self, host: str, port: int, address: Address) -> bool:
        """Say whether a host may be asked at an address."""
        if port != self.port if self.port is not None else port not in PORTS.values():
            return False
        if self.network is not None:
            return address.version == self.network.version and address in self.network
        if isinstance(address, ipaddress.IPv6Address):
            address = _inner(address) or address
        # Whoever owns an allowed name may have it mean this host, or a metadata service.
        special = address.is_loopback or address.is_link_local or address.is_multicast
        ordinary = not special and not address.is_unspecified
        return ordinary and fnmatch.fnmatchcase(host, self.pattern)


@dataclass(frozen=True, slots=True)
class LinkHosts:
    """The hosts that links may lead to, as ``girder.worker.link-hosts`` says.

    Examples
    --------
    >>> hosts = LinkHosts.of(['data.example.org', '10.1.0.0/16:8080'])
    >>> hosts.may_ask('data.example.org', 443, '192.0.2.7')
    True
    >>> hosts.may_ask('other.example.org', 443, '192.0.2.7')
    False
    """

    public: bool = False
    rules: tuple[_Rule, ...] = ()

    @classmethod
    def configured(cls) -> LinkHosts:
        """Return what the configuration of this worker allows."""
        return cls.of(config.get("worker.link-hosts"))

    @classmethod
    def of(cls, value: Any) -> LinkHosts:
        """Return what a value of the setting allows.

        Raises
        ------
        GirderDaskError
            If the value makes no sense. Nothing is allowed then.
        """
        if value is None or value is False:
            return cls()
        given = value.split(",") if isinstance(value, str) else value
        if not isinstance(given, (list, tuple)):
            raise _senseless(value)
        names = [str(each).strip().lower() for each in given]
        names = [name for name in names if name not in _NONE]
        rules = tuple(_rule(name) for name in names if name != _PUBLIC)
        return cls(_PUBLIC in names, rules)

    def __str__(self) -> str:
        """Return what the owner of a job is told of it."""
        said = ["public addresses at the ports 80 and 443"] if self.public else []
        said += ["the hosts that the operator has listed"] if self.rules else []
        return " and ".join(said) or "no hosts at all"

    def check(self, url: str) -> SplitResult:
        """Return the parts of an address, which is to be one of HTTP and no more.

        Raises
        ------
        HostRefused
            If it is not, or surely leads where it may not.
        """
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), port_of(parts)
        except ValueError:
            raise HostRefused("which is no address") from None
        if parts.scheme not in PORTS or not host:
            raise HostRefused("which is no address of http or https")
        if "@" in parts.netloc:
            raise HostRefused("an address with a name or a password in it")
        literal = _literal(host)
        if literal is not None and not self.may_ask(host, port, str(literal)):
            raise HostRefused("which workers may not ask")
        if literal is None and not self._may_know(host, port):
            raise HostRefused("which workers may not ask")
        return parts

    def _may_know(self, host: str, port: int) -> bool:
        """Say whether the address of a name is to be looked up at all."""
        if self.public and port in PORTS.values():
            return True
        return any(
            r.network is not None or fnmatch.fnmatchcase(host, r.pattern) for r in self.rules
        )

    def may_ask(self, host: str, port: int, address: str) -> bool:
        """Say whether a host may be asked at an address."""
        found = _plain(address)
        if found is None:
            return False
        if any(rule.allows(host, port, found) for rule in self.rules):
            return True
        usual = self.public and port in PORTS.values()
        return usual and is_public(found) and not _is_here(str(found))

    def addresses(self, host: str, port: int) -> list[str]:
        """Look a host up, once, and return the addresses at which it may be asked.

        Raises
        ------
        HostRefused
            If there is none: no name tells whether it is known in the network of the workers.
        OSError
            If it cannot be looked up now.
        """
        name = host.rstrip(".").lower()
        allowed = [a for a in _looked_up(host, port) if self.may_ask(name, port, a)]
        if not allowed:
            raise HostRefused("which is not known, or which workers may not ask")
        return allowed

    def check_name(self, url: str) -> None:
        """Refuse an address whose host is known here, and may not be asked: a proxy would ask it.

        Raises
        ------
        HostRefused
            If it may not. What is not known here is the proxy's to look up.
        """
        parts = urlsplit(url)
        host, port = str(parts.hostname), port_of(parts)
        try:
            known = _looked_up(host, port)
        except OSError:
            return
        if not all(self.may_ask(host.rstrip("."), port, address) for address in known):
            raise HostRefused("which workers may not ask")


def port_of(parts: SplitResult) -> int:
    """Return the port of an address. Raises ValueError if it is none."""
    return parts.port or PORTS.get(parts.scheme, 0)


def _looked_up(host: str, port: int) -> list[str]:
    """Return the addresses of a host, none if it is not known. Raises OSError if nobody says."""
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
    """Return the address that a host is written as, in any form that the system takes."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))  # 127.1, 0x7f000001, 2130706433
    except (OSError, ValueError):
        return None


def _plain(address: str) -> Address | None:
    """Return an address; what is IPv4 within IPv6 is IPv4."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)
    return found if mapped is None else mapped


def _is_here(address: str) -> bool:
    """Say whether an address is this host's own. Nothing is sent: UDP has no handshake."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return str(probe.getsockname()[0]) == address
    except OSError:
        return False  # there is no way to it


def _rule(text: str) -> _Rule:
    network = _network(text)
    if network is not None:
        return _Rule(network, "", None)
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = text, ""
    number = int(port) if port.isdigit() else None
    if (colon and number is None) or (number is not None and not 0 < number < 65536):
        raise _senseless(text)
    network = _network(host.strip("[]"))
    if network is None and not _PATTERN.fullmatch(host):
        raise _senseless(text)
    return _Rule(network, host, number)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _senseless(value: Any) -> GirderDaskError:
    return GirderDaskError(
        f"girder.worker.link-hosts has {value!r:.100}. It is 'public', false, or a list of host "
        "names (*.example.org), addresses and networks (10.1.0.0/16), each with :PORT if it is "
        "neither 80 nor 443."
    )
