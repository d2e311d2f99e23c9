"""The location of a worker, as messages name it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["WorkerLocation"]


@dataclass(frozen=True, slots=True)
class WorkerLocation:
    """The address and the host of a worker.

    >>> str(WorkerLocation('tcp://10.0.0.7:4312', 'node7'))
    'worker tcp://10.0.0.7:4312 on node7'
    """

    address: str
    hostname: str

    def __str__(self) -> str:
        return f"worker {self.address} on {self.hostname}"
