"""The processes that come from one, as far as the system tells: where there is a ``/proc``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["descendants", "send_signal"]


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process, if it is still there."""
    with contextlib.suppress(OSError):  # it has ended, or is somebody else's now
        os.kill(pid, number)


def descendants(root: int) -> list[int]:
    """Return the living processes that come from ``root``.

    >>> os.getpid() in descendants(os.getppid())
    True
    """
    parents = dict(_living())
    found, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return sorted(found - {root})


def _living() -> Iterator[tuple[int, int]]:
    """Yield each process with its parent."""
    try:
        entries = list(Path("/proc").iterdir())
    except OSError:
        return
    for entry in entries:
        if not entry.name.isdigit():
            continue
        try:
            # The name of the program, in parentheses, may hold anything.
            state, parent = (entry / "stat").read_bytes().rpartition(b")")[2].split()[:2]
        except (OSError, ValueError):  # it has just ended
            continue
        if state != b"Z":
            yield int(entry.name), int(parent)
