"""The lease, by which one scheduler leads and the others stand by."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["SchedulerLease", "system_id"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# The leader renews its lease, and the others look at it, so many times in its duration.
_RENEWALS_PER_LEASE = 3
_LOOKS_PER_LEASE = 6


def system_id() -> str:
    """Return the id of the running system, which changes when the host starts anew."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        return f"{uuid.getnode():x}"


class SchedulerLease:
    """The lease of this scheduler, or its watch over that of another one.

    A lease has run out if it was not renewed for its duration while Girder answered: a scheduler
    that stands by counts only the time between two answers. So an outage of Girder, in which no
    leader can renew, costs no leader its lease.

    Parameters
    ----------
    place
        The address and the name of the host at which this scheduler listens.
    host
        The id of the running system there.
    duration_s
        How long a lease holds without renewal.
    clock
        A monotonic clock, in seconds.

    Examples
    --------
    >>> now = 0.0
    >>> lease = SchedulerLease("tcp://b:8786 on b", "6f1e", 30.0, clock=lambda: now)
    >>> lease.request()
    {'place': 'tcp://b:8786 on b', 'host': '6f1e', 'take_over': None}
    >>> for now in (0.0, 10.0, 20.0, 30.0):
    ...     lease.on_answer({"leads": False, "place": "tcp://a:8786 on a", "renewals": 7})
    >>> lease.leads, lease.leader
    (False, 'tcp://a:8786 on a')
    >>> lease.request()["take_over"]
    7
    """

    def __init__(
        self,
        place: str,
        host: str,
        duration_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.place = place
        self._host = host
        self._duration_s = duration_s
        self._clock = clock
        #: True if this scheduler leads, False if it stands by, None before Girder has answered.
        self.leads: bool | None = None
        #: The address and the host of the leader, None if it is not known.
        self.leader: str | None = None
        self._renewals: int | None = None
        self._watched_since = self._answered_at = clock()

    @property
    def interval_s(self) -> float:
        """The most seconds until the next request."""
        return self._duration_s / (_LOOKS_PER_LEASE if self.leads is False else _RENEWALS_PER_LEASE)

    def request(self) -> dict[str, Any]:
        """Return what is sent with a claim."""
        has_run_out = (
            self.leads is False
            and self._answered_at - self._watched_since >= self._duration_s
            and self._clock() - self._answered_at <= self._duration_s / 2
        )
        take_over = self._renewals if has_run_out else None
        return {"place": self.place, "host": self._host, "take_over": take_over}

    def on_answer(self, lease: Mapping[str, Any] | None) -> None:
        """Handle what Girder says about the lease; None is the answer of one without leases."""
        if lease is None:
            self.leads, self.leader = True, self.place
            return
        self.leads, self.leader = bool(lease["leads"]), str(lease["place"])
        now = self._clock()
        # A longer time without an answer shows nothing, as the leader may have had none either.
        was_watched = now - self._answered_at <= self._duration_s / 2
        if lease["renewals"] != self._renewals or not was_watched:
            self._renewals, self._watched_since = lease["renewals"], now
        self._answered_at = now

    def on_failure(self) -> None:
        """Handle a request without an answer: no leader can renew either."""
        self._renewals = None
