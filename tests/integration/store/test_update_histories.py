"""Histories of a job from updates, acknowledgements, claims and cancellations in any order."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from girder_dask.jobs import FINAL, JobStatus, can_follow
from girder_dask.protocol.messages import JobUpdate, attempt_id
from tests.support.store_jobs import update

_at_work = [status for status in JobStatus if status not in FINAL]
_states = st.sampled_from([*_at_work, *_at_work, *JobStatus])
_news = st.tuples(
    st.lists(st.tuples(_states, st.floats(1.7e9, 1.8e9)), max_size=3),
    st.sampled_from([0, 0, 0, 0, 1, -1]),  # attempt, from the present one on
    st.sampled_from([1, 1, 1, 2, 0, -1]),  # sequence
)
_happenings = st.lists(
    st.tuples(
        st.sampled_from([*["apply"] * 6, *["receive"] * 2, "repeat", "repeat", "claim", "cancel"]),
        st.sampled_from(["s", "s", "t"]),
        st.lists(_news, min_size=1, max_size=3),
    ),
    min_size=5,
    max_size=15,
)


class Promised:
    """What is promised of the log and the states of a job, whatever happens to it.

    It belongs to one scheduler. Of that, each attempt and each number in it is taken once, and
    only in order. A line of an attempt that is over is not taken, nor a new attempt of a job
    that has ended.
    """

    def __init__(self) -> None:
        self.scheduler: str | None = None
        self.position = (1, 0)
        self.states = [JobStatus.QUEUED]
        self.log: list[str] = []

    def apply(self, scheduler: str, news: JobUpdate) -> str | None:
        """Return what the scheduler is told."""
        is_new = news.attempt > self.position[0]
        ends = any(status in FINAL for status, _ in news.statuses or ())
        if self.scheduler not in (None, scheduler) or (is_new and self.states[-1] in FINAL):
            if self.scheduler != scheduler:
                return "stale"
            return "cancel" if self.states[-1] == JobStatus.CANCELED and not ends else None
        if news.attempt < self.position[0]:
            return "superseded"
        if (news.attempt, news.sequence) > self.position:
            self.scheduler, self.position = scheduler, (news.attempt, news.sequence)
            self.log += [news.log] if news.log else []
            for status, _ in news.statuses or ():
                self.reach(JobStatus(status))
        elif news.sequence == 0:
            self.scheduler = scheduler
        stops = self.states[-1] in (JobStatus.CANCELING, JobStatus.CANCELED)
        return "cancel" if stops and not ends else None

    def answer(self, scheduler: str, batch: list[JobUpdate]) -> dict[str, list[str]]:
        """Apply some updates, and return the whole answer."""
        told: dict[str, dict[str, None]] = {"stale": {}, "cancel": {}, "superseded": {}}
        for news in batch:
            kind = self.apply(scheduler, news)
            if kind is not None:
                of_attempt = attempt_id(news.id, news.attempt)
                told[kind][of_attempt if kind == "superseded" else news.id] = None
        return {kind: [*ids] for kind, ids in told.items()}

    def reach(self, status: JobStatus) -> None:
        is_gap = status in FINAL and not can_follow(self.states[-1], status)
        if is_gap and can_follow(self.states[-1], JobStatus.RUNNING):
            self.states.append(JobStatus.RUNNING)
        if can_follow(self.states[-1], status):
            self.states.append(status)

    def claim(self, scheduler: str) -> bool:
        """Say whether the job is handed over."""
        if self.states[-1] in FINAL or self.scheduler == scheduler:
            return False
        if self.states[-1] == JobStatus.CANCELING:
            self.reach(JobStatus.CANCELED)
            return False
        if self.scheduler is not None:
            self.position = (self.position[0] + 1, 0)
            self.log.append(f"The scheduler was restarted; this is attempt {self.position[0]}.\n")
        self.scheduler = scheduler
        self.reach(JobStatus.QUEUED)
        return True

    def cancel(self) -> None:
        waits = self.states[-1] == JobStatus.QUEUED
        self.reach(JobStatus.CANCELED if waits else JobStatus.CANCELING)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(_happenings)
def test_any_order_and_repetition_of_updates_gives_a_legal_history(girder, happenings):
    girder.clear()
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    promised = Promised()
    batches = []

    def apply(scheduler: str, batch: list[JobUpdate]) -> None:
        check(girder.store.apply(scheduler, batch), scheduler, batch)

    def check(verdicts: Any, scheduler: str, batch: list[JobUpdate]) -> None:
        assert verdicts == girder.store.Verdicts(**promised.answer(scheduler, batch))

    for n, (what, who, more) in enumerate(happenings):
        attempt, sequence = promised.position
        if what == "apply":
            batch = [
                update(
                    job_id,
                    max(sequence + k, 0),
                    *statuses,
                    attempt=max(attempt + later, 1),
                    log=f"{n}.{m}\n",
                )
                for m, (statuses, later, k) in enumerate(more)
            ]
            batches.append((who, batch))
            apply(who, batch)
        elif what == "repeat" and batches:
            apply(*batches[(n + len(more)) % len(batches)])
        elif what == "receive":
            receipt = (job_id, max(attempt + more[0][1], 1))
            answer = girder.store.acknowledge(who, [receipt])
            check(answer, who, [update(job_id, 0, attempt=receipt[1])])
        elif what == "claim":
            handed = [(spec.id, spec.attempt) for spec in girder.store.claim(who, 10).specs]
            wanted = [job_id] * promised.claim(who)
            assert handed == [(each, promised.position[0]) for each in wanted]
        elif what == "cancel":
            girder.store.cancel(recorded.job["_id"])
            promised.cancel()
    job = girder.load(job_id)
    assert job["log"] == promised.log, "each line that was taken, once and in order"
    states = [t["status"] for t in job["timestamps"]]
    assert states == promised.states
    assert states[-1] == job["status"]
    assert all(can_follow(a, b) for a, b in itertools.pairwise(states))
    assert not any(s in FINAL for s in states[:-1])
    times = [t["time"] for t in job["timestamps"]]
    assert times == sorted(times)
    assert (job["dask"]["attempt"], job["dask"]["sequence"]) == promised.position
    assert job["dask"]["scheduler"] == promised.scheduler
    ended = job["status"] in FINAL
    assert ("open" in job["dask"]) != ended
    assert bool(girder.left(job["_id"])["payload"]) != ended
