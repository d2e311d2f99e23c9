"""Scaling with the number of jobs: throughput, memory and CPU time of the scheduler."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from benchmarks.measurement import Measurement
from benchmarks.side import Side
from benchmarks.usage import Watch, unique_bytes

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "RefilledQueue",
    "long_queues",
    "long_run",
    "many_workers",
    "memory",
    "scheduler_time",
    "sizes",
]

_RATE = "throughput"
_SCHEDULER = "the scheduler"
_SHORT_QUEUE = 500
# Jobs that are started at once to keep the length of a queue.
_REFILL = 100


def long_queues(m: Measurement) -> dict[str, float | None]:
    """Measure the throughput with many and with few queued jobs. Both queues are kept full."""
    queues = (min(_SHORT_QUEUE, m.size), m.size)
    for _ in m.rounds():
        for side in m.sides("girder_dask"):
            for queue in queues:
                with RefilledQueue(side, queue) as kept:
                    first = kept.until(m.size // 20)
                    m.record(side.name, f"first {m.size // 20:,} of {queue:,} queued", first, "s")
                    # The effect of the first submission is over after a while.
                    part = min(1.0, max(0.1, m.size / 20_000))
                    kept.rate(part * _SETTLE_S)
                    rate = kept.rate(part * _WINDOW_S)
                m.record(side.name, f"{_RATE} with {queue:,} queued", rate, "jobs/s")
                side.abandon()
    short, long = (m.median("girder_dask", f"{_RATE} with {queue:,} queued") for queue in queues)
    return {"queue_growth": long / short if long and short else None}


# Seconds before the throughput of a queue is measured, and seconds of that measurement.
_SETTLE_S, _WINDOW_S = 8.0, 12.0
_POLL_S = 0.1


class RefilledQueue:
    """A queue of nearly constant length: a thread starts new jobs as others end."""

    def __init__(self, side: Side, length: int) -> None:
        self._side = side
        self._length = length
        self._more = min(_REFILL, length)
        self._began = time.perf_counter()
        self._stopped = threading.Event()
        self._ended = 0
        self._thread = threading.Thread(target=self._refill, name="refill", daemon=True)

    def __enter__(self) -> Self:
        self._side.start("map_all", task="noop", jobs=self._length)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _refill(self) -> None:
        started = self._length
        while not self._stopped.wait(_POLL_S):
            # Cheap: the count reads the index entries of the ended jobs, not those of the queue.
            self._ended = self._side.count()
            while started - self._ended <= self._length - self._more:
                self._side.start("map_all", task="noop", jobs=self._more)
                started += self._more

    def until(self, count: int) -> float:
        """Return the seconds from the first submission until ``count`` jobs had ended."""
        deadline = time.perf_counter() + 300
        while self._ended < count:
            assert time.perf_counter() < deadline, f"{self._ended} of {count} jobs have ended"
            time.sleep(_POLL_S)
        return time.perf_counter() - self._began

    def rate(self, seconds: float) -> float:
        """Return the number of jobs that end per second, measured over at least ``seconds``."""
        begin, before = time.perf_counter(), self._side.count()
        time.sleep(seconds)
        return (self._side.count() - before) / (time.perf_counter() - begin)


def scheduler_time(m: Measurement) -> dict[str, float | None]:
    """Measure the CPU time of the scheduler per job, with and without our hooks."""
    for _ in m.rounds():
        for side in m.sides("girder_dask"):
            with m.cpu_time(side.name, {_SCHEDULER: ["scheduler"]}):
                side.timed("map_all", m.size, task="noop")
            side.clear()
        for dask in m.dask():
            with m.cpu_time("dask", {_SCHEDULER: dask.parts[_SCHEDULER]}):
                dask.map_noop(m.size)
    return {"scheduler_overhead": m.ratio(f"CPU time of {_SCHEDULER}", "girder_dask", "dask")}


def many_workers(m: Measurement) -> dict[str, float | None]:
    """Measure the CPU time of the scheduler per job with few and with very many workers.

    The workers are simulated, see :mod:`benchmarks.simulated_workers`.
    """
    few, many = min(_FEW_WORKERS, m.size), min(_MANY_WORKERS, 2 * m.size)
    for _ in m.rounds():
        for side in m.sides("girder_dask"):
            for count in (few, many):
                with m.stack.simulated_workers(count):
                    system = f"{side.name} with {count:,} workers"
                    side.timed("map_all", max(1, m.size // 5), task="noop")
                    side.clear()
                    with m.cpu_time(system, {_SCHEDULER: ["scheduler"]}):
                        seconds = side.timed("map_all", m.size, task="noop")
                    m.record(system, _RATE, m.size / seconds, "jobs/s")
                    side.clear()
    systems = [f"girder_dask with {count:,} workers" for count in (many, few)]
    return {"workers_1000": m.ratio(f"CPU time of {_SCHEDULER}", *systems)}


_FEW_WORKERS, _MANY_WORKERS = 10, 1_000


def memory(m: Measurement) -> dict[str, float | None]:
    """Measure the growth of processes from one batch to the next, after a warm-up batch."""
    for _ in m.rounds():
        for side in m.sides("girder_dask"):
            groups = dict(zip(_KEEPERS, (["scheduler"], side.workers, side.girder), strict=True))
            side.timed("map_all", max(1, m.size // 4), task="noop")
            first = _batch(m, side, groups)
            second = _batch(m, side, groups)
            side.clear()
            for name in _KEEPERS:
                kept = (second[name] - first[name]) / m.size
                m.record(side.name, _memory_of(name), kept, "bytes/job", uss=second[name])
    found = [m.median("girder_dask", _memory_of(name)) for name in _KEEPERS]
    return {"memory_per_job": max((kept for kept in found if kept is not None), default=None)}


_KEEPERS = ("scheduler", "workers", "Girder")
# Seconds in which processes release memory after a batch.
_REST_S = 3.0


def _memory_of(name: str) -> str:
    return f"kept by {name}"


def _batch(m: Measurement, side: Side, groups: dict[str, list[str]]) -> dict[str, int]:
    """Run a batch, and return the memory of each group of processes after it."""
    side.clear()
    side.timed("map_all", m.size, task="noop")
    time.sleep(_REST_S)
    return {
        name: sum(unique_bytes(m.stack.part(part)) for part in parts)
        for name, parts in groups.items()
    }


def long_run(m: Measurement) -> dict[str, float | None]:
    """Run one map with very many jobs, and sample the memory of each process meanwhile."""
    for _ in m.rounds():
        for side in m.sides("girder_dask"):
            names = ["mongod", "redis", *side.girder, "scheduler", *side.workers]
            parts = {name: m.stack.part(name) for name in names}
            watch = Watch(parts)
            with m.stack.default_threads(), watch:
                seconds = side.timed("map_all", m.size, task="noop")
            side.clear()
            m.record(side.name, _RATE, m.size / seconds, "jobs/s", seconds=seconds, jobs=m.size)
            for name, samples in watch.samples.items():
                top = max(mib for _, mib in samples)
                m.record(side.name, f"most memory of {name}", top, "MiB", samples=samples)
    return {}


def sizes(m: Measurement) -> dict[str, float | None]:
    """Measure the throughput for increasing numbers of jobs."""
    for _ in m.rounds():
        for jobs in [*(n for n in _SIZES if n < m.size), m.size]:
            for side in m.sides():
                if side.name == "girder_dask":
                    _sized(m, side, "map_all", jobs)
                if jobs <= _MOST_DELAYS:
                    _sized(m, side, "delay", jobs)
            for dask in m.dask():
                rate = jobs / dask.map_noop(jobs)
                m.record("dask", f"{_RATE} of map", rate, "jobs/s", jobs=jobs)
    return {}


_SIZES = (100, 300, 1000, 5000, 20_000)
# A delay() loop of this length takes two minutes on girder_worker.
_MOST_DELAYS = 5000


def _sized(m: Measurement, side: Side, way: str, jobs: int) -> None:
    seconds = side.timed(way, jobs, task="noop")
    what = f"{_RATE} of {way.removesuffix('_all')}"
    m.record(side.name, what, jobs / seconds, "jobs/s", jobs=jobs)
    side.clear()
