"""The steps of the measurement, each on the jobs that the one before has left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import packages
from benchmarks.cases.growth import RefilledQueue
from benchmarks.scale.requests import OtherRequests
from benchmarks.side import SUCCESS, UNFINISHED, Side
from benchmarks.stack import ROOT, BenchmarkStack

__all__ = ["Scale"]

#: Seconds before a throughput is measured, and of the measurement.
_SETTLE_S, _RATE_S = 8.0, 20.0
_SHORT_QUEUE = 500
_POLL_S = 0.02
# Nothing starts any more if no further job has run for so long.
_QUIET_S = 3.0
_QUEUED, _CANCELED = 1, 5


class Scale:
    """One map of very many jobs, and what is measured with it.

    Parameters
    ----------
    stack
        The processes. Their workers have two threads each.
    jobs
        The number of jobs.
    record
        Takes the name of a result, its value and its unit.
    """

    def __init__(
        self, stack: BenchmarkStack, jobs: int, record: Callable[[str, float, str], None]
    ) -> None:
        self._stack = stack
        self._jobs = jobs
        self._record = record
        self._side: Side = stack.girder_dask
        self._parent = ""
        # With few jobs, which measure nothing, a try of the steps takes no time.
        part = min(1.0, max(0.1, jobs / 20_000))
        self._settle_s, self._rate_s = part * _SETTLE_S, part * _RATE_S
        self.ratios: dict[str, float] = {}

    def run(self) -> None:
        """Take all steps."""
        short = self._short_queue()
        self._side.stop_workers()
        self._record_map()
        self._look()
        self._side.start_workers()
        self._pause(self._settle_s)
        long = self._rate()
        self._record(f"throughput with {self._jobs:,} queued", long, "jobs/s")
        self.ratios["queue_million"] = long / short
        self._restart()
        self._cancel()

    def _short_queue(self) -> float:
        with RefilledQueue(self._side, min(_SHORT_QUEUE, self._jobs)) as kept:
            kept.rate(self._settle_s)
            rate = kept.rate(self._rate_s)
        self._side.abandon()
        self._record(f"throughput with {_SHORT_QUEUE:,} queued", rate, "jobs/s")
        return rate

    def _record_map(self) -> None:
        package = packages.write(self._stack.directory / "girder_dask", ported=False)
        path = os.pathsep.join([str(package), str(ROOT), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.scale.record", self._stack.api, str(self._jobs)],
            env={**os.environ, "PYTHONPATH": path, "GIRDER_API_KEY": self._stack.api_key},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        told = json.loads(done.stdout)
        self._parent = told["parent"]
        self._record("jobs recorded by a map", self._jobs / told["seconds"], "jobs/s")
        self._record("growth of the client meanwhile", told["grown_mib"], "MiB")

    def _look(self) -> None:
        """Read what a browser shows of the queue."""
        child = self._side.jobs.find_one({"parentId": {"$ne": None}, "status": _QUEUED})
        pages = {
            "list of all jobs": "job/all?limit=50",
            "page of the map": f"job/{self._parent}",
            "page of a waiting job": f"job/{child['_id'] if child else self._parent}",
            "status of Dask": "dask/status",
        }
        with OtherRequests(self._side.client, pages) as reading:
            time.sleep(3.0 * len(pages))
        for name, seconds in reading.seconds.items():
            self._record(name, max(seconds), "s")

    def _rate(self) -> float:
        begin, before = time.perf_counter(), self._side.count()
        self._pause(self._rate_s)
        return (self._side.count() - before) / (time.perf_counter() - begin)

    def _pause(self, seconds: float) -> None:
        """Let jobs run, but not so many that too few are left for the next steps."""
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline and self._side.count() < self._jobs / 3:
            time.sleep(_POLL_S)

    def _restart(self) -> None:
        """Replace the scheduler, and wait for the first job that ends under the new one."""
        self._side.stop_workers()
        self._stack.stop_parts(["scheduler"])
        before = self._side.count()
        begin = time.perf_counter()
        self._stack.start_parts(["scheduler", *self._side.workers])
        self._until(lambda: self._side.count() > before, 600)
        seconds = time.perf_counter() - begin
        self.ratios["restart_million"] = seconds
        self._record("start of a scheduler until its first job has ended", seconds, "s")

    def _cancel(self) -> None:
        others = {"user/me": "user/me", "list of jobs": "job/all?limit=50"}
        begin = time.perf_counter()
        with OtherRequests(self._side.client, others) as asked:
            self._side.client.put(f"job/{self._parent}/cancel")
            self._record("answer to the cancel", time.perf_counter() - begin, "s")
            stopped = self._last_start(begin)
            self._until(lambda: not self._side.count(UNFINISHED), 3600)
            seconds = time.perf_counter() - begin
        self.ratios["cancel_million_stops"] = stopped
        self.ratios["cancel_million"] = seconds
        self._record("cancel until nothing starts any more", stopped, "s")
        self._record(f"cancel until all are CANCELED ({self._canceled():,} jobs)", seconds, "s")
        self._record("slowest other request meanwhile", asked.slowest_s, "s")

    def _last_start(self, begin: float) -> float:
        """Return the seconds from the cancel until the last job ended that ran."""
        ran, last = self._side.count((SUCCESS,)), begin
        while time.perf_counter() - last < _QUIET_S:
            number = self._side.count((SUCCESS,))
            if number != ran:
                ran, last = number, time.perf_counter()
            time.sleep(_POLL_S)
        return last - begin

    def _canceled(self) -> int:
        return self._side.count((_CANCELED,))

    def _until(self, condition: Callable[[], Any], timeout_s: float) -> None:
        deadline = time.perf_counter() + timeout_s
        while not condition():
            self._stack.check()
            assert time.perf_counter() < deadline, f"not within {timeout_s:g} s"
            time.sleep(_POLL_S)
