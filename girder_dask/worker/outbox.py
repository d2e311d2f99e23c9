"""The outbox of a worker: the events of all its runs, on their way to the scheduler.

Runs write from their own threads and never wait for the network. One coroutine on the
worker's event loop sends batches and keeps each until the scheduler has acknowledged it.
An idle outbox sends at once. While a batch is in flight, the next one fills. Output and progress
wait for the flush interval. Changes of status do not, but a worker with many of them sends about
ten batches a second at most. Events that a run waits for are sent at once.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import math
import threading
import uuid
from collections import deque
from typing import Any

from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobEvent, JobSpec
from girder_dask.utils.background import Guard
from girder_dask.utils.forks import reset_after_fork
from girder_dask.utils.throttle import Throttle
from girder_dask.worker.back_pressure import AwaitRoom, BackPressure
from girder_dask.worker.event_delivery import EventDelivery, OnDropped, SendBatch
from girder_dask.worker.run_sink import MAX_EVENT_CHARACTERS, RunSink

__all__ = ["Outbox"]

logger = logging.getLogger(__name__)

_MAX_BATCH_EVENTS = 1000
# Urgent batches that may follow each other at once. After them, one more is sent every
# _SPACING_S, or once the worker has rested _REST_FACTOR times as long as the last batch took:
# sending a batch costs more than most tasks that end so soon. After a batch with fewer events than
# a full one it rests for less.
_BURST_BATCHES = 4
_SPACING_S = 0.1
_REST_FACTOR = 20.0
_FULL_BATCH_EVENTS = 8
# The start of a run waits this long for the end of a short one, so that both go together.
_START_DELAY_S = 0.002
_MAX_PAUSE_S = 5.0


class Outbox:
    """The queue of events of all runs on a worker.

    Parameters
    ----------
    send
        Delivers a batch.
    interval_s
        Minimum seconds between two batches that contain only output and progress.
    log_capacity
        Characters of a job's output that may wait.
    worker
        The address of the worker.
    max_log
        Bytes of a run's output that are kept.
    room
        Waits until the scheduler has room for more output of a job. By default it always has.
    on_dropped
        Called with the runs that the scheduler ignores from now on.

    Attributes
    ----------
    closed
        Whether nothing is sent any more.
    """

    def __init__(
        self,
        send: SendBatch,
        *,
        interval_s: float,
        log_capacity: int,
        worker: str,
        max_log: float = math.inf,
        room: AwaitRoom | None = None,
        on_dropped: OnDropped = lambda _runs: None,
    ) -> None:
        self.lock = threading.RLock()
        self.worker = worker
        self.closed = False
        self._guard = self._guarding("The outbox")
        self._take_guard = self._guarding("Taking the output of a run")
        name = uuid.uuid4().hex
        dropping = self._guarding("Stopping runs that the scheduler has given up")
        self._delivery = EventDelivery(send, on_dropped, name, dropping)
        self._back_pressure = BackPressure(room, self._guarding("Asking the scheduler for room"))
        self._log = {"capacity": log_capacity, "max_bytes": max_log}
        self._run_ids = (f"{name}-{n}" for n in itertools.count(1))
        self._queue: deque[JobEvent] = deque()
        self._dirty: dict[RunSink, None] = {}
        self._barriers: list[threading.Event] = []
        self._loop = asyncio.get_running_loop()
        self._throttle = Throttle(
            interval_s,
            burst=_BURST_BATCHES,
            spacing=min(interval_s, _SPACING_S),
            rest=_REST_FACTOR,
            full_batch=_FULL_BATCH_EVENTS,
        )
        # How the sender was woken since it last looked: (urgent, at_once).
        self._woken: tuple[bool, bool] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._task = asyncio.create_task(self._run(), name="girder-dask outbox")
        reset_after_fork(self, Outbox._renew_lock)

    def _renew_lock(self) -> None:
        """Take a new lock in a fork of a task: another thread may have held the old one."""
        self.lock = threading.RLock()

    def _guarding(self, what: str) -> Guard:
        return Guard(logger, f"{what} of the worker {self.worker}", max_delay_s=_MAX_PAUSE_S)

    def open(self, spec: JobSpec) -> RunSink:
        """Return the sink of a new run."""
        return RunSink(self, spec, next(self._run_ids), self._log)

    def post(self, event: JobEvent) -> None:
        """Queue an event that is to be sent at once."""
        with self.lock:
            self._queue.append(event)
        self.wake(urgent=True)

    def mark(self, sink: RunSink) -> None:
        """Record that a sink has waiting output or progress."""
        with self.lock:
            if sink in self._dirty:
                return
            self._dirty[sink] = None
        self.wake(urgent=False)

    def forget(self, sink: RunSink) -> None:
        """Take no more events from a sink."""
        self._dirty.pop(sink, None)
        self._delivery.dropped.discard(sink.run)

    def barrier(self) -> threading.Event:
        """Return a ``threading.Event`` that is set once all that waits now is acknowledged."""
        barrier = threading.Event()
        with self.lock:
            self._barriers.append(barrier)
            if self.closed:
                barrier.set()
        self.wake(urgent=True, at_once=True)
        return barrier

    async def flushed(self) -> None:
        """Wait until all that waits now is acknowledged."""
        await asyncio.to_thread(self.barrier().wait)

    def is_dropped(self, run: str) -> bool:
        """Return True if the scheduler ignores a run."""
        return run in self._delivery.dropped

    def wake(self, *, urgent: bool, at_once: bool = False) -> None:
        """Wake the sender, unless it was woken since it last looked.

        Waking an event loop costs more than sending most events.
        """
        with self.lock:
            if self._woken is not None and self._woken >= (urgent, at_once):
                return
            if not self._loop.is_closed():
                poke = functools.partial(self._throttle.poke, urgent=urgent, at_once=at_once)
                self._loop.call_soon_threadsafe(poke)
            # Last: a thread that is interrupted before has not woken the sender.
            self._woken = (urgent, at_once)

    # -- the sender ----------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            with self._guard:
                await self._throttle.turn()
                if self._has_only_a_start():
                    await asyncio.sleep(_START_DELAY_S)
                await self._send_all()
            if self._guard.failed:
                await asyncio.sleep(self._guard.delay_s)
                self._throttle.poke(urgent=True)  # retry even if no run sends anything new

    def _has_only_a_start(self) -> bool:
        """Return True if all that waits is that one run has started its function."""
        if len(self._queue) != 1 or self._barriers:
            return False
        return self._queue[0].status == JobStatus.RUNNING

    async def _send_all(self) -> None:
        self._idle.clear()
        with self.lock:
            self._woken = None
            count = len(self._barriers)
        self._gather()
        # Events that arrive meanwhile wait for the next turn.
        left = size = len(self._queue)
        while left > 0 and (batch := self._next_batch()):
            left -= len(batch)
            await self._delivery.deliver(batch)
        with self.lock:
            passed, self._barriers = self._barriers[:count], self._barriers[count:]
        for barrier in passed:
            barrier.set()
        if size:
            self._throttle.sent(size)
        self._idle.set()

    def _gather(self) -> None:
        """Queue the output and progress that wait now."""
        with self.lock:
            dirty, self._dirty = self._dirty, {}
            for sink in dirty:
                with self._take_guard:  # one each: the others are no longer marked
                    self._take_event(sink)

    def _take_event(self, sink: RunSink) -> None:
        event = sink.take_event()
        if event is not None:
            self._queue.append(event)
            if sink.needs_room:
                self._back_pressure.hold(sink)
            elif event.log is not None and len(event.log) >= MAX_EVENT_CHARACTERS:
                self._throttle.poke(urgent=True)  # there is more

    def _next_batch(self) -> list[dict[str, Any]]:
        batch: list[dict[str, Any]] = []
        size = 0
        with self.lock:
            while self._queue and len(batch) < _MAX_BATCH_EVENTS and size < MAX_EVENT_CHARACTERS:
                event = self._queue.popleft()
                with self._take_guard:
                    batch.append(event.to_wire())
                    size += len(event.log or "") + len(event.result or b"")
        return batch

    # -- the end -------------------------------------------------------------------------------

    async def close(self, timeout_s: float) -> None:
        """Send what waits, for at most ``timeout_s`` seconds, and stop."""
        await self._back_pressure.close()
        try:
            async with asyncio.timeout(timeout_s):
                await self._drained()
        except TimeoutError:
            logger.warning("Job events were not delivered before this worker closed")
        self.closed = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        with self.lock:  # nothing more will be acknowledged
            for barrier in self._barriers:
                barrier.set()

    async def _drained(self) -> None:
        while self._queue or self._dirty or not self._idle.is_set():
            self._throttle.poke(urgent=True, at_once=True)
            await asyncio.sleep(0)
            await self._idle.wait()
