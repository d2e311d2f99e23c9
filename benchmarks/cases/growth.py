"""What becomes more as jobs become more: time, memory, and the work of the scheduler."""

from __future__ import annotations

import threading
import time

from benchmarks.measurement import Measurement
from benchmarks.side import Side
from benchmarks.usage import Watch, cpu_seconds, unique_bytes

__all__ = ["long_queues", "long_run", "memory", "scheduler_time", "sizes"]

_RATE = "throughput"
_CPU = "CPU time of the scheduler"
_SHORT_QUEUE = 500
# Jobs that are started at once to keep a queue as long as it is.
_REFILL = 100


def long_queues(m: Measurement) -> dict[str, float | None]:
    """Measure how fast jobs end while many or few wait. Both queues are kept full."""
    queues = (min(_SHORT_QUEUE, m.size), m.size)
    window = max(8, m.size // 10)
    for _ in m.rounds():
        for side in m.sides("girder_dask"):
            for queue in queues:
                rate = _rate_with(side, queue, window)
                m.record(side.name, f"{_RATE} with {queue:,} queued", rate, "jobs/s")
    short, long = (m.median("girder_dask", f"{_RATE} with {queue:,} queued") for queue in queues)
    return {"queue_growth": long / short if long and short else None}


def _rate_with(side: Side, queue: int, window: int) -> float:
    """Return the rate at which ``window`` jobs end while about ``queue`` jobs wait."""
    side.start("map_all", task="noop", jobs=queue)
    more = min(_REFILL, queue)
    started, ended = queue, 0
    refill = threading.Thread()
    # The first ones are not counted: a system has to take in the jobs.
    begin, first, wanted = 0.0, 0, window // 4
    deadline = time.monotonic() + 120 + window
    while ended < wanted:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{ended} of {wanted} jobs have ended while {queue} wait")
        if not refill.is_alive() and started - ended <= queue - more // 2:
            arguments = {"task": "noop", "jobs": more}
            refill = threading.Thread(target=side.start, args=("map_all",), kwargs=arguments)
            refill.start()
            started += more
        time.sleep(0.05)
        ended = side.count()
        if not begin and ended >= wanted:
            begin, first, wanted = time.perf_counter(), ended, ended + window
    rate = (ended - first) / (time.perf_counter() - begin)
    if refill.ident is not None:
        refill.join()
    side.abandon()
    return rate


def scheduler_time(m: Measurement) -> dict[str, float | None]:
    """Measure the CPU time of the scheduler for each job, with and without our hooks."""
    for _ in m.rounds():
        for side in m.sides("girder_dask"):
            scheduler = m.stack.part("scheduler")
            before = cpu_seconds(scheduler)
            side.timed("map_all", m.size, task="noop")
            m.record(side.name, _CPU, 1000 * (cpu_seconds(scheduler) - before) / m.size, "ms/job")
            side.clear()
        for dask in m.dask():
            scheduler = m.stack.part("dask-scheduler")
            before = cpu_seconds(scheduler)
            dask.map_noop(m.size)
            m.record("dask", _CPU, 1000 * (cpu_seconds(scheduler) - before) / m.size, "ms/job")
    return {"scheduler_overhead": m.ratio(_CPU, "girder_dask", "dask")}


def memory(m: Measurement) -> dict[str, float | None]:
    """Measure by how much processes grow from one batch to the next, after one to warm up."""
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
# Seconds in which what is no longer needed is given back.
_REST = 3.0


def _memory_of(name: str) -> str:
    return f"kept by {name}"


def _batch(m: Measurement, side: Side, groups: dict[str, list[str]]) -> dict[str, int]:
    """Run a batch, and return the memory of each group of processes after it."""
    side.clear()
    side.timed("map_all", m.size, task="noop")
    time.sleep(_REST)
    return {
        name: sum(unique_bytes(m.stack.part(part)) for part in parts)
        for name, parts in groups.items()
    }


def long_run(m: Measurement) -> dict[str, float | None]:
    """Run very many jobs from one map, and note the memory of every process meanwhile."""
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
    """Measure the throughput with more and more jobs."""
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
# So many one after another take two minutes with girder_worker.
_MOST_DELAYS = 5000


def _sized(m: Measurement, side: Side, way: str, jobs: int) -> None:
    seconds = side.timed(way, jobs, task="noop")
    what = f"{_RATE} of {way.removesuffix('_all')}"
    m.record(side.name, what, jobs / seconds, "jobs/s", jobs=jobs)
    side.clear()
