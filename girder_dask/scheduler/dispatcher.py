"""The jobs that a scheduler has in hand.

A job is in hand from when the scheduler accepts it until Girder has acknowledged its end.
The dispatcher takes in what happens to it from three sides: Dask's transitions say where
it is placed, the runs on the workers say what they do, and Girder says what became of the
updates. It passes one consistent history on to the recorder. It knows Dask only as a
:class:`~girder_dask.scheduler.cluster.Cluster`, so that tests drive it without one.

A *run* is one execution on one worker. Only the run that the dispatcher has admitted is
heard: an admitted run is on the worker that Dask has placed the job on, and when Dask takes
the job from that worker, the run is closed for good and the job has a new attempt. Whatever
a worker says later that was thought dead is dropped.

A job that needs the values of others is parked until each of them has ended well, and holds
no thread meanwhile. Values that are still on the cluster are given to it as keys.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from girder_dask.jobs import FINAL, JobStatus
from girder_dask.protocol.messages import JobEvent, JobSpec
from girder_dask.scheduler.attempts import Attempts
from girder_dask.scheduler.cluster import Cluster
from girder_dask.scheduler.dependencies import Gate, Needs, Outcome
from girder_dask.scheduler.job_state import Backoff, Hand
from girder_dask.scheduler.pending_reasons import Waits
from girder_dask.scheduler.retention import Kept
from girder_dask.utils.bounded_dict import Newest

__all__ = ["Dispatcher"]

logger = logging.getLogger(__name__)

# How often Dask may forget a job before it is given up.
_MOST_FORGOTTEN = 5
# How many jobs are known to be canceled, or to have ended, that are not in hand.
_MOST_KNOWN = 10_000
# For how long a job that has ended may be on its way to here once more: as long as a request lasts.
_LATE = 60.0


class Dispatcher:
    """Accepts jobs, follows them and says what happens to them.

    Parameters
    ----------
    cluster
        Dask.
    record
        Takes the job events that make up each job's history.
    forget
        Called with job id and attempt when no more will be recorded of it.
    ask
        Called when Girder is to be asked for the jobs that :attr:`gate` does not know.
    backoff
        The pauses between the tries of a job that raises.
    keep_seconds, keep_bytes
        How long and how many bytes of values that Girder does not have are kept.
    clock
        Seconds that only grow.
    """

    def __init__(
        self,
        cluster: Cluster,
        record: Callable[[JobEvent], None],
        forget: Callable[[str, int], None],
        ask: Callable[[], None] = lambda: None,
        *,
        backoff: Backoff | None = None,
        keep_seconds: float = 600.0,
        keep_bytes: int = 2 << 30,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._record = record
        self._forget = forget
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._by_id: dict[str, Hand] = {}
        self._canceled_before = Newest[str, None](_MOST_KNOWN)
        self._ended_before = Newest[str, tuple[int, float]](_MOST_KNOWN)
        #: The jobs in hand, by the keys under which Dask has them.
        self.hands = self._by_key = dict[str, Hand]()
        #: Their attempts.
        self.attempts = Attempts(self._by_id, self._by_key, cluster, self._say)
        self._needs = Needs()
        #: The values that stay on the cluster.
        self.kept = Kept(
            cluster, self._needs.is_needed, seconds=keep_seconds, nbytes=keep_bytes, clock=clock
        )
        #: What jobs that need values of others pass.
        self.gate = Gate(self._by_id, self._needs, self.kept, cluster.submit, self._refuse, ask)
        #: Why jobs wait.
        self.waits = Waits(self._by_key, self.gate, cluster, record, self._refuse, clock)

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, key: str) -> bool:
        return key in self._by_key or key in self.kept

    # -- from those who submit --------------------------------------------------------------

    def accept(self, specs: Iterable[JobSpec]) -> list[str]:
        """Take jobs in hand; those that are already in hand stay as they are.

        So do those that have just ended: Girder may have sent them before it heard of that.

        Returns
        -------
        list of str
            The ids of the jobs that are in hand now.
        """
        new = []
        ids = []
        for spec in specs:
            ids.append(spec.id)
            if self._has_just_ended(spec):
                continue
            known = self._by_id.get(spec.id)
            if known is not None:
                if known.spec.attempt >= spec.attempt:
                    continue
                self._let_go(known, drop=True)
            hand = Hand(spec, spec.attempt, spec.attempt)
            hand.canceled = spec.id in self._canceled_before
            self._by_id[spec.id] = self._by_key[spec.key] = hand
            if spec.dependencies:
                self._needs.add(spec.id, spec.dependencies)
            new.append(hand)
        now = time.time()
        for hand in new:  # tells Girder who has the job
            self._record(JobEvent(id=hand.spec.id, attempt=hand.spec.attempt, time=now))
            if hand.canceled:
                self._end(hand, JobStatus.CANCELED)
        self.gate.start([hand for hand in new if not hand.canceled])
        return ids

    def _has_just_ended(self, spec: JobSpec) -> bool:
        attempt, when = self._ended_before.get(spec.id, (0, 0.0))
        return spec.attempt <= attempt and self._clock() - when < _LATE

    def cancel(self, ids: Iterable[str]) -> None:
        """End jobs: those that run are told to stop, the others are dropped.

        With a job that is placed on a worker, that may have begun and nobody have heard of it. So
        it is asked.
        """
        placed: dict[str, list[str]] = {}
        for job_id in ids:
            hand = self._by_id.get(job_id)
            if hand is None:  # it may be on its way to here
                self._canceled_before[job_id] = None
            if hand is None or hand.told:
                continue
            hand.canceled = True
            worker = self._cluster.placed_on(hand.spec.key)
            if worker is not None:
                placed.setdefault(worker, []).append(hand.spec.key)
            elif hand.run is None and hand.ended_on is None:
                self._end(hand, JobStatus.CANCELED)
        for worker, keys in placed.items():
            self._cluster.stop(worker, keys, self._not_begun)

    def _not_begun(self, key: str, worker: str) -> None:
        hand = self._by_key.get(key)
        if hand is None or hand.told or hand.run is not None or not hand.canceled:
            return
        if self._cluster.placed_on(key) in (None, worker):
            self._end(hand, JobStatus.CANCELED)
        else:  # Dask has moved it meanwhile
            self.cancel([hand.spec.id])

    def in_doubt(self, ids: Iterable[str]) -> list[str]:
        """Return those of canceled jobs of which it is not known whether they have begun."""
        hands = self._hands_of(ids)
        return [hand.spec.id for hand in hands if hand.run is None and not hand.told]

    def begun(self, ids: Iterable[str]) -> dict[str, int]:
        """Return the attempts of those jobs in hand that have begun, or may have, by their ids."""
        hands = self._hands_of(ids)
        return {h.spec.id: h.attempt for h in hands if h.run is not None or not h.told}

    def _hands_of(self, ids: Iterable[str]) -> list[Hand]:
        return [hand for job_id in ids if (hand := self._by_id.get(job_id))]

    def has(self, job_id: str) -> bool:
        """Say whether a job is in hand."""
        return job_id in self._by_id

    def key_of(self, job_id: str) -> str | None:
        """Return the key under which Dask has, or will have, the value of a job."""
        hand = self._by_id.get(job_id)
        if hand is not None and not hand.told:
            return hand.spec.key
        if hand is not None and hand.status == JobStatus.SUCCESS and not hand.over:
            return hand.spec.key
        return self.kept.key(job_id)

    # -- from the workers ---------------------------------------------------------------------

    def hear(self, event: JobEvent) -> bool:
        """Take in what a run says. Say whether that run is the one that is heard."""
        hand = self._by_id.get(event.id)
        if hand is None or hand.told or event.attempt != hand.spec.attempt:
            return False
        if not hand.admits(event, self._cluster.placed_on(hand.spec.key)):
            return False
        status = None if event.status is None else JobStatus(event.status)
        if status == JobStatus.ERROR and not event.permanent and self._may_try_again(hand):
            bare = replace(event, status=None, error=None, result=None, exception=None)
            self._record(replace(bare, attempt=hand.attempt))
            self._try_again(hand)
            return True
        if status is not None:
            hand.status = status
        if event.attempt != hand.attempt or (event.exception and status != JobStatus.ERROR):
            exception = event.exception if status == JobStatus.ERROR else None
            event = replace(event, attempt=hand.attempt, exception=exception)
        self._record(event)
        if status in FINAL:
            hand.stored = event.result is not None
            self._after_end(hand)
        return True

    def _may_try_again(self, hand: Hand) -> bool:
        return hand.tries < hand.spec.retries and not hand.canceled

    def _try_again(self, hand: Hand) -> None:
        hand.tries += 1
        pause = self._backoff.pause(hand.tries)
        what = f"Try {hand.tries} of {hand.spec.retries + 1} failed; the job is tried again"
        self.attempts.next(hand, f"{what} in {pause:g} s" if pause else what)
        self.attempts.take_fresh_key(hand)

        def resume() -> None:
            hand.pause = None
            self.gate.start([hand])

        hand.pause = self._cluster.call_later(pause, resume)

    # -- from Dask ----------------------------------------------------------------------------

    def placed(self, key: str, worker: str) -> None:
        """Take note that a key is on a worker, where a run of it may begin unheard."""
        hand = self._by_key.get(key)
        if hand is None:
            return
        hand.ended_on = None
        hand.placed = True
        if hand.run is None:
            hand.worker = worker

    def given_back(self, key: str) -> None:
        """Take note that a worker has not begun with a key, and will not."""
        hand = self._by_key.get(key)
        if hand is not None and hand.run is None:
            hand.placed, hand.worker = False, None

    def ended(self, key: str, worker: str | None, nbytes: int | None = None) -> None:
        """Take note that a key has ended on a worker, which may be another than it began on.

        ``nbytes`` is the size of its value; without one it has ended in an error.
        """
        hand = self._by_key.get(key)
        if hand is None:
            return
        hand.ended_on = worker
        hand.nbytes = nbytes
        if hand.told:
            self._after_both_ends(hand)

    def taken_away(
        self, key: str, worker: str | None, *, alive: bool, leaving: bool = False
    ) -> None:
        """Take note that a key is on its worker no longer, but wanted: it will run again.

        A worker that is ``alive`` or ``leaving`` was not lost; Dask had another reason. Unless
        it has given the key back, a run may have begun there, so the next is another attempt.
        """
        hand = self._by_key.get(key)
        if hand is None:
            return
        hand.ended_on = None
        where = worker or hand.worker or "its worker"
        if hand.told:  # a job whose end is told does not run again
            self._after_both_ends(hand)
        elif not hand.placed:
            hand.worker = None
        elif not alive and (hand.canceled or not leaving):
            self._lost(hand, where)
        elif hand.canceled:
            self._cluster.drop([key])
        else:
            if hand.run is not None:
                self._cluster.end_run(where, hand.run)
            left, took = (
                f"Worker {where} is leaving; the job",
                f"Dask took the job from worker {where}; it",
            )
            self.attempts.next(hand, f"{left if leaving else took} is tried again")

    def _lost(self, hand: Hand, worker: str) -> None:
        hand.lost_on.append(worker)
        if hand.canceled:
            self._end(hand, JobStatus.CANCELED)
            return
        reason = self._cluster.why_lost(worker)
        why = f" ({reason})" if reason else ""
        when = "while the job ran" if hand.run is not None else "with the job"
        self.attempts.next(hand, f"Worker {worker} was lost {when}{why}; it is tried again")

    def explain(self, worker: str) -> None:
        """Tell the jobs that were on a worker why it was lost, when that is known only now."""
        for hand in self._by_id.values():
            if hand.lost_on and hand.lost_on[-1] == worker and not hand.told:
                self._say(hand, log=f"Worker {worker}: {self._cluster.why_lost(worker)}.\n")

    def failed(
        self, key: str, reason: str, *, raised: bool = False, worker: str | None = None
    ) -> None:
        """Take note that Dask has given up on a key, which no run has told the end of.

        ``raised`` says that the run raised, so that it may be tried again; ``worker`` is the
        last of the workers that were lost with it.
        """
        hand = self._by_key.get(key)
        if hand is None or hand.told:
            return
        if hand.canceled:
            self._end(hand, JobStatus.CANCELED)
            return
        if raised and self._may_try_again(hand):
            self._say(hand, log=reason + "\n")
            self._try_again(hand)
            return
        if worker is not None:
            hand.lost_on.append(worker)
        self._refuse(hand, reason + hand.losses(self._cluster.why_lost))

    def has_not_begun(self, key: str) -> bool:
        """Say whether a key is that of a job that is to run, and of which no run is known."""
        hand = self._by_key.get(key)
        return hand is not None and hand.is_queued

    def is_open(self, key: str) -> bool:
        """Say whether the end of the job under this key is not known yet."""
        hand = self._by_key.get(key)
        return hand is not None and not hand.told

    def forgotten(self, key: str) -> None:
        """Take note that Dask has forgotten a key; if its end is not known it runs again."""
        self.kept.lose(key)
        hand = self._by_key.get(key)
        if hand is None:
            return
        hand.nbytes = None
        if hand.told:
            self._after_both_ends(hand)
            return
        if hand.canceled:
            self._end(hand, JobStatus.CANCELED)
            return
        hand.forgotten += 1
        if hand.forgotten > _MOST_FORGOTTEN:
            reason = (
                f"Dask forgot the task {hand.forgotten} times before it told its end, so it is "
                "not tried again. Look in the scheduler's log for why, and start the job anew."
            )
            self._refuse(hand, reason)
            return
        if hand.placed or hand.attempt == hand.spec.attempt:
            self.attempts.next(hand, "Dask forgot the task before it told its end; it runs again")
        self.attempts.take_fresh_key(hand)
        self.gate.start([hand])

    # -- from Girder --------------------------------------------------------------------------

    def verdict(self, job_id: str, kind: str) -> None:
        """Take note of what Girder says of a job: ``done``, ``stale``, ``gone`` or ``cancel``."""
        hand = self._by_id.get(job_id)
        if hand is None:
            return
        if kind == "cancel":
            self.cancel([job_id])
        elif kind in ("stale", "gone"):
            logger.info("Girder says that job %s is %s; it is stopped", job_id, kind)
            worker = self._cluster.placed_on(hand.spec.key)
            if worker is not None:
                self._cluster.stop(worker, [hand.spec.key], lambda _key, _worker: None)
            self._let_go(hand, drop=True)
        elif hand.told:
            hand.acknowledged = True
            if hand.over:
                self._let_go(hand, drop=False)

    # -- within -------------------------------------------------------------------------------

    def _end(
        self, hand: Hand, status: JobStatus, *, log: str | None = None, error: str | None = None
    ) -> None:
        hand.status = status
        self._say(hand, status=int(status), log=log, error=error)
        self._after_end(hand)

    def _refuse(self, hand: Hand, reason: str) -> None:
        self._end(hand, JobStatus.ERROR, log=reason + "\n", error=reason)

    def _after_end(self, hand: Hand) -> None:
        """See to all that its end means for others."""
        hand.told = True
        hand.stop_waiting()
        if hand.status != JobStatus.SUCCESS or hand.nbytes is not None:
            self._after_both_ends(hand)
        for job_id in self._needs.remove(hand.spec.id):
            self.kept.reconsider(job_id)

    def _after_both_ends(self, hand: Hand) -> None:
        """See to what becomes of its value: its end is told by the run and by Dask."""
        if hand.over:
            return
        hand.over = True
        if hand.status != JobStatus.SUCCESS or hand.nbytes is None:
            self._cluster.drop([hand.spec.key])
        else:
            self.kept.add(hand.spec.id, hand.spec.key, hand.nbytes, stored=hand.stored)
        self.gate.tell(hand.spec.id)
        if hand.acknowledged:
            self._let_go(hand, drop=False)

    def _say(self, hand: Hand, **fields: Any) -> None:
        self._record(JobEvent(id=hand.spec.id, attempt=hand.attempt, time=time.time(), **fields))

    def _let_go(self, hand: Hand, *, drop: bool) -> None:
        job_id = hand.spec.id
        hand.stop_waiting()
        self._by_id.pop(job_id, None)
        self._by_key.pop(hand.spec.key, None)
        self._forget(job_id, hand.attempt)
        for free in self._needs.remove(job_id):
            self.kept.reconsider(free)
        if drop:
            self.kept.let_go(job_id)
            self._cluster.drop([hand.spec.key])
        elif hand.told:
            self._ended_before[job_id] = hand.attempt, self._clock()
            self._needs.learn(Outcome(job_id, hand.status, hand.spec.title))
        self.gate.tell(job_id)
