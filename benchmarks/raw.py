"""Dask alone, the upper bound for a system that runs on Dask."""

from __future__ import annotations

import time
from collections.abc import Mapping

from distributed import Client, wait

__all__ = ["RawDask"]


class RawDask:
    """A client of a scheduler that has no hooks of ours.

    Parameters
    ----------
    address
        The address of the scheduler.
    parts
        The names of its processes, by the name of their group in the results.
    """

    name = "dask"

    def __init__(self, address: str, parts: Mapping[str, list[str]]) -> None:
        self.parts = parts
        self._client = Client(address, set_as_default=False)
        self.map_noop(20)  # warm

    def map_noop(self, tasks: int) -> float:
        """Run no-op tasks, and return the seconds that they took."""
        start = time.perf_counter()
        futures = self._client.map(_noop, range(tasks), pure=False)
        with self._client.as_current():
            wait(futures)
        seconds = time.perf_counter() - start
        assert all(future.status == "finished" for future in futures)
        return seconds

    def close(self) -> None:
        """Disconnect."""
        self._client.close(timeout=5)


def _noop(n: int) -> None:
    """Do nothing, like the task that the other systems run."""
