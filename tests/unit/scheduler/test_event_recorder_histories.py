"""Girder records each event once, whatever is lost, repeated and refused in whatever order."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from girder_dask.errors import GirderError
from girder_dask.jobs import FINAL, JobStatus
from girder_dask.protocol.messages import JobEvent, JobUpdate
from girder_dask.scheduler.event_recorder import Recorder

S = JobStatus
JOBS = ["a", "b", "c", "d"]
Key = tuple[str, int]  # a job and an attempt of it
Answer = dict[str, list[str]]

# Of what a log waits, a request takes so little that long ones go in parts.
SMALL = {"_MAX_REQUEST_BYTES": 1600, "_MAX_ACKNOWLEDGEMENTS": 2, "_ACKNOWLEDGEMENT_DELAY_S": 0.0}


@dataclass
class Account:
    """What was said of one attempt, in order; or what was heard of it."""

    log: list[str] = field(default_factory=list)
    statuses: list[tuple[int, float]] = field(default_factory=list)
    progress: dict[str, Any] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)

    def add(self, what: JobEvent | JobUpdate) -> None:
        if what.log:
            self.log += what.log.splitlines()
        if isinstance(what, JobUpdate):
            self.statuses += [(int(status), time) for status, time in what.statuses or ()]
        elif what.status is not None:
            self.statuses.append((what.status, what.time))
        self.progress |= what.progress or {}
        for name in ("result", "error", "exception", "pending_reason"):
            if getattr(what, name) is not None:
                self.told[name] = getattr(what, name)

    def is_beginning_of(self, other: Account) -> bool:
        return (
            self.log == other.log[: len(self.log)]
            and self.statuses == other.statuses[: len(self.statuses)]
        )


@dataclass
class Job:
    """A job as its dispatcher has it in hand."""

    id: str
    attempt: int = 1
    ended: bool = False
    acknowledged: bool = False
    release: bool = False
    lost: set[int] = field(default_factory=set)  # attempts of which not all needs to arrive

    @property
    def speaks(self) -> bool:
        return not self.ended and not self.release


class Girder:
    """Takes each sequence number of an attempt once, and answers what the sender should know."""

    def __init__(self) -> None:
        self.positions: dict[str, Key | tuple[int, int]] = dict.fromkeys(JOBS, (1, 0))
        self.accounts: defaultdict[Key, Account] = defaultdict(Account)
        self.moods: dict[str, str] = {}  # stale, gone or cancel

    def apply(self, updates: list[JobUpdate], receipts: list[Key]) -> Answer:
        for update in updates:
            position = (update.attempt, update.sequence)
            if position > self.positions[update.id] and self.mood(update.id) in ("", "cancel"):
                self.positions[update.id] = position
                self.accounts[update.id, update.attempt].add(update)
        answer: Answer = {}
        named = dict.fromkeys([*(u.id for u in updates), *(job for job, _ in receipts)])
        ends = {u.id for u in updates if is_end(u)}
        for job in named:
            mood = self.mood(job)
            if mood in ("stale", "gone") or (mood == "cancel" and job not in ends):
                answer.setdefault(mood, []).append(job)
        return answer

    def mood(self, job: str) -> str:
        return self.moods.get(job, "")


@dataclass
class Request:
    """A request that waits for its answer."""

    updates: list[JobUpdate]
    receipts: list[Key]
    answer: asyncio.Future[Answer]


def is_end(update: JobUpdate) -> bool:
    return bool(update.statuses) and update.statuses[-1][0] in FINAL  # type: ignore[index]


class Deliveries(RuleBasedStateMachine):
    """A recorder between a dispatcher and a Girder, each of them true to its own promises.

    The dispatcher says nothing of a job after its end, and never goes back to an attempt.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[str] = []
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("girder_dask.scheduler.event_recorder.logger.disabled", True)
        for name, value in SMALL.items():
            self.patch.setattr(f"girder_dask.scheduler.event_recorder.{name}", value)
        self.loop = asyncio.new_event_loop()
        self.girder = Girder()
        self.jobs = {job: Job(job) for job in JOBS}
        self.words = 0
        self.said: defaultdict[Key, Account] = defaultdict(Account)
        # What went out, and what of it was acknowledged.
        self.request: Request | None = None
        self.sent: dict[tuple[str, int, int], JobUpdate] = {}
        self.acknowledged: dict[tuple[str, int, int], JobUpdate] = {}
        self.unsent: set[Key] = set()  # receipts
        self.unanswered: set[Key] = set()
        self.receipts: Counter[Key] = Counter()
        self.again: tuple[list[JobUpdate], list[Key]] | None = None  # what comes once more
        # What was handed on, and what should be.
        self.verdicts: list[tuple[str, str]] = []
        self.due: list[tuple[str, str]] = []
        self.heard: Counter[Key] = Counter()
        self.may_hear: Counter[Key] = Counter()

    @initialize(batch_size=st.integers(1, 5))
    def start(self, batch_size: int) -> None:
        self.batch_size = batch_size

        async def make() -> Recorder:
            return Recorder(
                self.post,
                interval_s=0.0,
                batch_size=batch_size,
                retry_delay_s=0.0,
            )

        self.recorder = self.loop.run_until_complete(make())
        self.task = self.loop.create_task(self.recorder.run(self.verdict, self.hear))

    def spin(self) -> None:
        """Let the recorder come as far as it can."""

        async def spin() -> None:
            for _ in range(25):
                await asyncio.sleep(0)

        self.loop.run_until_complete(spin())
        assert not self.wrong, self.wrong[0]
        assert not self.task.done(), "the recorder has died"

    # -- the dispatcher ------------------------------------------------------------------------

    def record(self, job: Job, **fields: Any) -> None:
        self.words += 1
        event = JobEvent(id=job.id, attempt=job.attempt, time=float(self.words), **fields)
        key = (job.id, job.attempt)

        async def record() -> None:
            self.said[key].add(event)
            if event.is_bare:
                self.unsent.add(key)
            else:
                self.unsent.discard(key)
            self.recorder.record(event)

        self.loop.run_until_complete(record())

    def line(self, length: int = 0) -> str:
        return f"{self.words} {'x' * length}\n"

    def speaker(self, data: st.DataObject) -> Job:
        return data.draw(st.sampled_from([job for job in self.jobs.values() if job.speaks]))

    @precondition(lambda self: any(job.speaks for job in self.jobs.values()))
    @rule(
        data=st.data(),
        what=st.sampled_from(["line", "line", "long", "status", "progress", "waits", "bare"]),
        times=st.integers(1, 4),
        spin=st.booleans(),
    )
    def say(self, data: st.DataObject, what: str, times: int, spin: bool) -> None:
        job = self.speaker(data)
        for _ in range(times):
            self.say_one(job, what)
        if spin:
            self.spin()

    @rule(words=st.lists(st.sampled_from(["line", "long", "status", "bare"]), min_size=4))
    def all_say(self, words: list[str]) -> None:
        """Say much at once, so that it goes in one request."""
        for job, what in zip(self.jobs.values(), words, strict=False):
            if job.speaks:
                self.say_one(job, what)

    def say_one(self, job: Job, what: str) -> None:
        said: dict[str, Any] = {
            "line": {"log": self.line()},
            "long": {"log": self.line(300)},
            "status": {"status": int(S.RUNNING), "log": self.line()},
            "progress": {"progress": {"current": self.words}},
            "waits": {"pending_reason": f"for {self.words}"},
            "bare": {},
        }[what]
        self.record(job, **said)

    @precondition(lambda self: any(job.speaks for job in self.jobs.values()))
    @rule(data=st.data(), words=st.integers(0, 4))
    def lose_a_worker(self, data: st.DataObject, words: int) -> None:
        job = self.speaker(data)
        for _ in range(words):
            self.say_one(job, "long")
        job.attempt += 1
        self.record(job, status=int(S.QUEUED), log=self.line())

    @precondition(lambda self: any(job.speaks for job in self.jobs.values()))
    @rule(data=st.data())
    def hand_over_anew(self, data: st.DataObject) -> None:
        """Girder takes the job for lost, and gives it to the same scheduler once more."""
        job = self.speaker(data)
        if self.girder.mood(job.id):
            return
        self.recorder.forget(job.id, job.attempt)
        job.lost.update(range(1, job.attempt + 1))
        job.attempt += 1
        self.girder.positions[job.id] = (job.attempt, 0)
        self.record(job)

    @precondition(lambda self: any(job.speaks for job in self.jobs.values()))
    @rule(data=st.data(), status=st.sampled_from(sorted(FINAL)), spin=st.booleans())
    def end(self, data: st.DataObject, status: int, spin: bool) -> None:
        self.end_job(self.speaker(data), status)
        if spin:
            self.spin()

    def end_job(self, job: Job, status: int) -> None:
        job.ended = True
        fields: dict[str, Any] = {"log": self.line()} if self.words % 2 else {}
        if status == S.SUCCESS:
            fields["result"] = str(self.words).encode()
        elif status == S.ERROR:
            fields |= {"error": f"why {self.words}", "exception": b"e"}
        self.record(job, status=int(status), **fields)

    def verdict(self, job_id: str, kind: str) -> None:
        """Do as the dispatcher does."""
        self.verdicts.append((job_id, kind))
        job = self.jobs[job_id]
        if kind == "done":
            assert job.ended, "it has said no end"
            job.acknowledged = True
        if kind in ("stale", "gone"):
            job.release = True
            job.lost.update(range(1, job.attempt + 1))
        if kind != "cancel":
            self.recorder.forget(job_id, job.attempt)

    def hear(self, job_id: str, attempt: int) -> None:
        self.heard[job_id, attempt] += 1

    # -- Girder --------------------------------------------------------------------------------

    @rule(
        job=st.sampled_from(JOBS),
        mood=st.sampled_from(["cancel", "cancel", "stale", "gone"]),
    )
    def change_mood(self, job: str, mood: str) -> None:
        """Somebody cancels or deletes it, or another scheduler takes it over."""
        if self.girder.mood(job) in ("", "cancel"):
            self.girder.moods[job] = mood

    async def post(self, wire: list[dict[str, Any]], receipts: list[Key]) -> Mapping[str, Any]:
        updates = [JobUpdate.from_wire(each) for each in wire]
        try:
            self.check_request(updates, receipts)
        except AssertionError as e:  # which the recorder would take for an error of Girder's
            self.wrong.append(str(e))
        self.request = Request(updates, list(receipts), self.loop.create_future())
        return await self.request.answer

    def check_request(self, updates: list[JobUpdate], receipts: list[Key]) -> None:
        assert self.request is None, "one request at a time"
        assert updates or receipts
        assert len(updates) <= self.batch_size
        if self.again is not None:
            assert self.again == (updates, receipts), "what was not answered comes again"
        for update in updates:
            assert not self.jobs[update.id].acknowledged, f"after its end: {update}"
            number = (update.id, update.attempt, update.sequence)
            assert number not in self.acknowledged, f"after it was acknowledged: {update}"
            if number in self.sent:
                assert update == self.sent[number], "one number for two updates"
                continue
            before = [n[1:] for n in self.sent if n[0] == update.id]
            last = max(before, default=(0, 0))
            wanted = last[1] + 1 if last[0] == update.attempt else 1
            assert number[1:] > last, f"{number[1:]} after {last}"
            assert update.sequence == wanted
            assert update.attempt not in self.jobs[update.id].lost, f"it was forgotten: {update}"
            self.sent[number] = update
        for job, attempt in receipts:
            assert not self.jobs[job].acknowledged, "a receipt after its end"
            key = (job, attempt)
            assert key in self.unsent | self.unanswered, "a receipt that says nothing"
            assert key in self.unanswered or attempt not in self.jobs[job].lost, "it was forgotten"
        # One that was recorded while the one before is in flight is sent after that.
        self.unsent -= set(receipts) - self.unanswered
        self.unanswered |= set(receipts)

    @precondition(lambda self: self.request is not None)
    @rule(
        how=st.sampled_from(
            ["works", "works", "is lost", "answer is lost", "too large", "too large", "bug"]
        )
    )
    def answer(self, how: str) -> None:
        request = self.request
        assert request is not None
        self.request = self.again = None
        if how == "too large" and len(request.updates) < 2:
            how = "is lost"
        if how in ("works", "answer is lost"):
            answer = self.girder.apply(request.updates, request.receipts)
        if how == "works":
            self.acknowledge(request, answer)
            request.answer.set_result(answer)
        elif how == "too large":
            request.answer.set_exception(GirderError("Too large.", status=413))
        else:
            self.again = (request.updates, request.receipts)
            error = RuntimeError("a bug") if how == "bug" else GirderError("No answer.")
            request.answer.set_exception(error)
        self.spin()
        if how != "works":
            assert self.request is not None, "it is retried"

    def acknowledge(self, request: Request, answer: Answer) -> None:
        for update in request.updates:
            self.acknowledged[update.id, update.attempt, update.sequence] = update
        refused = {*answer.get("stale", ()), *answer.get("gone", ())}
        self.may_hear.update((u.id, u.attempt) for u in request.updates if u.id not in refused)
        self.unanswered -= set(request.receipts)
        self.receipts.update(request.receipts)
        self.due += [(job, kind) for kind, ids in answer.items() for job in ids]
        self.due += [(update.id, "done") for update in request.updates if is_end(update)]

    # -- what must hold ------------------------------------------------------------------------

    @invariant()
    def nothing_is_handed_on_before_it_was_answered(self) -> None:
        assert not Counter(self.verdicts) - Counter(self.due)
        assert not self.heard - self.may_hear

    @rule()
    def settle(self) -> None:
        """Answer until all that was said has arrived."""
        self.spin()
        for _ in range(1000):
            if self.request is None:
                break
            self.answer("works")
        assert self.request is None
        assert self.recorder.waiting == 0
        self.check_what_arrived()

    def check_what_arrived(self) -> None:
        assert Counter(self.verdicts) == Counter(self.due), "each once"
        answered: defaultdict[Key, Account] = defaultdict(Account)
        for (job, attempt, _), update in self.acknowledged.items():
            answered[job, attempt].add(update)
        for key, said in self.said.items():
            job, attempt = key
            if attempt in self.jobs[job].lost:
                assert answered[key].is_beginning_of(said), key
                assert self.girder.accounts[key].is_beginning_of(answered[key]), key
            elif self.girder.mood(job) not in ("stale", "gone"):
                assert answered[key] == said, f"each event in one update of {key}"
                assert self.girder.accounts[key] == said, f"repeated requests change nothing: {key}"
                assert self.heard[key] == self.may_hear[key]
                assert self.heard[key] or self.receipts[key], f"Girder does not know of {key}"
        assert not self.unanswered, "receipts that did not come again"

    def teardown(self) -> None:
        try:
            if hasattr(self, "task"):
                self.come_to_an_end()
        finally:
            if hasattr(self, "task"):
                self.task.cancel()
                self.loop.run_until_complete(asyncio.wait([self.task]))
            self.loop.close()
            self.patch.undo()

    def come_to_an_end(self) -> None:
        """Let each job end. Then nothing is kept of any."""
        for job in self.jobs.values():
            if job.speaks:
                self.end_job(job, S.SUCCESS)
        self.settle()
        done = Counter(job for job, kind in self.verdicts if kind == "done")
        for job in self.jobs.values():
            assert done[job.id] == 1 or (job.release and done[job.id] == 0)
        recorder = self.recorder
        assert (recorder._pending, recorder.delivery._sequences, recorder._acknowledgements) == (
            {},
            {},
            {},
        )
        assert (recorder._in_flight, recorder._acknowledgements_in_flight) == ([], [])
        assert (recorder.pending_bytes, recorder._bytes_by_job) == (0, {})


TestDeliveries = Deliveries.TestCase
TestDeliveries.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
