"""Latency of one job, from the call of ``delay()`` in Girder to SUCCESS in MongoDB."""

from __future__ import annotations

import random
import statistics
import time

from benchmarks.arrivals import Arrivals
from benchmarks.measurement import Measurement
from benchmarks.side import Side

__all__ = ["idle", "isolation", "of_takeover", "under_load"]

_LATENCY = "latency"
# Seconds for which a system is idle before each job.
_IDLE_S = 0.2
# Seconds between two queries for the end of a single job, and for the ends of many.
_SHORT_POLL_S, _LONG_POLL_S = 0.001, 0.005


def idle(m: Measurement) -> dict[str, float | None]:
    """Measure one job at a time on each system. The jobs are divided among the rounds."""
    return {"latency_vs_girder_worker": _idle_ratio(m, "girder_dask")}


def of_takeover(m: Measurement) -> dict[str, float | None]:
    """Measure one job at a time of a task of girder_worker, on Dask and on RabbitMQ."""
    return {"takeover_latency_vs_rabbitmq": _idle_ratio(m, "takeover")}


def _idle_ratio(m: Measurement, system: str) -> float | None:
    jobs = -(-m.size // m.number)
    found: dict[str, list[float]] = {}
    for _ in m.rounds():
        for side in m.sides(system, "girder_worker"):
            ms = [1000 * s for s in _one_by_one(side, jobs)]
            found.setdefault(side.name, []).extend(ms)
            m.record(side.name, _LATENCY, statistics.median(ms), "ms", p95=_high(ms), all=ms)
            side.clear()
    if len(found) < 2:
        return None
    ours, theirs = (statistics.median(found[name]) for name in (system, "girder_worker"))
    return ours / theirs


def _one_by_one(side: Side, jobs: int) -> list[float]:
    seconds = []
    for _ in range(jobs):
        time.sleep(_IDLE_S)
        with Arrivals(side, _SHORT_POLL_S) as arrivals:
            (due,) = side.start("paced", task="noop", moments=[0])
            arrivals.wait(1, timeout=60)
        seconds.append(arrivals.at[0] - due)
    return seconds


def isolation(m: Measurement) -> dict[str, float | None]:
    """Measure one job at a time on girder_dask, in a thread and in its own process in turn."""
    for _ in m.rounds():
        for side in m.sides("girder_dask"):
            found: dict[str, list[float]] = {"thread": [], "process": []}
            for n in range(-1, m.size):
                for where, ms in found.items():
                    seconds = _isolated(side, where)
                    if n >= 0:  # the first process waits until the worker's fork server is there
                        ms.append(1000 * seconds)
            for where, ms in found.items():
                what = f"{_LATENCY} of a job in a {where}"
                m.record(side.name, what, statistics.median(ms), "ms", p95=_high(ms), all=ms)
            side.clear()
    return {}


def _isolated(side: Side, where: str) -> float:
    time.sleep(_IDLE_S)
    with Arrivals(side, _SHORT_POLL_S) as arrivals:
        start = side.start("isolated", task="noop", isolation=where)
        arrivals.wait(1, timeout=60)
    return float(arrivals.at[0] - start)


def under_load(m: Measurement) -> dict[str, float | None]:
    """Measure jobs that start at random times, at increasing rates."""
    for _ in m.rounds():
        for side in m.sides():
            for rate in _RATES[side.name]:
                _load(m, side, rate)
    return {}


# Jobs per second. The last rate of each system is close to its maximum throughput.
_RATES = {"girder_dask": (1, 5, 10, 20, 40, 80, 160), "girder_worker": (1, 5, 10, 20, 30, 40)}


def _load(m: Measurement, side: Side, rate: int) -> None:
    """Measure for ``m.size`` seconds at a rate."""
    chance = random.Random(rate)  # noqa: S311 - the same moments for both systems
    moments = [chance.expovariate(rate)]
    while moments[-1] < m.size:
        moments.append(moments[-1] + chance.expovariate(rate))
    with Arrivals(side, _LONG_POLL_S) as arrivals:
        due = side.start("paced", task="noop", moments=moments)
        arrivals.wait(len(due), timeout=120)
    ms = [1000 * (arrivals.at[n] - moment) for n, moment in enumerate(due)]
    side.clear()
    what = f"{_LATENCY} at {rate} jobs/s"
    m.record(side.name, what, statistics.median(ms), "ms", p95=_high(ms), rate=rate)


def _high(ms: list[float]) -> float:
    """Return the 95th percentile."""
    return sorted(ms)[int(0.95 * (len(ms) - 1))]
