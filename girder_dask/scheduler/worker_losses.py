"""Why workers were lost, as far as the scheduler can know."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from dask.utils import format_bytes

__all__ = ["WorkerLosses"]

# What Dask's nannies and its scheduler call what they have done.
_TOO_LARGE = "worker-restart-memory"
_SILENT = "worker-ttl-timed-out"

# A worker that was last seen with so much of its memory in use is likely to have died of it.
_NEARLY_FULL = 0.8
# How many workers are remembered.
_MOST = 10_000


class WorkerLosses:
    """What is known of workers, that are there or were.

    Dask's nannies tell the scheduler when they end a worker that takes too much memory, and
    the scheduler says when it gives up one that is silent. Of any other death there is only
    what the worker said last of its memory.
    """

    def __init__(self) -> None:
        self._workers: OrderedDict[str, Any] = OrderedDict()
        self._reasons: OrderedDict[str, str] = OrderedDict()

    def joined(self, address: str, worker: Any) -> None:
        """Take note of a worker: Dask's account of it, which has its memory."""
        self._workers[address] = worker
        self._reasons.pop(address, None)
        _bound(self._workers)

    def heard(self, topic: str, message: Any) -> list[str]:
        """Take in an event of Dask, and return the workers of which it says something."""
        if not isinstance(message, Mapping):
            return []
        if topic == _TOO_LARGE:
            address = str(message.get("worker"))
            return self._explain([address], self._too_large(address, message.get("rss") or 0))
        if topic == "scheduler" and message.get("action") == _SILENT:
            silent = f"it was silent for more than {message.get('ttl', 0):g} s"
            return self._explain(map(str, message.get("workers", ())), silent)
        return []

    def is_known(self, address: str | None) -> bool:
        """Say whether somebody has said why a worker was lost."""
        return address in self._reasons

    def why(self, address: str) -> str:
        """Say why a worker was lost; empty if that is not known.

        >>> losses = WorkerLosses()
        >>> losses.heard('worker-restart-memory', {'worker': 'tcp://10.0.0.7:4312', 'rss': 3e9})
        ['tcp://10.0.0.7:4312']
        >>> losses.why('tcp://10.0.0.7:4312')
        'its nanny ended it for using too much memory, 2.79 GiB'
        """
        return self._reasons.get(address) or self._likely(address)

    def _explain(self, addresses: Iterable[str], reason: str) -> list[str]:
        explained = list(addresses)
        self._reasons.update(dict.fromkeys(explained, reason))
        _bound(self._reasons)
        return explained

    def _too_large(self, address: str, used: float) -> str:
        limit = getattr(self._workers.get(address), "memory_limit", 0)
        of = f" of its limit of {format_bytes(limit)}" if limit else ""
        return f"its nanny ended it for using too much memory, {format_bytes(int(used))}{of}"

    def _likely(self, address: str) -> str:
        worker = self._workers.get(address)
        limit = getattr(worker, "memory_limit", 0)
        used = worker.metrics.get("memory", 0) if worker is not None else 0
        if not limit or used < _NEARLY_FULL * limit:
            return ""
        return (
            "it may have run out of memory, as it was last seen to use "
            f"{format_bytes(used)} of its limit of {format_bytes(limit)}"
        )


def _bound(known: OrderedDict[str, Any]) -> None:
    while len(known) > _MOST:
        known.popitem(last=False)
