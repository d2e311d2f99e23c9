"""The processes that come from one, as far as the system tells: where there is a ``/proc``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Process", "descendants", "has_variable", "living", "send_signal"]


@dataclass(frozen=True, slots=True)
class Process:
    """A process as it was seen. ``born`` tells it from a later one with the same ``pid``."""

    pid: int
    parent: int
    group: int
    born: int


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process, if it is still there."""
    with contextlib.suppress(OSError):  # it has ended, or is somebody else's now
        os.kill(pid, number)


def descendants(root: int) -> list[int]:
    """Return the living processes that come from ``root``.

    >>> os.getpid() in descendants(os.getppid())
    True
    """
    parents = {process.pid: process.parent for process in living()}
    found, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return sorted(found - {root})


def has_variable(pid: int, name: str, value: str) -> bool:
    """Say whether a process was started with a variable in its environment.

    That of another user's process cannot be read, so it has none.
    """
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it is somebody else's, or has ended
        return False
    return os.fsencode(f"{name}={value}") in environment.split(b"\0")


def living() -> Iterator[Process]:
    """Yield each process that has not ended.

    >>> os.getpid() in {process.pid for process in living()}
    True
    """
    try:
        entries = list(Path("/proc").iterdir())
    except OSError:
        return
    for entry in entries:
        if not entry.name.isdigit():
            continue
        try:
            # The name of the program, in parentheses, may hold anything.
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            state, parent, group, born = fields[0], fields[1], fields[2], fields[19]
        except (OSError, IndexError):  # it has just ended
            continue
        if state != b"Z":
            yield Process(int(entry.name), int(parent), int(group), int(born))
