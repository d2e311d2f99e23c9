"""Each job has one consistent history, in whatever order events happen."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from msgspec.structs import replace

from girder_dask.jobs import FINAL, JobStatus, can_follow
from girder_dask.protocol.messages import JobEvent, JobSpec
from tests.support.dispatch_site import SimulatedRun, Site

S = JobStatus
JOBS = ["a", "b", "c"]


@dataclass
class Key:
    """What Dask does with a key."""

    spec: JobSpec
    worker: str | None = None
    run: Doing | None = None
    over: bool = False
    holder: str | None = None  # the worker with its value


@dataclass
class Doing:
    """What a run does on its worker, whether or not anybody listens."""

    run: SimulatedRun
    key: Key
    status: JobStatus | None = None
    told_to_stop: bool = False
    words: int = 0
    unsent: deque[JobEvent] = field(default_factory=deque)

    @property
    def over(self) -> bool:
        return self.status in FINAL

    @property
    def place(self) -> tuple[str, str]:
        return self.run.worker, self.run.spec.key

    def go_to(self, status: JobStatus) -> None:
        self.status = status
        self.words += 1
        text = f"{self.run.id} {self.words} {status.name}\n"
        # A value that is too large for Girder is not told.
        result = b"r" if status == S.SUCCESS and self.run.id.endswith(tuple("02468")) else None
        self.unsent.append(self.run.event(status, log=text, result=result))


NEXT = {
    None: [S.FETCHING_INPUT, S.RUNNING, S.ERROR],
    S.FETCHING_INPUT: [S.RUNNING, S.ERROR],
    S.RUNNING: [S.PUSHING_OUTPUT, S.SUCCESS, S.ERROR],
    S.PUSHING_OUTPUT: [S.SUCCESS, S.ERROR],
}


class Histories(RuleBasedStateMachine):
    """A cluster whose workers come and go, and whose messages are late.

    A worker's address is never used again. What a run says arrives in order, but at any
    time, also after its worker was given up; what Dask says arrives at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.site = Site()
        self.keys: dict[str, Key] = {}
        self.doings: list[Doing] = []
        self.workers = ["w1", "w2"]
        self.made = 2
        self.specs: dict[str, JobSpec] = {}
        self.claims = dict.fromkeys(JOBS, 0)
        self.asked = False
        self.refused: set[tuple[str, str]] = set()  # what workers do not begin with any more

    # -- what the cluster sees ---------------------------------------------------------------

    def catch_up(self) -> None:
        """Take over what the dispatcher has told Dask."""
        for key in self.site.cluster.submitted:
            if key not in self.keys:
                spec = self.site.cluster.specs[key]
                self.keys[key] = Key(spec)
                self.check_inputs(spec)
        for name in self.site.cluster.released:
            if name in self.keys:  # else it was never submitted
                self.keys[name].over = True
                self.keys[name].holder = None
        self.site.cluster.released.clear()
        for place in self.site.cluster.stopped:
            self.refused.add(place)
            for doing in self.doings:
                if doing.place == place:
                    doing.told_to_stop = True
        self.site.cluster.stopped.clear()

    def waiting(self) -> list[Key]:
        return [k for k in self.keys.values() if not k.over and k.worker is None]

    def placed(self) -> list[Key]:
        return [k for k in self.keys.values() if not k.over and k.worker is not None]

    def ended(self) -> list[Key]:
        return [k for k in self.placed() if k.run is not None and k.run.over]

    # -- what happens ------------------------------------------------------------------------

    @initialize(
        retries=st.lists(st.integers(0, 2), min_size=len(JOBS), max_size=len(JOBS)),
        inputs=st.sampled_from(
            [{}, {"b": ["a"]}, {"b": ["a"], "c": ["b"]}, {"c": ["a", "b"]}, {"a": ["c"]}]
        ),
    )
    def submit(self, retries: list[int], inputs: dict[str, list[str]]) -> None:
        for job, count in zip(JOBS, retries, strict=True):
            spec = self.site.accept(job, retries=count, dependencies=inputs.get(job))
            self.specs[job] = spec

    @rule(job=st.sampled_from(JOBS))
    def submit_again(self, job: str) -> None:
        if job in self.site.jobs:
            self.site.dispatcher.accept([self.specs[job]])

    @rule(job=st.sampled_from(JOBS))
    def claim_again(self, job: str) -> None:
        """Girder hands the job over as a new attempt; nobody tells the run of the old one."""
        if self.status(job) not in FINAL:
            attempt = max(e.attempt for e in self.site.events if e.id == job) + 1
            self.site.dispatcher.accept([replace(self.specs[job], attempt=attempt)])
            self.claims[job] += 1

    def status(self, job: str) -> JobStatus:
        history = self.site.history(job)
        return history[-1][1] if history else S.QUEUED

    @rule(job=st.sampled_from(JOBS))
    def acknowledge(self, job: str) -> None:
        if self.status(job) in FINAL:
            self.site.dispatcher.on_verdict(job, "done")

    @rule()
    def ask_girder(self) -> None:
        asked = self.site.dependencies.unknown()
        self.site.dispatcher.on_dependency_states(
            asked, {i: {"status": self.status(i)} for i in asked}
        )

    @rule(seconds=st.sampled_from([0.5, 3.0, 200.0]))
    def wait(self, seconds: float) -> None:
        self.site.cluster.advance(seconds)

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def place(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.waiting()))
        key.worker = data.draw(st.sampled_from(self.workers))
        self.site.place(key.spec, key.worker)

    @precondition(lambda self: any(k.run is None for k in self.placed()))
    @rule(data=st.data(), stolen=st.booleans())
    def start(self, data: st.DataObject, stolen: bool) -> None:
        key = data.draw(st.sampled_from([k for k in self.placed() if k.run is None]))
        if stolen:  # with no word to the plugins
            key.worker = data.draw(st.sampled_from(self.workers))
            self.site.cluster.places[key.spec.key] = key.worker
        assert key.worker is not None
        key.run = Doing(SimulatedRun(self.site, key.spec, key.worker), key)
        key.run.told_to_stop = key.run.place in self.refused
        self.doings.append(key.run)

    @precondition(lambda self: any(not d.over for d in self.doings))
    @rule(data=st.data())
    def work(self, data: st.DataObject) -> None:
        doing = data.draw(st.sampled_from([d for d in self.doings if not d.over]))
        self.advance(doing, data.draw(st.integers(0, 2)))

    def advance(self, doing: Doing, choice: int) -> None:
        if doing.told_to_stop:
            doing.go_to(S.CANCELED)
        else:
            possible = NEXT[doing.status]
            doing.go_to(possible[choice % len(possible)])

    @precondition(lambda self: any(d.unsent for d in self.doings))
    @rule(data=st.data())
    def hear(self, data: st.DataObject) -> None:
        doing = data.draw(st.sampled_from([d for d in self.doings if d.unsent]))
        self.site.dispatcher.on_run_event(doing.unsent.popleft())

    @precondition(lambda self: self.ended())
    @rule(data=st.data())
    def dask_hears_of_an_end(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(self.ended())))

    def end(self, key: Key) -> None:
        assert key.run is not None
        raised = key.run.status != S.SUCCESS
        worker, key.worker, key.run = key.worker, None, None
        self.site.cluster.places.pop(key.spec.key, None)
        key.over = True
        if key.spec.key in self.site.dispatcher:
            key.holder = None if raised else worker
            self.site.dispatcher.on_finished(key.spec.key, worker, None if raised else 600)

    @rule(data=st.data())
    def lose_a_worker(self, data: st.DataObject) -> None:
        lost = data.draw(st.sampled_from(self.workers))
        self.workers.remove(lost)
        self.made += 1
        self.workers.append(f"w{self.made}")
        for key in self.placed():
            if key.worker == lost:
                key.worker = key.run = None
                self.site.cluster.places.pop(key.spec.key, None)
                if key.spec.key in self.site.dispatcher:
                    self.site.dispatcher.on_released(key.spec.key, lost, alive=False)
        for key in self.keys.values():
            if key.holder == lost:
                key.holder = None
                if not self.site.jobs.is_open(key.spec.key):
                    self.site.dispatcher.on_forgotten(key.spec.key)
        if data.draw(st.booleans()):  # else it was only thought dead
            for doing in self.doings:
                if doing.run.worker == lost:
                    doing.unsent.clear()
                    doing.status = S.CANCELED

    @rule(job=st.sampled_from(JOBS))
    def cancel(self, job: str) -> None:
        self.site.dispatcher.cancel([job])

    def questions(self) -> list[tuple[str, str]]:
        """Return what a worker that was told to stop a key may answer: it has not begun with it.

        By then all is heard that runs of it have said there.
        """
        begun = {doing.place for doing in self.doings if not doing.over or doing.unsent}
        asked = self.site.cluster.questions
        return [place for place in asked if place not in begun and place[0] in self.workers]

    @precondition(lambda self: self.questions())
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self.site.cluster.answer(*data.draw(st.sampled_from(self.questions())))

    @precondition(lambda self: self.placed())
    @rule(data=st.data())
    def dask_gives_up(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.placed()))
        key.over = True
        self.site.cluster.places.pop(key.spec.key, None)
        self.site.dispatcher.on_failed(key.spec.key, "Dask gave up.")

    @precondition(lambda self: any(k.over for k in self.keys.values()))
    @rule(data=st.data())
    def dask_forgets(self, data: st.DataObject) -> None:
        """Its account was waited for in vain."""
        is_open = self.site.jobs.is_open
        ended = [k for k in self.keys.values() if k.over]
        over = [k for k in ended if k.holder is None or is_open(k.spec.key)]
        if over:
            self.forget(data.draw(st.sampled_from(over)))

    def forget(self, key: Key) -> None:
        if self.site.jobs.is_open(key.spec.key):
            self.site.dispatcher.on_forgotten(key.spec.key)

    # -- what must hold ----------------------------------------------------------------------

    @invariant()
    def histories_are_consistent(self) -> None:
        self.catch_up()
        for job in JOBS:
            self.check(job)
        jobs = self.site.dispatcher.jobs
        assert +jobs.counts == Counter(job.status for job in jobs)

    def check(self, job: str) -> None:
        attempt, status = 1, S.QUEUED
        for event in (e for e in self.site.events if e.id == job):
            assert status not in FINAL, f"something after the end: {event}"
            assert event.attempt >= attempt
            if event.status is not None:
                new = JobStatus(event.status)
                queued_anew = event.attempt > attempt and new == S.QUEUED
                is_repeated = new == status  # since Girder sent a job that the scheduler has
                is_next = queued_anew or is_repeated or can_follow(status, new)
                assert is_next, f"{status.name} → {new.name}"
                status = new
            elif event.attempt > attempt:
                assert event.log is None, "an attempt begins with QUEUED, or with being accepted"
                status = S.QUEUED
            attempt = event.attempt
        self.check_runs(job)

    def check_inputs(self, spec: JobSpec) -> None:
        """A job runs when its inputs have ended well, and is given keys that are their own."""
        assert self.status(spec.id) not in FINAL, "it runs again after its end"
        for job in spec.dependencies or ():
            assert self.status(job) == S.SUCCESS
        for job, key in self.site.cluster.values[spec.key].items():
            assert key in self.keys
            assert self.keys[key].spec.id == job

    def check_runs(self, job: str) -> None:
        """One run speaks in an attempt, from its first word on, and in no other attempt."""
        heard: dict[str, list[int]] = {}
        for event in (e for e in self.site.events if e.id == job and e.run is not None):
            assert event.run is not None
            heard.setdefault(event.run, []).append(event.attempt)
            if len(heard[event.run]) == 1:
                assert (event.log or "").startswith(f"{event.run} 1 "), "its beginning was missed"
        for attempts in heard.values():
            assert len(set(attempts)) == 1, "a run speaks for two attempts"
        speakers = [attempts[0] for attempts in heard.values()]
        assert len(speakers) == len(set(speakers)), "two runs speak in one attempt"
        tries = self.specs[job].retries if self.specs else 0
        claimed = self.claims[job] + 1  # each claim begins to count anew
        assert self.site.log(job).count("failed; the job is retried") <= tries * claimed

    def teardown(self) -> None:
        """Let everything come to its end: then each job has one."""
        for _ in range(100):
            self.catch_up()
            if not self.step():
                break
        else:
            raise AssertionError("the jobs do not come to an end")
        self.histories_are_consistent()
        for job in self.specs:
            ends = [status for _, status in self.site.history(job) if status in FINAL]
            assert len(ends) == 1, f"job {job}: {self.site.history(job)}"
        assert len(self.site.jobs) == 0
        assert len(self.site.retained) == 0
        held = {key.spec.key for key in self.keys.values() if key.holder is not None}
        assert not held, "values that nobody has an account of"

    def step(self) -> bool:
        """Do one thing of those that are left to do. Say whether there was any."""
        if questions := self.questions():
            self.site.cluster.answer(*questions[0])
            return True
        return self.proceed()

    def proceed(self) -> bool:
        for doing in self.doings:
            if doing.unsent:
                self.site.dispatcher.on_run_event(doing.unsent.popleft())
                return True
            if not doing.over:
                self.advance(doing, 2)
                return True
        for key in self.ended():
            self.end(key)
            return True
        for key in self.placed():
            assert key.worker is not None
            key.run = Doing(SimulatedRun(self.site, key.spec, key.worker), key)
            self.doings.append(key.run)
            return True
        for key in self.waiting():
            key.worker = self.workers[0]
            self.site.cluster.places[key.spec.key] = key.worker
            if key.spec.key in self.site.dispatcher:
                self.site.dispatcher.on_assigned(key.spec.key, key.worker)
            return True
        for key in self.keys.values():
            if key.over and self.site.jobs.is_open(key.spec.key):
                self.forget(key)
                return True
        return self.let_time_pass()

    def let_time_pass(self) -> bool:
        if self.site.dependencies.unknown() and not self.asked:
            self.ask_girder()
            self.asked = True
            return True
        self.asked = False
        if any(job in self.site.jobs and self.status(job) in FINAL for job in JOBS):
            for job in JOBS:
                self.acknowledge(job)
            return True
        due = self.site.cluster.next_time()
        if due is not None:
            self.site.cluster.advance(due - self.site.cluster.now)
        return due is not None


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
