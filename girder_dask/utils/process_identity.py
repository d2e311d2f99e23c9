"""A name for a process that no other process has, by which others see whether it has ended."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from pathlib import Path

__all__ = ["has_ended", "identity"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Fields of /proc/PID/stat after the name of the program, which may have spaces.
_STATE, _START_TIME = 0, 19


def identity(pid: int | None = None) -> str:
    """Return the identity of a process: the host, its boot, the PID namespace, the id, the start.

    >>> identity() == identity(os.getpid())
    True
    """
    return _identity(os.getpid() if pid is None else pid)


@functools.lru_cache(maxsize=1)
def _identity(pid: int) -> str:
    return " ".join([*_place(), str(pid), _start_time(pid) or "?"])


def has_ended(named: str) -> bool:
    """Return True if a process of this host is known to have ended.

    That is not known of processes in other PID namespaces, as workers in containers have them.

    >>> has_ended(identity()), has_ended('elsewhere boot pid:[1] 7 12')
    (False, False)
    """
    parts = named.split(" ")
    if len(parts) != 5 or not parts[3].isdecimal():
        return False
    host, boot, namespace = _place()
    if parts[0] != host:
        return False
    if parts[1] != boot:
        return True
    return parts[2] == namespace and _start_time(int(parts[3])) != parts[4]


def _place() -> tuple[str, str, str]:
    boot = namespace = "?"
    with contextlib.suppress(OSError):
        boot = _BOOT_ID.read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return socket.gethostname().replace(" ", "_"), boot, namespace


def _start_time(pid: int) -> str | None:
    """Return when a process started, None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[_STATE] in "ZX" else fields[_START_TIME]
