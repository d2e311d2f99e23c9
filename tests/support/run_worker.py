"""A worker without Dask: the context of runs, and a receiver of their events."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import pickle
import threading
from collections.abc import Callable, Collection, Iterator
from contextvars import Context
from pathlib import Path
from typing import Any

import cloudpickle

from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobEvent, JobSpec
from girder_dask.protocol.payload import pack_call
from girder_dask.worker.cancellation import RunCanceller
from girder_dask.worker.capture import output_capture
from girder_dask.worker.isolation.fork_server_supervisor import ForkServerSupervisor
from girder_dask.worker.location import WorkerLocation
from girder_dask.worker.outbox import Outbox
from girder_dask.worker.propagation import hooks
from girder_dask.worker.run.runner import Run
from girder_dask.worker.worker_context import WorkerContext
from tests.support.deadline import SECONDS, until

WORKER = "tcp://10.0.0.7:4312"


class Worker:
    """A worker context with an outbox on its own event loop, and threads that run jobs."""

    def __init__(self, directory: Path, supervisor: ForkServerSupervisor | None = None) -> None:
        self.events: list[JobEvent] = []
        self.sends = 0  # requests that were begun
        self.dropped: set[str] = set()
        self.open = threading.Event()
        self.open.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._outboxes: list[Outbox] = []
        self.threads = concurrent.futures.ThreadPoolExecutor(4)
        self.context = WorkerContext(
            location=WorkerLocation(WORKER, "node7"),
            outbox=self.make_outbox(1 << 20),
            directory=directory / "scratch",
            api_url=None,
            max_result=1000,
            fork_server_supervisor=supervisor or ForkServerSupervisor(),
            limit=self._limit,
        )
        self._owns_supervisor = supervisor is None
        # For time limits only: a test cancels by itself, or with its own canceller.
        self._canceller = RunCanceller(self.context.runs, self.context.refused, grace_s=1.0)

    def _limit(self, run: Run, seconds: float | None) -> None:
        self._loop.call_soon_threadsafe(self._canceller.limit, run, seconds, context=Context())

    def make_outbox(self, capacity: int) -> Outbox:
        async def make() -> Outbox:
            return Outbox(self._send, interval_s=0.0, log_capacity=capacity, worker=WORKER)

        outbox = asyncio.run_coroutine_threadsafe(make(), self._loop).result(SECONDS)
        self._outboxes.append(outbox)
        return outbox

    async def _send(self, _name: str, _batch: int, wire: list[dict[str, Any]]) -> Collection[str]:
        self.sends += 1
        await asyncio.to_thread(self.open.wait)
        events = [JobEvent.from_wire(each) for each in wire]
        self.events += events
        return {e.run for e in events if e.run in self.dropped}

    def close(self) -> None:
        self.open.set()
        self.threads.shutdown()
        asyncio.run_coroutine_threadsafe(self._canceller.close(0.0), self._loop).result(SECONDS)
        if self._owns_supervisor:
            self.context.fork_server_supervisor.close()
        for outbox in self._outboxes:
            asyncio.run_coroutine_threadsafe(outbox.close(SECONDS), self._loop).result(SECONDS)
        # A task that is destroyed with its loop is reported to whichever test runs by then.
        asyncio.run_coroutine_threadsafe(self._end_tasks(), self._loop).result(SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- running -----------------------------------------------------------------------------

    def run(
        self,
        function: Callable[..., Any] | None,
        *args: Any,
        hooks: Any = (),
        job_id: str = "a",
        payload: bytes | None = None,
        **fields: Any,
    ) -> Run:
        """Return the run of a function, or of the task that ``fields`` name, not yet begun."""
        if payload is None:
            payload = pack_call(args, fields.pop("kwargs", {}), hooks, function)
        fields = {"task": "m:f", "attempt": 1, "title": "Count", "trusted": True, **fields}
        return Run(JobSpec(id=job_id, payload=payload, **fields), self.context)

    def begin(self, run: Run) -> concurrent.futures.Future[Any]:
        return self.threads.submit(run)

    def outcome(self, function: Callable[..., Any] | None, *args: Any, **fields: Any) -> Any:
        """Run a function, and return what the run returned or raised once its end has arrived."""
        future = self.begin(self.run(function, *args, **fields))
        job_id = fields.get("job_id", "a")
        error = future.exception(SECONDS)
        until(lambda: any(e.status in (3, 4, 5) for e in self.events if e.id == job_id))
        return brought(error) if error is not None else future.result()

    def statuses(self, job_id: str = "a") -> list[JobStatus]:
        return [JobStatus(e.status) for e in self.events if e.id == job_id and e.status is not None]

    def log(self, job_id: str = "a") -> str:
        return "".join(e.log or "" for e in self.events if e.id == job_id)

    @property
    def ended(self) -> list[str]:
        """The ids of the jobs whose end has arrived."""
        return [e.id for e in self.events if e.status in (3, 4, 5)]

    @property
    def end(self) -> JobEvent:
        return next(e for e in self.events if e.status in (3, 4, 5))


def brought(error: BaseException) -> BaseException:
    """Return an exception of a run as Dask delivers it to a client."""
    data = cloudpickle.dumps(error)
    assert type(pickle.loads(data)) is type(error)  # Dask checks in the worker whether it can
    return pickle.loads(data)  # type: ignore[no-any-return]


@contextlib.contextmanager
def captured() -> Iterator[None]:
    output_capture.install("INFO")
    hooks.install()
    try:
        yield
    finally:
        hooks.uninstall()
        output_capture.uninstall()
