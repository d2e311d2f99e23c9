"""The memory of each process of a stack over time, and whether it grows."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from girder_dask.errors import StackError
from tests.support.fault_site import FaultStack

__all__ = ["Growth", "MemoryWatch", "growths"]

#: The parts whose memory must not grow. MongoDB's cache grows up to its limit.
_JUDGED = ("girder", "scheduler", "worker-0")
#: What may come on top of a steady state: caches that fill, memory that the allocator keeps.
_MOST_SHARE, _MOST_MIB = 0.10, 25.0
_LEAST_SAMPLES = 12


class MemoryWatch:
    """Samples the resident memory of the processes of a stack.

    Parameters
    ----------
    stack
        The stack.
    interval_s
        Seconds between two samples.
    """

    def __init__(self, stack: FaultStack, interval_s: float) -> None:
        self._stack = stack
        self._interval_s = interval_s
        #: Triples of seconds, MiB and process id, by the name of the part.
        self.samples: dict[str, list[tuple[float, float, int]]] = {}

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Take samples while the block runs."""
        over = threading.Event()
        thread = threading.Thread(target=self._run, args=(over,), name="memory")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _run(self, over: threading.Event) -> None:
        begun = time.monotonic()
        while not over.wait(self._interval_s):
            for name, find in self._processes().items():
                # Parts are restarted meanwhile.
                with contextlib.suppress(psutil.Error, StackError, StopIteration):
                    process = find()
                    if process is not None:
                        mib = process.memory_info().rss / 2**20
                        now = time.monotonic() - begun
                        sample = (round(now, 1), round(mib, 1), process.pid)
                        self.samples.setdefault(name, []).append(sample)

    def _processes(self) -> dict[str, Callable[[], psutil.Process | None]]:
        return {
            part.name: (
                lambda part=part: _worker(part.pid) if part.is_worker else psutil.Process(part.pid)
            )
            for part in self._stack.parts
            if part.running
        }


def _worker(pid: int | None) -> psutil.Process | None:
    """Return the process that runs jobs: the child of the nanny that Dask has spawned."""
    for child in psutil.Process(pid).children():
        if "spawn_main" in " ".join(child.cmdline()):
            return child
    return None


@dataclass(frozen=True)
class Growth:
    """The memory of the longest life of a part, in MiB.

    ``early`` and ``late`` are the medians of the first and of the last quarter of what is left of
    that life without its first third, in which caches fill.
    """

    part: str
    minutes: float
    early: float
    late: float
    most: float

    @property
    def is_steady(self) -> bool:
        """Whether it has grown no more than a steady process may."""
        return self.late - self.early <= max(_MOST_SHARE * self.early, _MOST_MIB)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "is_steady": self.is_steady}


def growths(samples: dict[str, list[tuple[float, float, int]]]) -> list[Growth]:
    """Return the growth of each part whose memory must not grow."""
    found = []
    for part in _JUDGED:
        lives: dict[int, list[tuple[float, float]]] = {}
        for seconds, mib, pid in samples.get(part, []):
            lives.setdefault(pid, []).append((seconds, mib))
        longest = max(lives.values(), key=len, default=[])
        if len(longest) < _LEAST_SAMPLES:
            continue
        steady = [mib for _, mib in longest[len(longest) // 3 :]]
        quarter = max(1, len(steady) // 4)
        early, late = statistics.median(steady[:quarter]), statistics.median(steady[-quarter:])
        minutes = (longest[-1][0] - longest[0][0]) / 60
        found.append(Growth(part, round(minutes, 1), early, late, max(m for _, m in longest)))
    return found
