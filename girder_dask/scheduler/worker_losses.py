"""The reasons why workers were lost, as far as the scheduler can know."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dask.utils import format_bytes

from girder_dask.tls import EXPIRY_METRIC
from girder_dask.utils.bounded_dict import BoundedDict

__all__ = ["WorkerLosses"]

# Events of Dask's nannies and of its scheduler.
_OUT_OF_MEMORY_TOPIC = "worker-restart-memory"
_SILENT_ACTION = "worker-ttl-timed-out"

# A worker that last reported this share of its memory in use probably died of it.
_NEARLY_FULL_SHARE = 0.8
_MAX_WORKERS = 10_000

# How long the last refusal of a worker is remembered. Its supervisor restarts it sooner.
_REFUSAL_LIFETIME_S = 300.0

# A worker that leaves sooner, and has not sent the metric of our plugin, could not start.
_START_S = 60.0
_COULD_NOT_START = (
    "those that try end before they are ready; see the log of one, and upgrade girder_dask there "
    "or on the scheduler if the versions differ"
)


@dataclass(frozen=True, slots=True)
class _LastSeen:
    """What is remembered of a worker that is gone. Dask's state of it refers to much more."""

    memory_limit: int
    metrics: Mapping[str, float]


class WorkerLosses:
    """Reasons why workers were lost, and the workers themselves, connected or not.

    Dask's nannies report when they end a worker that uses too much memory, and the scheduler
    reports when it removes a silent one. For any other loss, the only hint is the memory use that
    the worker reported last.
    """

    def __init__(self) -> None:
        self._workers = BoundedDict[str, Any](_MAX_WORKERS)
        self._joined_at = BoundedDict[str, float](_MAX_WORKERS)
        self._reasons = BoundedDict[str, str](_MAX_WORKERS)
        #: How many workers were lost without having left.
        self.lost = 0
        #: How many workers their nannies ended for using too much memory.
        self.out_of_memory = 0
        self._refusal = ""
        self._refused_at = 0.0

    def on_joined(self, address: str, worker: Any) -> None:
        """Record a worker and Dask's state of it, which includes its memory use."""
        self._workers[address] = worker
        self._joined_at[address] = time.monotonic()
        self._reasons.pop(address, None)

    def on_left(self, address: str) -> None:
        """Record that a worker is gone, and whether it could not start."""
        joined_at = self._joined_at.pop(address, None)
        worker = self._workers.get(address)
        if worker is None:
            return
        has_started = EXPIRY_METRIC in worker.metrics
        memory = {"memory": worker.metrics.get("memory", 0)}
        self._workers[address] = _LastSeen(worker.memory_limit, memory)
        if joined_at is None or has_started:
            return
        if time.monotonic() - joined_at < _START_S and not self.refusal:
            self.on_refused(_COULD_NOT_START)

    def on_event(self, topic: str, message: Any) -> list[str]:
        """Handle an event of Dask; return the workers whose loss it explains."""
        if not isinstance(message, Mapping):
            return []
        if topic == _OUT_OF_MEMORY_TOPIC:
            address = str(message.get("worker"))
            self.out_of_memory += 1
            return self._explain([address], self._out_of_memory(address, message.get("rss") or 0))
        if topic == "scheduler" and message.get("action") == _SILENT_ACTION:
            silent = f"it was silent for more than {message.get('ttl', 0):g} s"
            return self._explain(map(str, message.get("workers", ())), silent)
        return []

    def on_refused(self, why: str) -> None:
        """Record why a worker was refused when it joined."""
        self._refusal, self._refused_at = why, time.monotonic()

    @property
    def refusal(self) -> str:
        """Why workers have been refused in the last minutes; empty if none was."""
        is_recent = time.monotonic() - self._refused_at < _REFUSAL_LIFETIME_S
        return self._refusal if is_recent else ""

    def is_explained(self, address: str | None) -> bool:
        """Return True if an event has explained the loss of a worker."""
        return address in self._reasons

    def reason(self, address: str) -> str:
        """Return why a worker was lost; empty if that is unknown.

        >>> losses = WorkerLosses()
        >>> losses.on_event('worker-restart-memory', {'worker': 'tcp://10.0.0.7:4312', 'rss': 3e9})
        ['tcp://10.0.0.7:4312']
        >>> losses.reason('tcp://10.0.0.7:4312')
        'its nanny ended it for using too much memory, 2.79 GiB'
        """
        return self._reasons.get(address) or self._probable_reason(address)

    def _explain(self, addresses: Iterable[str], reason: str) -> list[str]:
        explained = list(addresses)
        for address in explained:
            self._reasons[address] = reason
        return explained

    def _out_of_memory(self, address: str, used: float) -> str:
        limit = getattr(self._workers.get(address), "memory_limit", 0)
        of = f" of its limit of {format_bytes(limit)}" if limit else ""
        return f"its nanny ended it for using too much memory, {format_bytes(int(used))}{of}"

    def _probable_reason(self, address: str) -> str:
        worker = self._workers.get(address)
        limit = getattr(worker, "memory_limit", 0)
        used = worker.metrics.get("memory", 0) if worker is not None else 0
        if not limit or used < _NEARLY_FULL_SHARE * limit:
            return ""
        return (
            "it may have run out of memory, as it was last seen to use "
            f"{format_bytes(used)} of its limit of {format_bytes(limit)}"
        )
