"""Throughput of no-op jobs, from the request until the last one is in SUCCESS."""

from __future__ import annotations

import time

from benchmarks.measurement import Measurement

__all__ = [
    "beside_girder_worker",
    "by_delay",
    "by_map",
    "by_takeover",
    "submissions",
    "with_default_threads",
]

_RATE = "throughput"
_REQUESTS = "requests to Girder"


def by_map(m: Measurement) -> dict[str, float | None]:
    """Measure the throughput of one map, and the requests to Girder meanwhile."""
    for _ in m.rounds():
        for side in m.sides():
            before = side.requests()
            # girder_worker has no map, so it gets a delay() loop.
            way = "map_all" if side.name == "girder_dask" else "delay"
            with m.cpu_time(side.name, side.processes):
                seconds = side.timed(way, m.size, task="noop")
            requests = side.requests() - before
            m.record(side.name, _RATE, m.size / seconds, "jobs/s", seconds=seconds, jobs=m.size)
            m.record(side.name, _REQUESTS, requests / m.size, "requests/job", requests=requests)
            side.clear()
        for dask in m.dask():
            with m.cpu_time("dask", dask.parts):
                seconds = dask.map_noop(m.size)
            m.record("dask", _RATE, m.size / seconds, "jobs/s", seconds=seconds, jobs=m.size)
    return {
        "map_vs_girder_worker": m.ratio(_RATE, "girder_dask", "girder_worker"),
        "map_vs_dask": m.ratio(_RATE, "girder_dask", "dask"),
        "http_per_job": m.median("girder_dask", _REQUESTS),
    }


def beside_girder_worker(m: Measurement) -> dict[str, float | None]:
    """Measure one map in a Girder that has girder_worker's plugin as well, and in one without."""
    for _ in m.rounds():
        for side in m.sides("girder_dask", "beside_worker"):
            seconds = side.timed("map_all", m.size, task="noop")
            m.record(side.name, _RATE, m.size / seconds, "jobs/s", seconds=seconds, jobs=m.size)
            side.clear()
    return {"beside_girder_worker": m.ratio(_RATE, "beside_worker", "girder_dask")}


def by_delay(m: Measurement) -> dict[str, float | None]:
    """Measure the throughput of a ``delay()`` loop in one request."""
    return {"delay_vs_girder_worker": _delay_ratio(m, "girder_dask")}


def by_takeover(m: Measurement) -> dict[str, float | None]:
    """Measure the same loop with a task of girder_worker, on Dask and on RabbitMQ."""
    return {"takeover_delay_vs_rabbitmq": _delay_ratio(m, "takeover")}


def _delay_ratio(m: Measurement, system: str) -> float | None:
    for _ in m.rounds():
        for side in m.sides(system, "girder_worker"):
            seconds = side.timed("delay", m.size, task="noop")
            m.record(side.name, _RATE, m.size / seconds, "jobs/s", seconds=seconds, jobs=m.size)
            side.clear()
    return m.ratio(_RATE, system, "girder_worker")


def submissions(m: Measurement) -> dict[str, float | None]:
    """Measure the submissions of a ``delay()`` loop without a running worker."""
    for _ in m.rounds():
        for side in m.sides():
            side.stop_workers()
            start = time.perf_counter()
            side.start("delay", task="noop", jobs=m.size)
            seconds = time.perf_counter() - start
            side.start_workers()
            side.wait(120 + m.size / 4)
            side.check(m.size)
            side.clear()
            m.record(side.name, _RATE, m.size / seconds, "submissions/s", seconds=seconds)
    return {"submit_vs_girder_worker": m.ratio(_RATE, "girder_dask", "girder_worker")}


def with_default_threads(m: Measurement) -> dict[str, float | None]:
    """Measure map and delay with the default workers of ``girder-dask standalone``."""
    for side in m.sides("girder_dask"):
        with m.stack.default_threads():
            side.warm_up()
            for _ in m.rounds():
                for way in ("map_all", "delay"):
                    seconds = side.timed(way, m.size, task="noop")
                    what = f"{_RATE} of {way.removesuffix('_all')}"
                    m.record(side.name, what, m.size / seconds, "jobs/s", seconds=seconds)
                    side.clear()
    return {}
