"""The scheduler's account of its jobs to Girder.

The recorder merges the events of each job into one update and sends the updates of many
jobs in one request. It knows nothing of Dask: it is given events, and a coroutine function
that delivers updates. An idle recorder sends at once; while a request is under way the next
one gathers. What was sent is kept until Girder has answered.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from girder_dask.jobs import FINAL
from girder_dask.protocol.messages import JobEvent, JobUpdate
from girder_dask.scheduler.delivery import Post, Receipt, UpdateDelivery, Verdicts
from girder_dask.utils.background import Guard
from girder_dask.utils.throttle import Throttle

__all__ = ["Recorder"]

logger = logging.getLogger(__name__)

Verdict = Callable[[str, str], None]
Heard = Callable[[str, int], None]

# In characters of logs; as JSON they take up to six times as many bytes.
_MOST_BYTES = 8 << 20
# The share of one job in a request, so that a job that floods takes turns with the others.
_SHARE = 4
# What may wait of a job before its worker is made to wait with more output of it.
_MOST_WAITING_OF_A_JOB = 4 << 20
# Seconds that a receipt waits: of a job that has begun by then, another update says it, too.
_RECEIPT_DELAY = 1.0
# Most receipts in one request. They are short, and cost Girder next to nothing.
_MOST_RECEIPTS = 5000
# Requests that may follow each other at once: a job on an idle system takes two or three. When
# they are used up, one more may go in so many intervals, or when the recorder has rested so many
# times as long as the last one took: a request costs as much as ten jobs.
_BURST = 4
_SPACING = 2.0
_REST = 9.0


@dataclass(slots=True)
class PendingUpdate:
    """What Girder has not yet heard of one attempt."""

    id: str
    attempt: int
    statuses: list[list[float]] = field(default_factory=list)
    log: deque[str] = field(default_factory=deque)
    progress: dict[str, Any] = field(default_factory=dict)
    result: bytes | None = None
    error: str | None = None
    exception: bytes | None = None
    waits: str | None = None
    size: int = 0

    def add(self, event: JobEvent) -> int:
        """Merge an event; return by how many bytes, about, the account grew."""
        grown = 100
        if event.log:
            self.log.append(event.log)
            grown += len(event.log)
        if event.progress:
            self.progress.update(event.progress)
        if event.status is not None:
            self.statuses.append([event.status, event.time])
        if event.result is not None:
            self.result = event.result
            grown += len(event.result)
        if event.error is not None:
            self.error = event.error
        if event.exception is not None:
            self.exception = event.exception
            grown += len(event.exception)
        if event.waits is not None:
            self.waits = event.waits
            grown += len(event.waits)
        self.size += grown
        return grown

    def head(self, most: int) -> PendingUpdate:
        """Split off the beginning of the log, of at least one event, as an account of its own."""
        head = PendingUpdate(self.id, self.attempt)
        while self.log and (not head.log or head.size + len(self.log[0]) <= most):
            text = self.log.popleft()
            head.log.append(text)
            head.size += len(text)
        self.size -= head.size
        return head

    @property
    def final(self) -> bool:
        return bool(self.statuses) and self.statuses[-1][0] in FINAL

    def update(self, sequence: int) -> JobUpdate:
        return JobUpdate(
            id=self.id,
            attempt=self.attempt,
            sequence=sequence,
            statuses=self.statuses or None,
            log="".join(self.log) or None,
            progress=self.progress or None,
            result=self.result,
            error=self.error,
            exception=self.exception,
            waits=self.waits,
        )


class Recorder:
    """Merges job events and delivers them to Girder.

    Parameters
    ----------
    post
        Coroutine function that delivers updates, and the ``(id, attempt)`` of jobs of which
        there is no more to say than that they have arrived; it returns Girder's verdicts.
        GirderError means that they were not delivered, and they are tried again.
    verdict
        Called with a job id and one of ``'done'``, ``'stale'``, ``'gone'`` or ``'cancel'``.
    heard
        Called with the job id and the attempt of each update that Girder has taken.
    interval
        Least seconds between two requests, but for a few that hold a change of state.
    batch_size
        Most jobs in one request.
    buffer
        Bytes that may wait before :meth:`room` makes its callers wait.
    retry_delay, retry_delay_max
        Seconds before a failed request is tried again, doubled each time up to the most.
    """

    def __init__(
        self,
        post: Post,
        verdict: Verdict,
        heard: Heard = lambda _job_id, _attempt: None,
        *,
        interval: float = 0.1,
        batch_size: int = 500,
        buffer: int = 256 << 20,
        retry_delay: float = 0.5,
        retry_delay_max: float = 15.0,
    ) -> None:
        self._verdict = verdict
        self._heard = heard
        self._batch_size = batch_size
        self._buffer = buffer
        self._waiting: dict[tuple[str, int], PendingUpdate] = {}
        self._sequences: dict[tuple[str, int], int] = {}
        self._bytes = 0
        self._bytes_of: Counter[str] = Counter()
        self._under_way: list[PendingUpdate] = []
        self._receipts: dict[tuple[str, int], float] = {}
        self._receipts_under_way: list[tuple[str, int]] = []
        self._pace = Throttle(interval, burst=_BURST, spacing=_SPACING * interval, rest=_REST)
        self._reminder: asyncio.TimerHandle | None = None
        self._settled = asyncio.Condition()
        self._guard = Guard(logger, "The recorder", max_delay_s=retry_delay_max)
        self._delivering = Guard(logger, "Telling Girder of jobs", max_delay_s=retry_delay_max)
        self._making = Guard(logger, "Making the update of a job")
        self._hearing = Guard(logger, "Taking in what Girder says of a job")
        self._delivery = UpdateDelivery(
            post,
            self._number,
            lambda: self.waiting,
            retry_delay=retry_delay,
            retry_delay_max=retry_delay_max,
        )
        self.updates = 0

    def record(self, event: JobEvent) -> None:
        """Take note of an event. Cheap: dictionary look-ups and appends.

        One that says nothing is the receipt of a job.
        """
        key = (event.id, event.attempt)
        account = self._waiting.get(key)
        if event.is_bare:
            if account is None:
                self._receipts[key] = asyncio.get_running_loop().time()
                self._soon()
            return
        self._receipts.pop(key, None)
        if account is None:
            account = self._waiting[key] = PendingUpdate(event.id, event.attempt)
        grown = account.add(event)
        self._bytes += grown
        self._bytes_of[event.id] += grown
        self._pace.poke(urgent=event.status is not None)

    def _soon(self) -> None:
        """See to it that receipts are sent when they have waited for long enough."""
        if self._reminder is None:
            loop = asyncio.get_running_loop()
            self._reminder = loop.call_later(_RECEIPT_DELAY, self._remind)

    def _remind(self) -> None:
        self._reminder = None
        self._pace.poke(urgent=False)

    def forget(self, job_id: str, attempt: int) -> None:
        """Drop what waits of an attempt and of those before it, and their sequences."""
        for key in ((job_id, number) for number in range(1, attempt + 1)):
            account = self._waiting.pop(key, None)
            if account is not None:
                self._bytes -= account.size
                self._taken(account)
            self._receipts.pop(key, None)
            self._sequences.pop(key, None)

    @property
    def is_full(self) -> bool:
        """Whether as much waits for Girder as the buffer may hold."""
        return self._bytes >= self._buffer

    async def room(self) -> None:
        """Wait until less waits for Girder than the buffer may hold."""
        await self.until(lambda: not self.is_full)

    async def room_for(self, job_id: str) -> None:
        """Wait until less of one job waits for Girder than a job may have waiting."""
        await self.until(lambda: self._bytes_of[job_id] < _MOST_WAITING_OF_A_JOB)

    def has_pending_state(self, job_id: str, attempt: int) -> bool:
        """Say whether Girder has yet to hear of a change of state of an attempt."""
        waiting = self._waiting.get((job_id, attempt))
        under_way = [a for a in self._under_way if (a.id, a.attempt) == (job_id, attempt)]
        return any(account.statuses for account in [*under_way, *([waiting] if waiting else [])])

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what comes true when something was delivered."""
        async with self._settled:
            await self._settled.wait_for(condition)

    @property
    def error(self) -> str | None:
        """Why the last request failed, or None if it did not."""
        return self._delivery.error

    @property
    def requests(self) -> int:
        """How many requests were made."""
        return self._delivery.requests

    @property
    def waiting(self) -> int:
        """How many jobs have something that Girder has not heard."""
        ids = {account.id for account in self._under_way}
        for keys in (self._waiting, self._receipts, self._receipts_under_way):
            ids.update(job_id for job_id, _ in keys)
        return len(ids)

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            with self._guard:
                await self._pace.turn()
                await self._deliver_all()
            if self._guard.failed:
                await asyncio.sleep(self._guard.delay_s)
                self._pace.poke(urgent=True)  # there may be nothing new to do so

    async def _deliver_all(self) -> None:
        # What comes meanwhile has its own turn.
        left = len(self._waiting) - await self._deliver()
        while left > 0 and self._waiting:
            left -= await self._deliver()
        if self._waiting:
            self._pace.poke(urgent=left > 0 or self._bytes > _MOST_BYTES)
        if self._receipts:
            self._soon()
        self._pace.sent()
        async with self._settled:
            self._settled.notify_all()

    async def flush(self, timeout: float) -> bool:
        """Wait until all is delivered, for at most ``timeout`` seconds. Say whether it is."""
        try:
            await asyncio.wait_for(self._all_delivered(), timeout)
        except asyncio.TimeoutError:
            return False
        return True

    async def _all_delivered(self) -> None:
        async with self._settled:
            while self._waiting or self._receipts or self._under_way or self._receipts_under_way:
                self._receipts = dict.fromkeys(self._receipts, -math.inf)
                self._pace.poke(urgent=True, at_once=True)
                await self._settled.wait()

    def _take(self) -> list[PendingUpdate]:
        """Take accounts out of those that wait, oldest first, up to the size of a request."""
        taken: list[PendingUpdate] = []
        size, share = 0, _MOST_BYTES // _SHARE
        halved: set[str] = set()
        for key in list(itertools.islice(self._waiting, self._batch_size)):
            account = self._waiting[key]
            if account.id in halved:
                continue  # Girder would not hear the rest of the attempt before any more
            is_long = account.size > share and len(account.log) > 1
            if taken and size + (share if is_long else account.size) > _MOST_BYTES:
                break
            del self._waiting[key]
            part = account
            if is_long:
                part = account.head(share)
                halved.add(account.id)
                self._wait_again(account)
            taken.append(part)
            size += part.size
            self._taken(part)
        return taken

    def _wait_again(self, account: PendingUpdate) -> None:
        """Have the rest of an account wait for its next turn, before later attempts of its job."""
        later = [key for key in self._waiting if key[0] == account.id]
        self._waiting[account.id, account.attempt] = account
        for key in later:
            self._waiting[key] = self._waiting.pop(key)

    def _take_receipts(self) -> list[tuple[str, int]]:
        """Take receipts that have waited for long enough."""
        before = asyncio.get_running_loop().time() - _RECEIPT_DELAY
        oldest = itertools.islice(self._receipts.items(), _MOST_RECEIPTS)
        due = [key for key, _ in itertools.takewhile(lambda item: item[1] <= before, oldest)]
        for key in due:
            del self._receipts[key]
        return due

    def _taken(self, account: PendingUpdate) -> None:
        self._bytes_of[account.id] -= account.size
        if self._bytes_of[account.id] <= 0:
            del self._bytes_of[account.id]

    async def _deliver(self) -> int:
        """Deliver what fits into one request; return how many accounts that were."""
        accounts = self._under_way = self._take()
        receipts = self._receipts_under_way = self._take_receipts()
        if not accounts and not receipts:
            return 0
        wire = [self._wire(account) for account in accounts]
        verdicts = await self._insist(wire, receipts)
        self._under_way, self._receipts_under_way = [], []
        self._bytes -= sum(account.size for account in accounts)
        self.updates += len(wire)
        self._pass_on(accounts, verdicts)
        async with self._settled:
            self._settled.notify_all()
        return len(accounts)

    def _wire(self, account: PendingUpdate) -> dict[str, Any]:
        sequence = self._number(account.id, account.attempt)
        with self._making:
            return account.update(sequence).to_wire()
        bare = JobUpdate(account.id, account.attempt, sequence, statuses=account.statuses or None)
        return bare.to_wire()

    async def _insist(self, wire: list[dict[str, Any]], receipts: list[Receipt]) -> Verdicts:
        """Deliver them, whatever fails: Girder knows by their numbers those that it has."""
        while True:
            with self._delivering:
                return await self._delivery.insist(wire, receipts)
            await asyncio.sleep(self._delivering.delay_s)

    def _number(self, job_id: str, attempt: int) -> int:
        """Return the number of the next update of an attempt."""
        key = (job_id, attempt)
        self._sequences[key] = sequence = self._sequences.get(key, 0) + 1
        return sequence

    def _pass_on(self, accounts: Sequence[PendingUpdate], verdicts: Verdicts) -> None:
        refused: set[str] = set()
        with self._hearing:  # it may be no answer at all
            refused = {*verdicts.get("stale", ()), *verdicts.get("gone", ())}
            for kind, ids in verdicts.items():
                for job_id in ids:
                    self._judge(job_id, kind)
        for account in accounts:
            if account.id not in refused:
                with self._hearing:
                    self._heard(account.id, account.attempt)
            if account.final:
                self._sequences.pop((account.id, account.attempt), None)
                self._judge(account.id, "done")

    def _judge(self, job_id: str, kind: str) -> None:
        try:
            self._verdict(job_id, kind)
        except Exception:
            # Else nothing of any job would be delivered any more.
            logger.exception("What Girder says of job %s could not be taken in: %s", job_id, kind)
