"""What the scheduler's account of jobs asks of Dask. No method waits that is not async."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from girder_dask.protocol.messages import JobSpec

__all__ = ["Cluster", "Holder", "Timer"]


class Timer(Protocol):
    """What a call that is to come later is called off with."""

    def cancel(self) -> None:
        """Do not call."""


class Holder(Protocol):
    """What holds values: Dask."""

    def drop(self, keys: Sequence[str]) -> None:
        """Want keys no more, so that they are forgotten unless somebody else wants them.

        No run of them begins any more, also if somebody does and Dask places them again.
        """

    def is_wanted(self, key: str) -> bool:
        """Say whether somebody else wants a key."""

    def call_later(self, delay: float, function: Callable[[], None]) -> Timer:
        """Call a function in ``delay`` seconds."""


class Cluster(Holder, Protocol):
    """What a dispatcher asks of Dask."""

    def submit(self, specs: Sequence[JobSpec], values: Mapping[str, Mapping[str, str]]) -> None:
        """Have the jobs run, under their keys.

        ``values`` has for jobs that need values on the cluster the keys of these, by the
        ids of the jobs that made them.
        """

    def stop(self, worker: str, keys: Sequence[str], unstarted: Callable[[str, str], None]) -> None:
        """Tell the runs of keys on a worker to stop.

        ``not_begun`` is called with each key, and the worker, that it has not begun with, and
        will not, when all is here that runs of them have said there.
        """

    def end_run(self, worker: str, run: str) -> None:
        """Tell a run on a worker that nobody hears it any more."""

    async def flush(self, worker: str) -> None:
        """Wait until what runs on a worker have said is here, if that does not take long."""

    async def unstarted(self, worker: str) -> Sequence[str]:
        """Return the keys with which a worker that is to begin nothing more has not begun."""

    def set_attempt(self, key: str, attempt: int) -> None:
        """Tell the next run of a key which attempt it is."""

    def unrunnable(self) -> Mapping[str, str]:
        """Return why keys wait for which there is no worker, by key."""

    def loss_reason(self, worker: str) -> str:
        """Say why a worker was lost; empty if that is not known."""

    def assigned_to(self, key: str) -> str | None:
        """Return the address of the worker that a key is placed on."""
