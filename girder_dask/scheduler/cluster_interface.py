"""The interface to a Dask cluster that the dispatcher uses. Only its coroutines wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from girder_dask.protocol.messages import JobSpec

__all__ = ["Cluster"]


class Cluster(Protocol):
    """A Dask cluster as job handling sees it. Tests implement one in memory."""

    def submit(self, specs: Sequence[JobSpec], values: Mapping[str, Mapping[str, str]]) -> None:
        """Submit jobs under their keys.

        Parameters
        ----------
        values
            By job id: the keys of values on the cluster that the job needs, by the ids of the
            jobs that made them.
        """

    def release(self, keys: Sequence[str]) -> None:
        """Release keys. Dask forgets them unless another client wants them.

        No further run of them starts, even if Dask assigns them again for that client.
        """

    def is_wanted(self, key: str) -> bool:
        """Return True if another client wants a key."""

    def cancel_runs(
        self, worker: str, keys: Sequence[str], on_unstarted: Callable[[str, str], None]
    ) -> None:
        """Ask the runs of keys on a worker to stop.

        Parameters
        ----------
        on_unstarted
            Called with each key that the worker has not started and will not start, and with
            the worker, after all events of its runs there have arrived.
        """

    def drop_run(self, worker: str, run: str) -> None:
        """Tell a worker that the events of one of its runs are ignored from now on."""

    async def flush(self, worker: str) -> None:
        """Wait until the events of a worker's runs have arrived, up to a few seconds."""

    async def unstarted(self, worker: str) -> Sequence[str]:
        """Return the keys that a draining worker has not started."""

    def set_attempt(self, key: str, attempt: int) -> None:
        """Set the attempt number for the next run of a key."""

    def unrunnable(self) -> Mapping[str, str]:
        """Return the keys that no worker can run, each with the reason."""

    def has_worker(self, worker: str) -> bool:
        """Return True if a worker is connected."""

    def loss_reason(self, worker: str) -> str:
        """Return why a worker was lost; empty if that is unknown."""

    def assigned_to(self, key: str) -> str | None:
        """Return the address of the worker to which Dask has assigned a key."""

    def time(self) -> float:
        """Return the time of a monotonic clock, in seconds."""

    def call_later(self, delay_s: float, function: Callable[[], None]) -> Callable[[], None]:
        """Call a function after a delay; return a function that cancels the call."""
