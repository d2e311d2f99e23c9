"""Recorder of job events, which merges them into updates for Girder.

The events of each job become one update, and the updates of many jobs one request. The recorder
does not know Dask: it is given events, and a coroutine function that posts updates. An idle
recorder sends at once; while a request is under way, the next one is coalesced. Updates are kept
until Girder has answered.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from girder_dask.http.scheduler_api import Acknowledgement
from girder_dask.metrics.histogram import LAG_BOUNDS_S, Histogram
from girder_dask.protocol.messages import JobEvent, JobUpdate, attempt_id
from girder_dask.scheduler.update_delivery import PendingUpdate, Post, UpdateDelivery, Verdicts
from girder_dask.utils.background import Guard, repeat
from girder_dask.utils.throttle import Throttle

__all__ = ["Recorder"]

logger = logging.getLogger(__name__)

# Characters of logs count as one byte each; as JSON they take up to six.
_MAX_REQUEST_BYTES = 8 << 20
# One job may fill an n-th of a request, so that a job with much output takes turns with others.
_JOB_SHARE_DIVISOR = 4
# The pending bytes of one job from which its worker holds back further output.
_MAX_JOB_BYTES = 4 << 20
# An acknowledgement is delayed: if the job starts meanwhile, its next update acknowledges it too.
_ACKNOWLEDGEMENT_DELAY_S = 1.0
# The most acknowledgements in one request. They are short and cost Girder next to nothing.
_MAX_ACKNOWLEDGEMENTS = 5000
# The throttle of requests. A job on an idle system takes two or three requests, which may follow
# each other at once. When the burst is used up, one more may go every two intervals, or when the
# recorder has rested nine times as long as the last request took: a request costs as much as ten
# jobs. After a request with fewer jobs than a full one it rests for less.
_BURST_REQUESTS = 4
_SPACING_INTERVALS = 2.0
_REST_FACTOR = 9.0
_FULL_REQUEST_JOBS = 16


class Recorder:
    """The buffer that merges job events and delivers them to Girder.

    Parameters
    ----------
    post
        Coroutine function that posts updates, and the ``(id, attempt)`` of jobs that are only to
        be acknowledged; it returns Girder's answer. If it raises GirderError, they were not
        delivered and are posted again.
    interval_s
        The least seconds between two requests, except for a few that hold a change of state.
    batch_size
        The most jobs in one request.
    buffer_bytes
        Bytes that may be pending before :meth:`room` makes its callers wait.
    retry_delay_s, max_retry_delay_s
        Seconds before a failed request is retried, doubled each time up to the limit.
    """

    def __init__(
        self,
        post: Post,
        *,
        interval_s: float = 0.1,
        batch_size: int = 500,
        buffer_bytes: int = 256 << 20,
        retry_delay_s: float = 0.5,
        max_retry_delay_s: float = 15.0,
    ) -> None:
        self._on_verdict: Callable[[str, str], None]
        self._on_recorded: Callable[[str, int], None]
        self._batch_size = batch_size
        #: How many bytes may be pending before workers are blocked.
        self.buffer_bytes = buffer_bytes
        self._pending: dict[tuple[str, int], PendingUpdate] = {}
        self.pending_bytes = 0
        self._bytes_by_job: Counter[str] = Counter()
        self._in_flight: list[PendingUpdate] = []
        self._acknowledgements: dict[Acknowledgement, float] = {}
        self._acknowledgements_in_flight: list[Acknowledgement] = []
        self._throttle = Throttle(
            interval_s,
            burst=_BURST_REQUESTS,
            spacing=_SPACING_INTERVALS * interval_s,
            rest=_REST_FACTOR,
            full_batch=_FULL_REQUEST_JOBS,
        )
        self._reminder: asyncio.TimerHandle | None = None
        self._delivered = asyncio.Condition()
        self._loop_guard = Guard(logger, "The recorder", max_delay_s=max_retry_delay_s)
        self._message_guard = Guard(logger, "Building the update of a job")
        self._answer_guard = Guard(logger, "Handling Girder's answer for a job")
        self.delivery = UpdateDelivery(
            post, retry_delay_s=retry_delay_s, max_retry_delay_s=max_retry_delay_s
        )
        #: How many updates were delivered.
        self.updates = 0
        #: Seconds from the first event of an update until Girder had it.
        self.lag = Histogram(LAG_BOUNDS_S)
        #: Characters of output that were recorded.
        self.log_chars = 0

    # -- events -----------------------------------------------------------------------------

    def record(self, event: JobEvent) -> None:
        """Record an event. Cheap: dictionary look-ups and appends.

        An event without content acknowledges the job.
        """
        key = (event.id, event.attempt)
        update = self._pending.get(key)
        if event.is_bare:
            if update is None:
                self._acknowledgements[key] = asyncio.get_running_loop().time()
                self._set_reminder()
            return
        self._acknowledgements.pop(key, None)
        self.log_chars += len(event.log or "")
        if update is None:
            update = self._pending[key] = PendingUpdate(event.id, event.attempt)
        grown = update.merge(event)
        self.pending_bytes += grown
        self._bytes_by_job[event.id] += grown
        self._throttle.poke(urgent=event.status is not None)

    def _set_reminder(self) -> None:
        if self._reminder is None:
            loop = asyncio.get_running_loop()
            self._reminder = loop.call_later(_ACKNOWLEDGEMENT_DELAY_S, self._remind)

    def _remind(self) -> None:
        self._reminder = None
        self._throttle.poke(urgent=False)

    def forget(self, job_id: str, attempt: int) -> None:
        """Drop pending updates and sequence numbers of an attempt and of those before it."""
        for number in range(1, attempt + 1):
            key = (job_id, number)
            update = self._pending.pop(key, None)
            if update is not None:
                self.pending_bytes -= update.nbytes
                self._subtract(update)
            self._acknowledgements.pop(key, None)
            self.delivery.forget(job_id, number)

    # -- what is pending ----------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether the buffer is full."""
        return self.pending_bytes >= self.buffer_bytes

    async def room(self) -> None:
        """Wait until the buffer is not full."""
        await self.wait_until(lambda: not self.is_full)

    async def room_for(self, job_id: str) -> None:
        """Wait until the pending updates of one job are below their limit."""
        await self.wait_until(lambda: self._bytes_by_job[job_id] < _MAX_JOB_BYTES)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that a delivery can make true."""
        async with self._delivered:
            await self._delivered.wait_for(condition)

    def has_pending_state(self, job_id: str, attempt: int) -> bool:
        """Return True if Girder has not recorded the last change of state of an attempt."""
        key = (job_id, attempt)
        updates = [each for each in self._in_flight if (each.id, each.attempt) == key]
        if key in self._pending:
            updates.append(self._pending[key])
        return any(update.statuses for update in updates)

    def oldest_age_s(self) -> float:
        """Return for how long the oldest update has been pending, 0 if none is."""
        oldest = next(iter(self._in_flight or self._pending.values()), None)
        return 0.0 if oldest is None else oldest.age_s

    @property
    def waiting(self) -> int:
        """How many jobs have updates or acknowledgements that Girder has not recorded."""
        ids = {update.id for update in self._in_flight}
        for keys in (self._pending, self._acknowledgements, self._acknowledgements_in_flight):
            ids.update(job_id for job_id, _ in keys)
        return len(ids)

    async def flush(self, timeout_s: float) -> bool:
        """Wait up to ``timeout_s`` seconds for all deliveries. Return True if all is delivered."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_delivered()
        except TimeoutError:
            return False
        return True

    async def _all_delivered(self) -> None:
        async with self._delivered:
            while (
                self._pending
                or self._acknowledgements
                or self._in_flight
                or self._acknowledgements_in_flight
            ):
                self._acknowledgements = dict.fromkeys(self._acknowledgements, -math.inf)
                self._throttle.poke(urgent=True, at_once=True)
                await self._delivered.wait()

    # -- delivery -----------------------------------------------------------------------------

    async def run(
        self,
        on_verdict: Callable[[str, str], None],
        on_recorded: Callable[[str, int], None] = lambda _job_id, _attempt: None,
    ) -> None:
        """Deliver until cancelled.

        Parameters
        ----------
        on_verdict
            Called with a job id and ``'done'``, ``'stale'``, ``'gone'`` or ``'cancel'``.
        on_recorded
            Called with the job id and the attempt of each update that Girder has taken.
        """
        self._on_verdict = on_verdict
        self._on_recorded = on_recorded
        await repeat(self._deliver_turn, self._loop_guard)

    async def _deliver_turn(self) -> None:
        if self._loop_guard.failed:
            self._throttle.poke(urgent=True)  # no new event may come to do so
        await self._throttle.turn()
        await self._deliver_all()

    async def _deliver_all(self) -> None:
        # Updates that arrive meanwhile are left for the next turn.
        left = len(self._pending)
        delivered = await self._deliver()
        while left > delivered and self._pending:
            delivered += await self._deliver()
        if self._pending:
            is_urgent = left > delivered or self.pending_bytes > _MAX_REQUEST_BYTES
            self._throttle.poke(urgent=is_urgent)
        if self._acknowledgements:
            self._set_reminder()
        self._throttle.sent(delivered)
        await self._notify()

    async def _deliver(self) -> int:
        """Deliver what fits into one request; return the number of updates."""
        updates = self._in_flight = self._take_updates()
        acknowledgements = self._acknowledgements_in_flight = self._take_acknowledgements()
        if not updates and not acknowledgements:
            return 0
        wire = [self._to_wire(update) for update in updates]
        verdicts = await self.delivery.deliver(wire, acknowledgements)
        self._in_flight, self._acknowledgements_in_flight = [], []
        self.pending_bytes -= sum(update.nbytes for update in updates)
        self.updates += len(wire)
        for update in updates:
            self.lag.observe(update.age_s)
        self._handle_answer(updates, verdicts)
        await self._notify()
        return len(updates)

    async def _notify(self) -> None:
        async with self._delivered:
            self._delivered.notify_all()

    def _take_updates(self) -> list[PendingUpdate]:
        """Take pending updates, oldest first, up to the size of a request."""
        taken: list[PendingUpdate] = []
        nbytes, share = 0, _MAX_REQUEST_BYTES // _JOB_SHARE_DIVISOR
        split: set[str] = set()
        for key in list(itertools.islice(self._pending, self._batch_size)):
            update = self._pending[key]
            if update.id in split:
                continue  # Girder would then refuse the rest of the split attempt
            is_long = update.nbytes > share and len(update.log) > 1
            if taken and nbytes + (share if is_long else update.nbytes) > _MAX_REQUEST_BYTES:
                break
            del self._pending[key]
            part = update
            if is_long:
                part = update.split_log(share)
                split.add(update.id)
                self._put_back(update)
            taken.append(part)
            nbytes += part.nbytes
            self._subtract(part)
        return taken

    def _put_back(self, update: PendingUpdate) -> None:
        """Put the rest of an update at the end, before later attempts of its job."""
        later = [key for key in self._pending if key[0] == update.id]
        self._pending[update.id, update.attempt] = update
        for key in later:
            self._pending[key] = self._pending.pop(key)

    def _take_acknowledgements(self) -> list[Acknowledgement]:
        """Take acknowledgements that have waited for long enough."""
        before = asyncio.get_running_loop().time() - _ACKNOWLEDGEMENT_DELAY_S
        oldest = itertools.islice(self._acknowledgements.items(), _MAX_ACKNOWLEDGEMENTS)
        due = [key for key, _ in itertools.takewhile(lambda item: item[1] <= before, oldest)]
        for key in due:
            del self._acknowledgements[key]
        return due

    def _subtract(self, update: PendingUpdate) -> None:
        self._bytes_by_job[update.id] -= update.nbytes
        if self._bytes_by_job[update.id] <= 0:
            del self._bytes_by_job[update.id]

    def _to_wire(self, update: PendingUpdate) -> dict[str, Any]:
        sequence = self.delivery.next_sequence(update.id, update.attempt)
        with self._message_guard:
            return update.to_update(sequence).to_wire()
        statuses = update.statuses or None
        return JobUpdate(update.id, update.attempt, sequence, statuses=statuses).to_wire()

    def _handle_answer(self, updates: Sequence[PendingUpdate], verdicts: Verdicts) -> None:
        refused: set[str] = set()  # jobs and attempts
        with self._answer_guard:  # the answer may be malformed
            refused.update(*(verdicts.get(kind, ()) for kind in ("stale", "gone", "superseded")))
            for kind in ("stale", "gone", "cancel"):
                for job_id in verdicts.get(kind, ()):
                    self._pass_verdict(job_id, kind)
        for update in updates:
            if refused.isdisjoint((update.id, attempt_id(update.id, update.attempt))):
                with self._answer_guard:
                    self._on_recorded(update.id, update.attempt)
            if update.is_final:
                self.delivery.forget(update.id, update.attempt)
                self._pass_verdict(update.id, "done")

    def _pass_verdict(self, job_id: str, kind: str) -> None:
        try:
            self._on_verdict(job_id, kind)
        except Exception:
            # Otherwise no update of any job would be delivered.
            logger.exception("Girder's answer for job %s could not be handled: %s", job_id, kind)
