"""CPU time and memory of processes, including their children."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import psutil

from girder_dask.standalone.stack_part import Part

__all__ = ["Watch", "cpu_seconds", "unique_bytes"]


def _tree(part: Part) -> Iterator[psutil.Process]:
    process = psutil.Process(part.pid)
    yield process
    yield from process.children(recursive=True)


def _total(part: Part, read: Callable[[psutil.Process], float]) -> float:
    total = 0.0
    for process in _tree(part):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += read(process)
    return total


def cpu_seconds(part: Part) -> float:
    """Return the CPU time of a part, in seconds."""
    return _total(part, lambda process: sum(process.cpu_times()[:2]))


def unique_bytes(part: Part) -> int:
    """Return the unique set size (USS) of a part: the memory that its end would free."""
    return int(_total(part, lambda process: process.memory_full_info().uss))


def resident_bytes(part: Part) -> int:
    """Return the resident set size (RSS) of a part."""
    return int(_total(part, lambda process: process.memory_info().rss))


class Watch:
    """Context manager that samples the resident memory of parts once a second.

    Parameters
    ----------
    parts
        The parts by their names.
    """

    def __init__(self, parts: Mapping[str, Part]) -> None:
        #: Pairs of seconds and MiB, by the name of the part.
        self.samples: dict[str, list[tuple[float, float]]] = {name: [] for name in parts}
        self._parts = parts
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        start = time.monotonic()
        while True:
            now = round(time.monotonic() - start, 1)
            for name, part in self._parts.items():
                with contextlib.suppress(psutil.NoSuchProcess):  # it is being restarted
                    mib = round(resident_bytes(part) / 2**20, 1)
                    self.samples[name].append((now, mib))
            if self._stopped.wait(1):
                return
