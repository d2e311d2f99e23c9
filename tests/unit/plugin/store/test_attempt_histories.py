"""Whatever is lost in whatever order, no two runs of a job call its function with one number."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from girder_dask.jobs import FINAL, JobStatus
from girder_dask.plugin.store.claims import take
from girder_dask.plugin.store.job_change import JobChange, Verdict
from girder_dask.protocol.messages import JobEvent, JobSpec, JobUpdate
from tests.support.dispatch_site import SimulatedRun, Site

S = JobStatus
JOBS = ["a", "b"]
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Girder:
    """The documents of jobs, changed by the code that changes them in the database."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {
            job: {
                "_id": job,
                "status": int(S.QUEUED),
                "timestamps": [],
                "dask": {"attempt": 1, "sequence": 0, "scheduler": None, "open": True},
            }
            for job in JOBS
        }

    def hand_over(self, scheduler: str, job: str) -> bool:
        """Do as claims.claim_for_push does."""
        dask = self.jobs[job]["dask"]
        if dask["scheduler"] is not None or "open" not in dask:
            return False
        dask.update(scheduler=scheduler, claimed=NOW)
        return True

    def claim(self, scheduler: str, *, late: bool) -> Iterable[tuple[str, int]]:
        """Hand over what a scheduler lacks; ``late`` if an answer before is taken for lost."""
        for job, document in self.jobs.items():
            dask = document["dask"]
            lost = late and "claimed" in dask and document["status"] == S.QUEUED
            if "open" in dask and (dask["scheduler"] != scheduler or lost):
                change = JobChange(copy.deepcopy(document))
                take(change, scheduler, {"payload_bytes": 1}, "claim", NOW)
                self.jobs[job] = change.job
                if not change.is_final:
                    yield job, change.dask["attempt"]

    def apply(self, scheduler: str, update: JobUpdate) -> Verdict:
        change = JobChange(copy.deepcopy(self.jobs[update.id]))
        verdict = change.apply(update, scheduler)
        self.jobs[update.id] = change.job
        return verdict


@dataclass
class Key:
    """What the Dask of a scheduler does with a key."""

    scheduler: Scheduler
    spec: JobSpec
    pinned: bool
    worker: str | None = None
    run: Doing | None = None
    over: bool = False


@dataclass(eq=False)
class Doing:
    """A run on a worker, whether or not anybody listens."""

    key: Key
    number: int
    run: SimulatedRun
    called: bool = False
    over: bool = False
    words: list[JobEvent] = field(default_factory=list)


class Scheduler:
    """A scheduler with what waits in it for Girder."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.site = Site()
        self.keys: dict[str, Key] = {}
        self.told = 0  # events that were made updates
        self.sequences: Counter[tuple[str, int]] = Counter()
        self.updates: list[JobUpdate] = []  # without an answer

    def accept(self, job: str, attempt: int) -> None:
        self.site.accept(job, attempt, retries=2)

    def deliver(self, girder: Girder, *, answered: bool) -> None:
        """Post what waits. What was not answered is posted again before anything else."""
        if not self.updates:
            events = self.site.events[self.told :]
            self.told = len(self.site.events)
            for event in events:
                self.sequences[event.id, event.attempt] += 1
                self.updates.append(
                    JobUpdate(
                        id=event.id,
                        attempt=event.attempt,
                        sequence=self.sequences[event.id, event.attempt],
                        statuses=None if event.status is None else [[event.status, event.time]],
                    )
                )
        verdicts = [girder.apply(self.name, update) for update in self.updates]
        if not answered:
            return
        updates, self.updates = self.updates, []
        told = list(zip(updates, verdicts, strict=True))
        stale = {update.id for update, verdict in told if verdict == Verdict.STALE}
        for job in stale:
            self.site.dispatcher.on_verdict(job, "stale")
        for update, verdict in told:
            if update.id not in stale and verdict != Verdict.SUPERSEDED:
                self.site.jobs.on_recorded(update.id, update.attempt)
            if update.statuses and update.statuses[-1][0] in FINAL:
                self.site.dispatcher.on_verdict(update.id, "done")


class Numbers(RuleBasedStateMachine):
    """Schedulers that come and go, and two may be there at once; the same of their workers."""

    def __init__(self) -> None:
        super().__init__()
        self.girder = Girder()
        self.schedulers: list[Scheduler] = []
        self.made = 0
        self.unsent = list(JOBS)
        self.doings: list[Doing] = []
        self.calls: list[tuple[str, int]] = []

    @initialize()
    def begin(self) -> None:
        self.start_scheduler(beside=False)
        self.send(self.schedulers[0], arrives=True)

    @rule(
        what=st.sampled_from(["send", "claim", "post", "post", "start", "replace"]),
        which=st.integers(0, 1),
        works=st.booleans(),
    )
    def exchange(self, what: str, which: int, works: bool) -> None:
        """Something between Girder and a scheduler, of which the answer may be lost."""
        scheduler = self.schedulers[which % len(self.schedulers)]
        if what == "send":
            self.send(scheduler, arrives=works)
        elif what == "claim":
            self.claim(scheduler, late=bool(which), arrives=works)
        elif what == "post":
            scheduler.deliver(self.girder, answered=works)
        else:
            self.start_scheduler(beside=what == "start")
            if works:
                self.claim(self.schedulers[0], late=False, arrives=True)
        scheduler.site.cluster.advance(100.0)

    def start_scheduler(self, *, beside: bool) -> None:
        """Start one beside the last one, which knows nothing of it, or in its place."""
        self.made += 1
        self.schedulers = [Scheduler(f"s{self.made}"), *self.schedulers[:beside]]

    def send(self, scheduler: Scheduler, *, arrives: bool) -> None:
        job = self.unsent.pop() if self.unsent else None
        if job is not None and self.girder.hand_over(scheduler.name, job) and arrives:
            scheduler.accept(job, 1)

    def claim(self, scheduler: Scheduler, *, late: bool, arrives: bool) -> None:
        for job, attempt in self.girder.claim(scheduler.name, late=late):
            if arrives:
                scheduler.accept(job, attempt)

    # -- Dask --------------------------------------------------------------------------------

    def keys(self) -> list[Key]:
        """Return the keys that Dask may do something with."""
        found = []
        for scheduler in self.schedulers:
            cluster = scheduler.site.cluster
            for name in cluster.submitted:
                if name not in scheduler.keys:
                    pinned = len(scheduler.keys) % 2 == 0  # somebody else wants it, too
                    scheduler.keys[name] = Key(scheduler, cluster.specs[name], pinned)
            for name in cluster.released:
                if name in scheduler.keys and not scheduler.keys[name].pinned:
                    scheduler.keys[name].over = True
            cluster.released.clear()
            found += scheduler.keys.values()
        return [key for key in found if not key.over]

    def placed(self) -> list[Key]:
        return [key for key in self.keys() if key.worker is not None]

    @precondition(lambda self: self.keys())
    @rule(
        data=st.data(),
        what=st.sampled_from(
            ["go on"] * 6 + ["steal", "leave", "reschedule", "forget", "lose", "lose"]
        ),
        steps=st.integers(1, 5),
        works=st.booleans(),
    )
    def happen(self, data: st.DataObject, what: str, steps: int, works: bool) -> None:
        """Something on a cluster."""
        key = data.draw(st.sampled_from(self.keys()))
        if what == "go on":
            self.go_on(key, steps, heard=works)
        elif key.worker is not None:
            self.disturb(key, what, dead=not works)

    def go_on(self, key: Key, steps: int, *, heard: bool) -> None:
        """Place a key, begin a run of it, call the function, end, and have Dask hear of that."""
        for n in range(steps):
            if key.worker is None:
                key.worker = f"w{n}-{key.scheduler.name}"
                key.scheduler.site.place(key.spec, key.worker)
            elif key.run is None:
                key.run = self.begun(key)
            elif not key.run.over:
                self.work(key.run)
            elif key.run.called and not key.over:
                key.over = True
                key.scheduler.site.end(key.spec, key.worker)
            if heard and key.run is not None:
                self.speak(key.run)

    def begun(self, key: Key) -> Doing:
        number = key.scheduler.site.cluster.attempts.get(key.spec.key, key.spec.attempt)
        run = SimulatedRun(key.scheduler.site, key.spec, str(key.worker))
        self.doings.append(Doing(key, number, run, over=number == 0))
        return self.doings[-1]

    def work(self, doing: Doing) -> None:
        """Call the function if that may be, or end if it was called."""
        if doing.over:
            return
        jobs = doing.key.scheduler.site.jobs
        if doing.called:
            doing.over = True
            ends = [S.SUCCESS, S.ERROR]
            doing.words.append(doing.run.event(ends[len(self.calls) % 2]))
        elif doing.number == 1 or (
            doing.key.scheduler in self.schedulers  # one that is lost answers nobody
            and jobs.may_start(doing.key.spec.key, doing.number)
        ):
            doing.called = True
            self.calls.append((doing.key.spec.id, doing.number))
            doing.words.append(doing.run.event(S.RUNNING))

    def disturb(self, key: Key, what: str, *, dead: bool) -> None:
        """Move a key that was placed; a worker that is given up is ``dead``, or not."""
        site = key.scheduler.site
        if what == "steal" and key.run is None:  # with no word to the plugins
            key.worker = f"thief-{key.scheduler.name}"
            site.cluster.places[key.spec.key] = key.worker
        elif what == "lose":
            self.lose(str(key.worker), dead=dead)
        elif what == "leave":
            if key.run is None:
                site.dispatcher.on_unstarted(key.spec.key)
            self.take_away(key, alive=True, leaving=True)
        elif what == "reschedule":
            self.take_away(key, alive=True)
        elif what == "forget":
            key.over = True
            site.cluster.places.pop(key.spec.key, None)
            if key.run is not None and key.run.over:
                site.dispatcher.on_finished(key.spec.key, key.worker, 10)
            site.dispatcher.on_forgotten(key.spec.key)

    def lose(self, worker: str, *, dead: bool) -> None:
        keys = [key for key in self.placed() if key.worker == worker]
        for key in keys:
            key.scheduler.site.dispatcher.on_assigned(key.spec.key, worker)
        for key in keys:
            if key.run is not None:
                key.run.over |= dead
            self.take_away(key, alive=False)

    def take_away(self, key: Key, *, alive: bool, leaving: bool = False) -> None:
        site, worker = key.scheduler.site, key.worker
        key.worker = key.run = None
        site.cluster.places.pop(key.spec.key, None)
        site.dispatcher.on_released(key.spec.key, worker, alive=alive, leaving=leaving)

    # -- workers -----------------------------------------------------------------------------

    @precondition(lambda self: any(not doing.over or doing.words for doing in self.doings))
    @rule(data=st.data())
    def work_on(self, data: st.DataObject) -> None:
        """Nobody may listen to this run any more."""
        doing = data.draw(st.sampled_from([d for d in self.doings if not d.over or d.words]))
        self.work(doing)
        self.speak(doing)

    def speak(self, doing: Doing) -> None:
        while doing.words:
            doing.key.scheduler.site.dispatcher.on_run_event(doing.words.pop(0))

    @invariant()
    def no_number_is_used_twice(self) -> None:
        assert len(self.calls) == len(set(self.calls)), self.calls


def test_attempt_that_a_scheduler_has_counted_beside_another_one_is_superseded() -> None:
    girder = Girder()
    girder.hand_over("s1", "a")
    girder.apply("s1", JobUpdate(id="a", attempt=1, sequence=1, statuses=[[int(S.RUNNING), 1.0]]))
    assert ("a", 2) in list(girder.claim("s2", late=False))
    assert ("a", 3) in list(girder.claim("s1", late=False))  # and the answer is lost
    counted = JobUpdate(id="a", attempt=2, sequence=1, statuses=[[int(S.QUEUED), 2.0]])
    assert girder.apply("s1", counted) == Verdict.SUPERSEDED
    assert girder.jobs["a"]["dask"]["attempt"] == 3


TestNumbers = Numbers.TestCase
TestNumbers.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
