"""What the runs on a worker have to say, on its way to the scheduler.

Runs write from their own threads and never wait for the network. One coroutine on the
worker's event loop sends batches and keeps each until the scheduler has acknowledged it.
An idle outbox sends at once. While a batch is under way the next one gathers, and output
and progress wait for the flush interval. Changes of state do not, but a worker with many of them
sends no more than about ten times a second. What a run waits for goes at once.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobEvent, JobSpec
from girder_dask.protocol.redaction import Secrets, clean_data
from girder_dask.utils.background import Guard
from girder_dask.utils.text import clean_text
from girder_dask.utils.throttle import Throttle
from girder_dask.worker.job_log.log import JobLog

__all__ = ["Outbox", "RunSink"]

logger = logging.getLogger(__name__)

#: Sends events with the outbox's name and the batch's number. When they are acknowledged it
#: returns the runs that the scheduler no longer listens to.
Send = Callable[[str, int, list[dict[str, Any]]], Awaitable[Collection[str]]]

#: Waits until the scheduler has room for more output of a job, and says whether it has.
Room = Callable[[str], Awaitable[bool]]

_MOST_EVENTS = 1000
_MOST_CHARACTERS = 1 << 20
# Output of a run that is sent before the scheduler is asked for room. So one job that floods
# neither fills the scheduler nor holds up the others.
_MOST_UNASKED = 4 << 20
# Seconds between two sendings that a job forces: one that does so all the time waits its turn.
_FLUSH_PAUSE = 0.02
# What can be sent of any event.
_BARE = {"version", "id", "attempt", "time", "status", "run", "worker"}
# Requests that may follow each other at once. When they are used up, one more may go in so many
# seconds, or when the worker has rested so many times as long as the last one took: what it costs
# to send is more than what most tasks cost that end so soon.
_BURST = 4
_SPACING = 0.1
_REST = 20.0
_RETRY_DELAY = 0.2
_RETRY_DELAY_MOST = 5.0

# What may fail, as the log names it.
_SENDER = "The outbox"
_GATHERER = "Taking the output of a run"
_DROPPER = "Stopping runs that the scheduler has given up"
_ASKER = "Asking the scheduler for room"


class RunSink:
    """The way out of one run. Its methods may be called from any thread."""

    def __init__(self, outbox: Outbox, spec: JobSpec, run: str, log: Mapping[str, Any]) -> None:
        self._outbox = outbox
        self.spec = spec
        self.run = run
        self.log = JobLog(on_text=self._mark, **log)
        #: What is blanked in all that the run says. Whoever ends the run closes it.
        self.secrets = Secrets(spec.token)
        self._progress: dict[str, Any] = {}
        self._flushed = float("-inf")
        self._unasked = 0
        self.ended = False

        self._cleaning: dict[str, Callable[[Any], Any]] = {
            "log": lambda text: clean_text(self.secrets.clean_log(text)),
            "error": lambda text: clean_text(self.secrets.clean_text(text)),
            "progress": self._clean_progress,
            "exception": clean_data,
        }

    def _clean_progress(self, progress: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: self.secrets.clean_text(value) if isinstance(value, str) else value
            for name, value in progress.items()
        }

    def _mark(self) -> None:
        self._outbox.mark(self)

    def write(self, text: str) -> None:
        """Append text to the job's log."""
        self.log.write(text)

    def progress(self, changes: Mapping[str, Any]) -> None:
        """Set some of ``total``, ``current`` and ``message``; only the newest is sent."""
        with self._outbox.lock:
            if self.ended:  # a thread that the task left behind
                return
            self._progress.update(changes)
        self._mark()

    def status(self, status: JobStatus) -> None:
        """Say that the job is in another state now."""
        self._outbox.post(self._event(status=int(status)))

    def flush(self) -> None:
        """Send what waits without waiting for the flush interval, if it is not asked too often."""
        now = time.monotonic()
        if now - self._flushed >= _FLUSH_PAUSE:
            self._flushed = now
            self._outbox.wake(urgent=True)

    def confirm(self, timeout: float) -> bool:
        """Wait until the scheduler has all that was said, and say whether it still listens.

        It does not when the job was given to another worker meanwhile, or when this worker is
        no longer one of the scheduler's.
        """
        heard = self._outbox.barrier()
        return heard.wait(timeout) and not self.is_dropped

    @property
    def is_dropped(self) -> bool:
        """Whether it is known that the scheduler does not listen any more."""
        return self._outbox.closed or self._outbox.is_dropped(self.run)

    def finish(
        self,
        status: JobStatus | None,
        *,
        result: bytes | None = None,
        error: str | None = None,
        exception: bytes | None = None,
        permanent: bool = False,
    ) -> None:
        """Say how the run ended, together with the rest of its log. Nothing comes after.

        ``None``: it is not for this run to say how the job ended.
        """
        now = time.time()
        self.log.close()
        with self._outbox.lock:
            self.ended = True
            # One step, so that no text taken by the sender gets behind the end.
            texts = list(iter(functools.partial(self.log.take, _MOST_CHARACTERS), ""))
            for text in texts[:-1]:
                self._outbox.post(self._event(time=now, log=text))
            event = self._event(
                time=now,
                status=None if status is None else int(status),
                log=texts[-1] if texts else None,
                progress=self._take_progress(),
                result=result,
                error=error,
                exception=exception,
                permanent=permanent or None,
            )
            self._outbox.forget(self)
            self._outbox.post(event)

    def waiting(self) -> JobEvent | None:
        """Return output and progress that wait, or None. Called with the outbox's lock."""
        text = "" if self.is_held else self.log.take(_MOST_CHARACTERS)
        self._unasked += len(text)
        progress = self._take_progress()
        if not text and progress is None:
            return None
        return self._event(log=text or None, progress=progress)

    @property
    def is_held(self) -> bool:
        """Whether the scheduler must be asked for room before more output is sent."""
        return self._unasked >= _MOST_UNASKED

    def release(self) -> None:
        """Let output be sent again."""
        self._unasked = 0
        self._mark()

    def _take_progress(self) -> dict[str, Any] | None:
        progress, self._progress = self._progress, {}
        return progress or None

    def _event(self, **fields: Any) -> JobEvent:
        fields.setdefault("time", time.time())
        for name, clean in self._cleaning.items():
            if fields.get(name) is not None:
                fields[name] = clean(fields[name])
        return JobEvent(
            id=self.spec.id,
            attempt=self.spec.attempt,
            run=self.run,
            worker=self._outbox.worker,
            **fields,
        )


class Outbox:
    """The events of all runs on a worker.

    Parameters
    ----------
    send
        Coroutine function that delivers a batch and returns when it is acknowledged.
    interval
        Least seconds between two batches that hold only output and progress.
    log_capacity
        Characters of a job's output that may wait.
    worker
        The address of the worker.
    max_log
        Bytes of a run's output that are kept.
    room
        Coroutine function that waits until the scheduler has room for more output of a job.
        By default it always has.
    on_dropped
        Called with the runs that the scheduler does not listen to any more.
    """

    def __init__(
        self,
        send: Send,
        *,
        interval: float,
        log_capacity: int,
        worker: str,
        max_log: float = math.inf,
        room: Room | None = None,
        on_dropped: Callable[[Collection[str]], None] = lambda _runs: None,
    ) -> None:
        self.lock = threading.RLock()
        self.worker = worker
        self._send = send
        self._room = room
        self._on_dropped = on_dropped
        self._asking: dict[RunSink, asyncio.Task[None]] = {}
        self._guards = {
            what: Guard(logger, f"{what} of the worker {worker}", max_delay_s=_RETRY_DELAY_MOST)
            for what in (_SENDER, _GATHERER, _DROPPER, _ASKER)
        }
        self._log = {"capacity": log_capacity, "most": max_log}
        self._name = uuid.uuid4().hex
        self._runs = itertools.count(1)
        self._batch = 0
        self._queue: deque[JobEvent] = deque()
        self._dirty: dict[RunSink, None] = {}
        self._barriers: list[threading.Event] = []
        #: Whether nothing is sent any more.
        self.closed = False
        self._dropped: set[str] = set()
        self._loop = asyncio.get_running_loop()
        self._pace = Throttle(interval, burst=_BURST, spacing=min(interval, _SPACING), rest=_REST)
        # What the sender was told since it last looked: of something urgent, that goes at once.
        self._woken: tuple[bool, bool] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._task = asyncio.create_task(self._run(), name="girder-dask outbox")

    def open(self, spec: JobSpec) -> RunSink:
        """Return the way out of a new run."""
        return RunSink(self, spec, f"{self._name}-{next(self._runs)}", self._log)

    def post(self, event: JobEvent) -> None:
        """Queue an event that is to be sent at once."""
        with self.lock:
            self._queue.append(event)
        self.wake(urgent=True)

    def mark(self, sink: RunSink) -> None:
        """Remember that an sink has output or progress that waits."""
        with self.lock:
            if sink in self._dirty:
                return
            self._dirty[sink] = None
        self.wake(urgent=False)

    def forget(self, sink: RunSink) -> None:
        """Look no more for output of an sink."""
        self._dirty.pop(sink, None)
        self._dropped.discard(sink.run)

    def barrier(self) -> threading.Event:
        """Return an event that is set when all that waits now is acknowledged."""
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
        """Say whether the scheduler no longer listens to a run."""
        return run in self._dropped

    def wake(self, *, urgent: bool, at_once: bool = False) -> None:
        """Tell the sender that there is something to send, unless it was told since it last looked.

        To wake an event loop costs more than most of what runs have to say.
        """
        with self.lock:
            if self._woken is not None and self._woken >= (urgent, at_once):
                return
            if not self._loop.is_closed():
                poke = functools.partial(self._pace.poke, urgent=urgent, at_once=at_once)
                self._loop.call_soon_threadsafe(poke)
            # Last: who is interrupted before it has woken nobody.
            self._woken = (urgent, at_once)

    async def _run(self) -> None:
        guard = self._guards[_SENDER]
        while True:
            with guard:
                await self._pace.turn()
                await self._send_all()
            if guard.failed:
                await asyncio.sleep(guard.delay_s)
                self._pace.poke(urgent=True)  # nobody else may have more to say

    async def _send_all(self) -> None:
        self._idle.clear()
        with self.lock:
            self._woken = None
            count = len(self._barriers)
        self._gather()
        # What comes meanwhile has its own turn.
        left = size = len(self._queue)
        while left > 0 and (batch := self._next_batch()):
            left -= len(batch)
            await self._deliver(batch)
        with self.lock:
            passed, self._barriers = self._barriers[:count], self._barriers[count:]
        for barrier in passed:
            barrier.set()
        if size:
            self._pace.sent()
        self._idle.set()

    def _gather(self) -> None:
        """Queue the output and progress that wait now."""
        with self.lock:
            dirty, self._dirty = self._dirty, {}
            for sink in dirty:
                with self._guards[_GATHERER]:  # each, as the others are not dirty any more
                    self._take(sink)

    def _take(self, sink: RunSink) -> None:
        event = sink.waiting()
        if event is not None:
            self._queue.append(event)
            if sink.is_held:
                self._ask(sink)
            elif event.log is not None and len(event.log) >= _MOST_CHARACTERS:
                self._pace.poke(urgent=True)  # there is more

    def _ask(self, sink: RunSink) -> None:
        """Have an sink go on when the scheduler has room for its output."""
        if self._room is None:
            sink.release()
        elif sink not in self._asking:
            asking = self._await_room(self._room, sink)
            self._asking[sink] = asyncio.create_task(asking, name="girder-dask room")

    async def _await_room(self, room: Room, sink: RunSink) -> None:
        try:
            while not sink.ended and not await self._has_room(room, sink):
                pass
        finally:
            del self._asking[sink]
            sink.release()

    async def _has_room(self, room: Room, sink: RunSink) -> bool:
        with self._guards[_ASKER]:
            if await room(sink.spec.id):
                return True
        await asyncio.sleep(_RETRY_DELAY)
        return False

    def _next_batch(self) -> list[dict[str, Any]]:
        batch: list[dict[str, Any]] = []
        size = 0
        with self.lock:
            while self._queue and len(batch) < _MOST_EVENTS and size < _MOST_CHARACTERS:
                event = self._queue.popleft()
                with self._guards[_GATHERER]:
                    batch.append(event.to_wire())
                    size += len(event.log or "") + len(event.result or b"")
        return batch

    async def _deliver(self, batch: list[dict[str, Any]]) -> None:
        """Insist until a batch is acknowledged. What cannot be sent holds up nothing else."""
        try:
            await self._insist(batch)
        except (TypeError, ValueError, OverflowError) as e:
            await self._deliver_apart(batch, e)

    async def _deliver_apart(self, batch: list[dict[str, Any]], error: Exception) -> None:
        if len(batch) > 1:
            half = len(batch) // 2
            await self._deliver(batch[:half])
            await self._deliver(batch[half:])
            return
        (event,) = batch
        bare = {k: v for k, v in event.items() if k in _BARE}
        logger.error("Part of an event of job %s cannot be sent: %r", event["id"], error)
        if bare != event:
            await self._deliver([bare])

    async def _insist(self, batch: list[dict[str, Any]]) -> None:
        self._batch += 1
        delay = _RETRY_DELAY
        while True:
            try:
                dropped = await self._send(self._name, self._batch, batch)
            except (TypeError, ValueError, OverflowError):  # it will never be sent
                raise
            except Exception as e:  # noqa: BLE001 - whatever else it is, the events are kept
                logger.warning("The scheduler did not take job events (%r); trying again", e)
                await asyncio.sleep(delay)
                delay = min(delay * 2, _RETRY_DELAY_MOST)
            else:
                self._dropped.update(dropped)
                with self._guards[_DROPPER]:
                    self._on_dropped(dropped)
                return

    async def close(self, timeout: float) -> None:
        """Send what waits, for at most ``timeout`` seconds, and stop."""
        self._room = None
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        try:
            await asyncio.wait_for(self._drained(), timeout)
        except asyncio.TimeoutError:
            logger.warning("Job events were not delivered before this worker closed")
        self.closed = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        with self.lock:  # those who wait need not wait for what does not come
            for barrier in self._barriers:
                barrier.set()

    async def _drained(self) -> None:
        while self._queue or self._dirty or not self._idle.is_set():
            self._pace.poke(urgent=True, at_once=True)
            await asyncio.sleep(0)
            await self._idle.wait()
