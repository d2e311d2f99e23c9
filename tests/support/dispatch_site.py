"""A dispatcher with a cluster and a recorder in memory."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobEvent, JobSpec
from girder_dask.scheduler.dispatcher import Dispatcher
from girder_dask.scheduler.event_recorder import Recorder
from girder_dask.scheduler.job_state import JobTable
from girder_dask.scheduler.job_transitions import JobTransitions
from girder_dask.scheduler.pending_reasons import PendingReasons
from girder_dask.utils.backoff import Backoff

_runs = itertools.count(1)


class MemoryTimer:
    def __init__(self, time: float, function: Callable[[], None]) -> None:
        self.time = time
        self.function = function
        self.over = False

    def cancel(self) -> None:
        self.over = True


class MemoryCluster:
    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[MemoryTimer] = []
        self.values: dict[str, Mapping[str, str]] = {}  # given with the job of a key
        self.wanted: set[str] = set()
        self.submitted: list[str] = []
        self.specs: dict[str, JobSpec] = {}
        self.released: list[str] = []
        self.stopped: list[tuple[str, str]] = []
        self.questions: dict[tuple[str, str], Callable[[str, str], None]] = {}
        self.dropped_runs: list[tuple[str, str]] = []
        self.places: dict[str, str] = {}
        self.reasons: dict[str, str] = {}  # why workers were lost
        self.lacking: dict[str, str] = {}  # why there is no worker for keys
        self.attempts: dict[str, int] = {}  # what keys that run again were told
        self.workers: set[str] = set()  # those that are connected
        self.flushed: list[str] = []  # the workers that were flushed
        self.unbegun: dict[str, list[str]] = {}  # the keys that workers have not begun

    def submit(self, specs: Sequence[JobSpec], values: Mapping[str, Mapping[str, str]]) -> None:
        for spec in specs:
            assert spec.key not in self.submitted, "a key is used once"
            self.submitted.append(spec.key)
            self.specs[spec.key] = spec
            self.values[spec.key] = values.get(spec.id, {})

    def release(self, keys: Sequence[str]) -> None:
        self.released += keys
        self.attempts |= dict.fromkeys(keys, 0)
        for key in keys:
            self.places.pop(key, None)

    def has_worker(self, worker: str) -> bool:
        return worker in self.workers

    def is_wanted(self, key: str) -> bool:
        return key in self.wanted

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, function: Callable[[], None]) -> Callable[[], None]:
        timer = MemoryTimer(self.now + delay_s, function)
        self.timers.append(timer)
        return timer.cancel

    def next_time(self) -> float | None:
        """Return when the next timer is due."""
        self.timers = [timer for timer in self.timers if not timer.over]
        return min((timer.time for timer in self.timers), default=None)

    def advance(self, seconds: float) -> None:
        """Advance the clock, and call the timers that are due."""
        until = self.now + seconds
        while (time := self.next_time()) is not None and time <= until:
            self.now = max(self.now, time)
            timer = min(self.timers, key=lambda timer: timer.time)
            timer.over = True
            timer.function()
        self.now = until

    def cancel_runs(
        self, worker: str, keys: Sequence[str], on_unstarted: Callable[[str, str], None]
    ) -> None:
        self.stopped += [(worker, key) for key in keys]
        self.questions.update({(worker, key): on_unstarted for key in keys})

    def answer(self, worker: str, key: str) -> None:
        """Have a worker answer a cancellation with the report that the key has not begun."""
        self.questions.pop((worker, key))(key, worker)

    def drop_run(self, worker: str, run: str) -> None:
        self.dropped_runs.append((worker, run))

    async def flush(self, worker: str) -> None:
        self.flushed.append(worker)

    async def unstarted(self, worker: str) -> Sequence[str]:
        return self.unbegun.get(worker, [])

    def set_attempt(self, key: str, attempt: int) -> None:
        self.attempts[key] = attempt

    def unrunnable(self) -> dict[str, str]:
        return self.lacking

    def loss_reason(self, worker: str) -> str:
        return self.reasons.get(worker, "")

    def assigned_to(self, key: str) -> str | None:
        return self.places.get(key)


class MemoryRecorder(Recorder):
    """A recorder that delivers nothing."""

    def __init__(self) -> None:
        self.events: list[JobEvent] = []
        self.forgotten: list[tuple[str, int]] = []
        self.full = False

    def record(self, event: JobEvent) -> None:
        self.events.append(event)

    def forget(self, job_id: str, attempt: int) -> None:
        self.forgotten.append((job_id, attempt))

    def has_pending_state(self, _job_id: str, _attempt: int) -> bool:
        return False

    @property
    def is_full(self) -> bool:
        return self.full


class CountedEvent(asyncio.Event):
    """An event that counts how often it was set."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def set(self) -> None:
        self.count += 1
        super().set()


class SimulatedRun:
    """A run on a worker. Its events arrive at the dispatcher when :meth:`says` is called."""

    def __init__(self, site: Site, spec: JobSpec, worker: str) -> None:
        self.id = f"run{next(_runs)}"
        self.site = site
        self.spec = spec
        self.worker = worker

    def event(self, status: JobStatus | None = None, **fields: Any) -> JobEvent:
        return JobEvent(
            id=self.spec.id,
            attempt=self.spec.attempt,
            time=time.time(),
            status=None if status is None else int(status),
            run=self.id,
            worker=self.worker,
            **fields,
        )

    def says(self, status: JobStatus | None = None, **fields: Any) -> bool:
        return self.site.dispatcher.on_run_event(self.event(status, **fields))


class Site:
    def __init__(self) -> None:
        self.cluster = MemoryCluster()
        self.recorder = MemoryRecorder()
        self.events = self.recorder.events
        self.forgotten = self.recorder.forgotten
        self.jobs = JobTable()
        self.transitions = JobTransitions(
            self.jobs,
            self.cluster,
            self.recorder,
            backoff=Backoff(1.0, 60.0, jitter=0.0),
            result_ttl_s=100.0,
            max_result_bytes=1000,
        )
        self.dependencies = self.transitions.dependencies
        self.dependencies.lookup_needed = self.lookups = CountedEvent()
        self.retained = self.transitions.retained
        self.dispatcher = Dispatcher(self.jobs, self.transitions, self.cluster, self.recorder)
        self.pending = PendingReasons(self.jobs, self.transitions, self.cluster, self.recorder)

    @property
    def asked(self) -> int:
        """The number of requests to Girder about dependencies."""
        return self.lookups.count

    def accept(self, job_id: str = "a", attempt: int = 1, **fields: Any) -> JobSpec:
        spec = JobSpec(id=job_id, attempt=attempt, task="m:count", **fields)
        self.dispatcher.accept([spec])
        return spec

    def place(self, spec: JobSpec, worker: str) -> None:
        self.cluster.places[spec.key] = worker
        self.dispatcher.on_assigned(spec.key, worker)

    def run(self, spec: JobSpec, worker: str = "w1") -> SimulatedRun:
        """Assign a job to a worker, and start a run whose events have not arrived."""
        self.place(spec, worker)
        return SimulatedRun(self, spec, worker)

    def running(self, spec: JobSpec, worker: str = "w1") -> SimulatedRun:
        run = self.run(spec, worker)
        assert run.says(JobStatus.RUNNING)
        return run

    def lose(self, spec: JobSpec, *, alive: bool = False) -> None:
        """Take a key from its worker, which is lost or (``alive``) reported an error."""
        self.dispatcher.on_released(spec.key, self.cluster.places.pop(spec.key, None), alive=alive)

    def end(self, spec: JobSpec, worker: str, nbytes: int | None = 10) -> None:
        """Report to Dask that a key has ended, with a value or (``nbytes=None``) in an error."""
        self.cluster.places.pop(spec.key, None)
        self.dispatcher.on_finished(spec.key, worker, nbytes)

    def succeed(self, spec: JobSpec, *, nbytes: int = 10, stored: bool = True) -> None:
        """Run a job to SUCCESS. Girder has its value unless ``stored`` is false."""
        self.running(spec).says(JobStatus.SUCCESS, result=b"r" if stored else None)
        self.end(spec, "w1", nbytes)

    def again(self, spec: JobSpec) -> JobSpec:
        """Return the spec under which a job was submitted last."""
        last = [key for key in self.cluster.submitted if f"-{spec.id}-" in key][-1]
        return self.cluster.specs[last]

    def history(self, job_id: str = "a") -> list[tuple[int, JobStatus]]:
        return [
            (e.attempt, JobStatus(e.status))
            for e in self.events
            if e.id == job_id and e.status is not None
        ]

    def log(self, job_id: str = "a") -> str:
        return "".join(e.log or "" for e in self.events if e.id == job_id)
