"""Hosts of a network on one machine: network namespaces on a bridge, and a capture of its traffic.

Only root can make them.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

__all__ = ["Capture", "Listening", "NetworkHosts", "listening"]

_ALL_PROTOCOLS = 0x0003  # ETH_P_ALL
_IPV4, _TCP, _LISTEN = 0x0800, 6, "0A"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class NetworkHosts:
    """This machine and other hosts of one network, each with an address.

    Parameters
    ----------
    count
        The number of other hosts.
    """

    def __init__(self, count: int) -> None:
        self._number = os.getpid() % 250
        self.bridge = f"gdbr{self._number}"
        #: The address of this machine in the network.
        self.here = self._address(1)
        #: The names of their network namespaces.
        self.namespaces = [f"gd{self._number}-{n}" for n in range(count)]
        #: The addresses of the others.
        self.addresses = [self._address(n + 2) for n in range(count)]

    def within(self, host: int) -> list[str]:
        """Return the command that runs another on a host."""
        return ["ip", "netns", "exec", self.namespaces[host]]

    def __enter__(self) -> Self:
        try:
            _ip("link", "add", self.bridge, "type", "bridge")
            _ip("addr", "add", f"{self.here}/24", "dev", self.bridge)
            _ip("link", "set", self.bridge, "up")
            for name, address in zip(self.namespaces, self.addresses, strict=True):
                _ip("netns", "add", name)
                _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
                _ip("link", "set", name, "master", self.bridge, "up")
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
                for device in ("lo", "eth0"):
                    _ip("-n", name, "link", "set", device, "up")
                _ip("-n", name, "route", "add", "default", "via", self.here)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        for name in self.namespaces:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", self.bridge)

    def _address(self, host: int) -> str:
        return f"10.213.{self._number}.{host}"


class Capture:
    """The bytes of TCP that cross a bridge, by the ports of both ends."""

    def __init__(self, bridge: str) -> None:
        self._socket = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS)
        )
        # A burst must not be lost while this thread waits for its turn.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        self._socket.bind((bridge, 0))
        self._socket.settimeout(0.1)
        self._streams: dict[tuple[int, int], bytearray] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="capture")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._socket.close()

    def text(self, port: int, *, other: bool = False) -> bytes:
        """Return what came from and went to a port, or with ``other`` all the rest."""
        streams = self._streams.copy()
        return b"\n".join(
            bytes(data) for ports, data in streams.items() if (port in ports) is not other
        )

    def _read(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                self._add(self._socket.recv(1 << 17))

    def _add(self, frame: bytes) -> None:
        (kind,) = struct.unpack_from("!H", frame, 12)
        if kind != _IPV4 or frame[23] != _TCP:
            return
        start = 14 + 4 * (frame[14] & 15)
        source, target = struct.unpack_from("!HH", frame, start)
        data = frame[start + 4 * (frame[start + 12] >> 4) :]
        self._streams.setdefault((source, target), bytearray()).extend(data)


@dataclass(frozen=True)
class Listening:
    """An address and a port that a process of a host listens on."""

    address: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only its own host can connect."""
        return self.address.startswith("127.")


def listening(pid: int) -> Iterator[Listening]:
    """Yield what the processes of the host of a process listen on, with IPv4."""
    table = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()
    for row in (line.split() for line in table[1:]):
        if row[3] == _LISTEN:
            found = re.fullmatch(r"([0-9A-F]{8}):([0-9A-F]{4})", row[1])
            assert found
            address = socket.inet_ntoa(struct.pack("<I", int(found[1], 16)))
            yield Listening(address, int(found[2], 16))
