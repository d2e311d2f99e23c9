"""The recorder turns events into updates, and delivers every one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from girder_dask.errors import GirderError
from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobEvent, JobUpdate
from girder_dask.protocol.wire_json import to_json
from girder_dask.scheduler.event_recorder import Recorder
from tests.support.deadline import SECONDS, soon

S = JobStatus
A_WHILE = 30.0


class Girder:
    """What takes the updates. ``gate`` holds up its answers, ``failures`` are raised first."""

    def __init__(self) -> None:
        self.requests: list[list[JobUpdate]] = []
        self.receipts: list[list[tuple[str, int]]] = []
        self.times: list[float] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures: list[Exception] = []
        self.answer: Callable[[list[JobUpdate]], Mapping[str, list[str]]] = lambda _: {}
        self.verdicts: list[tuple[str, str]] = []

    async def post(
        self, wire: list[dict[str, Any]], receipts: list[tuple[str, int]]
    ) -> Mapping[str, list[str]]:
        updates = [JobUpdate.from_wire(each) for each in wire]
        self.requests.append(updates)
        self.receipts.append(receipts)
        self.times.append(asyncio.get_running_loop().time())
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        return self.answer(updates)

    def verdict(self, job_id: str, kind: str) -> None:
        self.verdicts.append((job_id, kind))

    def log(self, job_id: str) -> str:
        return "".join(u.log or "" for r in self.requests for u in r if u.id == job_id)


@contextlib.asynccontextmanager
async def recording(girder: Girder, **options: Any) -> AsyncIterator[Recorder]:
    options = {"retry_delay_s": 0.0, "interval_s": 0.0} | options
    on_recorded = options.pop("on_recorded", lambda *_: None)
    recorder = Recorder(girder.post, **options)
    task = asyncio.create_task(recorder.run(girder.verdict, on_recorded))
    try:
        yield recorder
        assert not task.done(), f"the recorder has died: {task.exception()!r}"
    finally:
        while not task.done():  # that once is enough is a test of its own
            task.cancel()
            await asyncio.wait([task], timeout=0.1)


def event(job: str = "a", attempt: int = 1, time: float = 1.0, **fields: Any) -> JobEvent:
    return JobEvent(id=job, attempt=attempt, time=time, **fields)


async def test_idle_recorder_sends_at_once() -> None:
    girder = Girder()
    async with recording(girder, interval_s=A_WHILE) as recorder:
        recorder.record(event(log="x"))
        await soon(lambda: girder.requests)


async def test_change_of_state_skips_the_interval_and_output_does_not() -> None:
    girder = Girder()
    async with recording(girder, interval_s=A_WHILE) as recorder:
        recorder.record(event(log="1"))
        await soon(lambda: girder.requests)
        recorder.record(event(log="2"))
        recorder.record(event(progress={"current": 1}))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(girder.requests) == 1
        recorder.record(event(status=int(S.RUNNING)))
        await soon(lambda: len(girder.requests) == 2)
        assert girder.requests[1][0].log == "2"


async def test_output_alone_keeps_to_the_interval() -> None:
    girder = Girder()
    original = girder.post

    async def slow(
        wire: list[dict[str, Any]], receipts: list[tuple[str, int]]
    ) -> Mapping[str, list[str]]:
        await asyncio.sleep(0.002)  # as long as a request takes
        return await original(wire, receipts)

    girder.post = slow  # type: ignore[method-assign]
    async with recording(girder, interval_s=0.2) as recorder:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while loop.time() < begun + 1.0:
            recorder.record(event(log="x"))
            await asyncio.sleep(0.001)
        assert await recorder.flush(SECONDS)
        elapsed = loop.time() - begun
    assert len(girder.requests) <= elapsed / 0.2 + 3


async def test_events_of_a_job_become_one_update() -> None:
    girder = Girder()
    async with recording(girder) as recorder:
        recorder.record(event(status=int(S.FETCHING_INPUT), time=1.0, log="a"))
        recorder.record(event(log="b", progress={"total": 3, "current": 1}))
        recorder.record(event(status=int(S.RUNNING), time=2.0, progress={"current": 2}))
        recorder.record(event(status=int(S.SUCCESS), time=3.0, log="c", result=b"r"))
        await soon(lambda: girder.requests)
    assert girder.requests == [
        [
            JobUpdate(
                id="a",
                attempt=1,
                sequence=1,
                statuses=[[820, 1.0], [2, 2.0], [3, 3.0]],
                log="abc",
                progress={"total": 3, "current": 2},
                result=b"r",
            )
        ]
    ]


async def test_exception_travels_with_the_error_and_counts() -> None:
    girder = Girder()
    async with recording(girder, buffer_bytes=1000) as recorder:
        girder.gate.clear()
        recorder.record(event(log="x"))
        recorder.record(event(status=int(S.ERROR), error="no", exception=b"e" * 2000))
        await soon(lambda: girder.requests)
        assert recorder._pending_bytes > 2000
        girder.gate.set()
        assert await recorder.flush(SECONDS)
        assert recorder._pending_bytes == 0
    (update,) = girder.requests[0]
    assert (update.error, update.exception) == ("no", b"e" * 2000)


async def test_undeliverable_part_of_an_error_is_left_out() -> None:
    girder = Girder()

    def answer(updates: list[JobUpdate]) -> Mapping[str, list[str]]:
        if any(u.exception for u in updates):
            raise GirderError("too large", status=413)
        return {}

    girder.answer = answer
    async with recording(girder) as recorder:
        recorder.record(event(status=int(S.ERROR), error="no", exception=b"e"))
        assert await recorder.flush(SECONDS)
    assert [u.exception for r in girder.requests for u in r] == [b"e", None]
    assert girder.verdicts == [("a", "done")]


async def test_events_during_a_request_are_coalesced() -> None:
    girder = Girder()
    async with recording(girder) as recorder:
        girder.gate.clear()
        recorder.record(event("a", status=int(S.RUNNING)))
        await soon(lambda: girder.requests)
        for n in range(100):
            recorder.record(event("a", log=f"{n},"))
            recorder.record(event(f"b{n}", status=int(S.RUNNING)))
        girder.gate.set()
        assert await recorder.flush(SECONDS)
    assert [len(r) for r in girder.requests] == [1, 101]
    assert girder.log("a") == "".join(f"{n}," for n in range(100))
    assert recorder.requests == 2
    assert recorder.updates == 102


async def test_request_holds_the_oldest_jobs_up_to_the_batch_size() -> None:
    girder = Girder()
    async with recording(girder, batch_size=3) as recorder:
        for n in range(7):
            recorder.record(event(str(n), log="x"))
        assert await recorder.flush(SECONDS)
    assert [[u.id for u in r] for r in girder.requests] == [list("012"), list("345"), ["6"]]


async def test_request_size_is_bounded() -> None:
    girder = Girder()
    async with recording(girder) as recorder:
        for n in range(3):
            recorder.record(event(str(n), log="x" * (9 << 20)))
        assert await recorder.flush(SECONDS)
    assert [len(r) for r in girder.requests] == [1, 1, 1]


async def test_updates_of_an_attempt_are_numbered() -> None:
    girder = Girder()
    async with recording(girder) as recorder:
        for job, attempt in [("a", 1), ("a", 1), ("b", 1), ("a", 2), ("a", 2)]:
            recorder.record(event(job, attempt, log="x"))
            assert await recorder.flush(SECONDS)
    sent = [(u.id, u.attempt, u.sequence) for r in girder.requests for u in r]
    assert sent == [("a", 1, 1), ("a", 1, 2), ("b", 1, 1), ("a", 2, 1), ("a", 2, 2)]


async def test_failed_request_is_repeated_unchanged_first() -> None:
    girder = Girder()
    girder.failures = [GirderError("Girder is away."), GirderError("Girder is away.")]
    async with recording(girder) as recorder:
        recorder.record(event(log="1"))
        await soon(lambda: girder.requests)
        recorder.record(event(log="2"))
        assert await recorder.flush(SECONDS)
    assert girder.requests[0] == girder.requests[1] == girder.requests[2]
    assert [r[0].log for r in girder.requests] == ["1", "1", "1", "2"]
    assert recorder.error is None


async def test_failed_requests_back_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("girder_dask.utils.backoff._random.random", lambda: 0.0)  # no jitter
    girder = Girder()
    girder.failures = [GirderError("Girder is away.")] * 5
    async with recording(girder, retry_delay_s=0.05, max_retry_delay_s=0.2) as recorder:
        recorder.record(event(log="1"))
        await soon(lambda: recorder.error)
        assert recorder.error == "Girder is away."
        assert await recorder.flush(SECONDS)
    pauses = [b - a for a, b in zip(girder.times, girder.times[1:], strict=False)]
    assert all(
        pause >= least - 0.001
        for pause, least in zip(pauses, [0.05, 0.1, 0.2, 0.2, 0.2], strict=True)
    )
    assert pauses[-1] < 0.4


async def test_updates_in_flight_count_as_waiting() -> None:
    """It is what a scheduler says of itself, and what it warns of when it closes."""
    girder = Girder()
    async with recording(girder) as recorder:
        girder.gate.clear()
        recorder.record(event("a", log="x"))
        assert recorder.waiting == 1
        await soon(lambda: girder.requests)
        assert recorder.waiting == 1
        recorder.record(event("b", log="x"))
        assert recorder.waiting == 2
        girder.gate.set()
        assert await recorder.flush(SECONDS)
        assert recorder.waiting == 0


async def test_room_waits_while_the_buffer_is_full() -> None:
    girder = Girder()
    async with recording(girder, buffer_bytes=1000) as recorder:
        girder.gate.clear()
        recorder.record(event(log="x" * 500))
        await asyncio.wait_for(recorder.room(), SECONDS)
        recorder.record(event(log="x" * 500))
        await soon(lambda: girder.requests)
        waiting = [asyncio.create_task(recorder.room()) for _ in range(3)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        girder.gate.set()
        await asyncio.wait_for(asyncio.gather(*waiting), SECONDS)


async def test_bytes_count_until_they_are_acknowledged() -> None:
    girder = Girder()
    async with recording(girder, buffer_bytes=1000) as recorder:
        for _ in range(50):
            recorder.record(event(log="x" * 300, result=b"y" * 300))
            assert await recorder.flush(SECONDS)
            await asyncio.wait_for(recorder.room(), SECONDS)


async def test_flooding_job_does_not_block_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("girder_dask.scheduler.event_recorder._MAX_REQUEST_BYTES", 1000)
    girder = Girder()
    girder.gate.clear()
    async with recording(girder) as recorder:
        recorder.record(event("flood", log="x" * 100))
        await soon(lambda: girder.requests)
        for _ in range(100):
            recorder.record(event("flood", log="x" * 100))
        recorder.record(event("small", status=int(S.SUCCESS)))
        girder.gate.set()
        await soon(lambda: ("small", "done") in girder.verdicts)
        told = [n for n, r in enumerate(girder.requests) for u in r if u.id == "small"]
        assert told == [1]
        assert await recorder.flush(SECONDS)
    assert girder.log("flood") == "x" * 10_100


async def test_room_for_waits_until_girder_took_the_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("girder_dask.scheduler.event_recorder._MAX_JOB_BYTES", 1000)
    girder = Girder()
    girder.gate.clear()
    async with recording(girder) as recorder:
        recorder.record(event("a", log="x"))
        await soon(lambda: girder.requests)
        recorder.record(event("a", log="x" * 2000))
        await asyncio.wait_for(recorder.room_for("b"), SECONDS)
        waiting = asyncio.create_task(recorder.room_for("a"))
        await asyncio.wait([waiting], timeout=0.05)
        assert not waiting.done()
        girder.gate.set()
        await asyncio.wait_for(waiting, SECONDS)
        recorder.record(event("a", log="x" * 2000))
        recorder.forget("a", 1)
        await asyncio.wait_for(recorder.room_for("a"), SECONDS)
        assert not recorder._bytes_by_job


async def test_long_log_is_sent_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when Girder was away for long; it refuses a body that is too large."""
    monkeypatch.setattr("girder_dask.scheduler.event_recorder._MAX_REQUEST_BYTES", 1000)
    girder = Girder()
    girder.failures = [GirderError("away")]
    pieces = [f"{n:03}" * 100 for n in range(20)]
    async with recording(girder) as recorder:
        for piece in pieces:
            recorder.record(event("a", log=piece))
        recorder.record(event("b", log="b"))
        recorder.record(event("a", status=int(S.SUCCESS), result=b"r"))
        assert await recorder.flush(SECONDS)
        await asyncio.wait_for(recorder.room(), SECONDS)
        assert recorder._pending_bytes == 0
    answered = girder.requests[1:]
    assert "".join(u.log or "" for r in answered for u in r if u.id == "a") == "".join(pieces)
    assert all(sum(len(u.log or "") for u in r) <= 1500 for r in answered)
    ends = [u for r in answered for u in r if u.statuses]
    assert [(u.id, u.result) for u in ends] == [("a", b"r")]
    assert answered[-1][-1].id in ("a", "b")
    numbers = [u.sequence for r in answered for u in r if u.id == "a"]
    assert numbers == sorted(set(numbers))


async def test_rest_of_a_long_log_arrives_before_the_next_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Girder takes nothing of an attempt when it has heard of a later one."""
    monkeypatch.setattr("girder_dask.scheduler.event_recorder._MAX_REQUEST_BYTES", 4000)
    girder = Girder()
    async with recording(girder) as recorder:
        for n in range(20):
            recorder.record(event("a", 1, log=f"{n:03}" * 100))
        recorder.record(event("a", 2, status=int(S.QUEUED)))
        recorder.record(event("b", log="b"))
        recorder.record(event("a", 3, status=int(S.SUCCESS)))
        assert await recorder.flush(SECONDS)
        recorder.forget("a", 3)
        recorder.forget("b", 1)
        assert not recorder._delivery._sequences, "nor of its earlier attempts"
    assert girder.log("a") == "".join(f"{n:03}" * 100 for n in range(20))
    attempts = [u.attempt for r in girder.requests for u in r if u.id == "a"]
    assert attempts == sorted(attempts)
    assert "b" in [u.id for u in girder.requests[0]], "others have their turns"


async def test_forget_makes_room() -> None:
    girder = Girder()
    async with recording(girder, buffer_bytes=1000) as recorder:
        girder.gate.clear()
        recorder.record(event("a", log="x"))
        await soon(lambda: girder.requests)
        recorder.record(event("b", log="x" * 2000))
        recorder.forget("b", 1)
        await asyncio.wait_for(recorder.room(), SECONDS)
        girder.gate.set()
        assert await recorder.flush(SECONDS)
    assert [[u.id for u in r] for r in girder.requests] == [["a"]]


async def test_flush_returns_whether_all_is_delivered() -> None:
    girder = Girder()
    async with recording(girder, interval_s=A_WHILE) as recorder:
        assert await recorder.flush(0.01), "nothing waits"
        girder.gate.clear()
        recorder.record(event(log="x"))
        assert not await recorder.flush(0.05)
        girder.gate.set()
        assert await recorder.flush(SECONDS)
        recorder.record(event(log="y"))  # would wait for the interval
        assert await recorder.flush(SECONDS)
    assert girder.log("a") == "xy"


async def test_recorder_can_be_stopped_right_after_a_flush() -> None:
    """As a scheduler does that closes; it waits without a limit for the recorder to end."""
    girder = Girder()
    recorder = Recorder(girder.post, interval_s=A_WHILE)
    task = asyncio.create_task(recorder.run(girder.verdict))
    girder.gate.clear()
    recorder.record(event(log="1"))
    await soon(lambda: girder.requests)
    recorder.record(event(log="2"))
    asyncio.get_running_loop().call_later(0.01, girder.gate.set)
    assert await recorder.flush(SECONDS)
    task.cancel()
    done, pending = await asyncio.wait([task], timeout=2.0)
    task.cancel()
    assert done
    assert not pending


async def test_verdicts_are_passed_on() -> None:
    girder = Girder()
    girder.answer = lambda _: {"stale": ["a"], "gone": ["b"], "cancel": ["c"]}
    async with recording(girder) as recorder:
        recorder.record(event("c", log="x"))
        assert await recorder.flush(SECONDS)
    assert girder.verdicts == [("a", "stale"), ("b", "gone"), ("c", "cancel")]


async def test_job_is_done_once_its_end_is_acknowledged() -> None:
    girder = Girder()
    async with recording(girder) as recorder:
        girder.gate.clear()
        recorder.record(event("a", status=int(S.SUCCESS)))
        recorder.record(event("b", status=int(S.RUNNING)))
        await soon(lambda: girder.requests)
        assert girder.verdicts == []
        girder.gate.set()
        assert await recorder.flush(SECONDS)
    assert girder.verdicts == [("a", "done")]


async def test_ended_job_is_forgotten() -> None:
    girder = Girder()
    async with recording(girder) as recorder:
        recorder.record(event("a", status=int(S.SUCCESS)))
        recorder.record(event("b", log="x"))
        assert await recorder.flush(SECONDS)
        recorder.forget("b", 1)
        assert not recorder._delivery._sequences
        assert not recorder._pending


async def test_recorded_attempts_are_passed_on() -> None:
    girder = Girder()
    heard: list[tuple[str, int]] = []

    def answer(_: list[JobUpdate]) -> Mapping[str, list[str]]:
        assert heard == [], "the first answer is lost"
        if len(girder.requests) == 1:
            raise GirderError("The answer was lost.")
        return {"stale": ["b"], "gone": ["c"], "cancel": ["d"]}

    girder.answer = answer
    async with recording(girder, on_recorded=lambda *what: heard.append(what)) as recorder:
        for job in "abcd":
            recorder.record(event(job, 1, status=int(S.RUNNING)))
            recorder.record(event(job, 2, status=int(S.QUEUED)))
        waiting = asyncio.create_task(recorder.wait_until(lambda: ("a", 2) in heard))
        assert await recorder.flush(SECONDS)
        await asyncio.wait_for(waiting, SECONDS)
    assert heard == [("a", 1), ("a", 2), ("d", 1), ("d", 2)]
    assert girder.verdicts == [("b", "stale"), ("c", "gone"), ("d", "cancel")]


# -- receipts -------------------------------------------------------------------------------


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("girder_dask.scheduler.event_recorder._ACKNOWLEDGEMENT_DELAY_S", 0.0)


@pytest.mark.usefixtures("at_once")
async def test_acknowledgements_of_many_jobs_are_one_request() -> None:
    girder = Girder()
    async with recording(girder, batch_size=10) as recorder:
        for n in range(1000):
            recorder.record(event(str(n), attempt=1 + n % 2))
        assert recorder.waiting == 1000
        await soon(lambda: girder.requests)
        await soon(lambda: recorder.waiting == 0)
    assert girder.requests == [[]]
    assert girder.receipts == [[(str(n), 1 + n % 2) for n in range(1000)]]
    assert girder.verdicts == []


async def test_acknowledgement_is_dropped_once_the_job_starts() -> None:
    girder = Girder()
    async with recording(girder) as recorder:
        recorder.record(event("a"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not girder.requests
        recorder.record(event("a", status=int(S.RUNNING)))
        assert await recorder.flush(SECONDS)
    assert girder.receipts == [[]]
    assert [u.id for r in girder.requests for u in r] == ["a"]


async def test_end_does_not_wait_for_acknowledgements() -> None:
    girder = Girder()
    async with recording(girder) as recorder:
        for n in range(1000):
            recorder.record(event(str(n)))
        recorder.record(event("b", status=int(S.SUCCESS)))
        await soon(lambda: girder.requests)
        assert [u.id for u in girder.requests[0]] == ["b"]
        assert await recorder.flush(SECONDS), "which waits for the receipts, too"
    assert len({key for some in girder.receipts for key in some}) == 1000


@pytest.mark.usefixtures("at_once")
async def test_failed_acknowledgements_are_repeated_and_verdicts_passed_on() -> None:
    girder = Girder()
    girder.failures = [GirderError("Girder is away.")]
    girder.answer = lambda _: {"stale": ["a"], "gone": ["b"], "cancel": ["c"]}
    async with recording(girder) as recorder:
        for job in "abc":
            recorder.record(event(job))
        assert await recorder.flush(SECONDS)
    assert girder.receipts == [[("a", 1), ("b", 1), ("c", 1)]] * 2
    assert girder.verdicts == [("a", "stale"), ("b", "gone"), ("c", "cancel")]


@pytest.mark.usefixtures("at_once")
async def test_acknowledgements_arrive_beside_an_undeliverable_update() -> None:
    girder = Girder()

    def answer(updates: list[JobUpdate]) -> Mapping[str, list[str]]:
        if updates:
            raise GirderError("too large", status=413)
        return {}

    girder.answer = answer
    async with recording(girder) as recorder:
        girder.gate.clear()
        recorder.record(event("a", log="x"))
        recorder.record(event("b", log="x"))
        recorder.record(event("c"))
        girder.gate.set()
        assert await recorder.flush(SECONDS)
    assert [("c", 1)] in [
        some for r, some in zip(girder.requests, girder.receipts, strict=True) if not r
    ]


@pytest.mark.usefixtures("at_once")
async def test_forgotten_job_needs_no_acknowledgement() -> None:
    girder = Girder()
    async with recording(girder) as recorder:
        recorder.record(event("a"))
        recorder.forget("a", 1)
        assert await recorder.flush(SECONDS)
        assert recorder.waiting == 0
    assert girder.requests == []


# -- any sequence --------------------------------------------------------------------------


class Receiver:
    """Takes updates as Girder does: each sequence number of an attempt once."""

    def __init__(self, outcomes: list[str]) -> None:
        self.outcomes = outcomes
        self.seen: dict[tuple[str, int], int] = {}
        self.log: dict[tuple[str, int], str] = defaultdict(str)
        self.statuses: dict[tuple[str, int], list[int]] = defaultdict(list)

    async def post(
        self,
        wire: list[dict[str, Any]],
        receipts: list[tuple[str, int]],  # noqa: ARG002
    ) -> Mapping[str, list[str]]:
        await asyncio.sleep(0)
        outcome = self.outcomes.pop() if self.outcomes else "works"
        if outcome == "fails before":
            raise GirderError("The request was lost.")
        for update in (JobUpdate.from_wire(each) for each in wire):
            key = (update.id, update.attempt)
            if update.sequence > self.seen.get(key, 0):
                self.seen[key] = update.sequence
                self.log[key] += update.log or ""
                self.statuses[key] += [int(status) for status, _ in update.statuses or ()]
        if outcome == "fails after":
            raise GirderError("The answer was lost.")
        return {}


steps = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(1, 2),
        st.none() | st.sampled_from([1, 2, 820]),
        st.booleans(),
    ),
    max_size=30,
)
outcomes = st.lists(st.sampled_from(["works", "fails before", "fails after"]), max_size=20)


@given(steps, outcomes, st.integers(1, 3))
@settings(deadline=None)
def test_every_log_arrives_once_and_in_order(
    steps: list[tuple[str, int, int | None, bool]], outcomes: list[str], batch_size: int
) -> None:
    log: dict[tuple[str, int], str] = defaultdict(str)
    statuses: dict[tuple[str, int], list[int]] = defaultdict(list)
    receiver = Receiver(outcomes)

    async def main() -> None:
        recorder = Recorder(
            receiver.post,
            interval_s=0.0,
            batch_size=batch_size,
            retry_delay_s=0.0,
        )
        task = asyncio.create_task(recorder.run(lambda *_: None))
        for n, (job, attempt, status, pause) in enumerate(steps):
            recorder.record(event(job, attempt, log=f"{n},", status=status))
            log[job, attempt] += f"{n},"
            if status is not None:
                statuses[job, attempt].append(status)
            for _ in range(3 * pause):
                await asyncio.sleep(0)
        assert await recorder.flush(SECONDS)
        task.cancel()

    asyncio.run(main())
    assert receiver.log == log
    assert {k: v for k, v in receiver.statuses.items() if v} == statuses


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("no JSON")])
async def test_unexpected_error_does_not_end_the_recorder(error: Exception) -> None:
    """Else no job of this scheduler would ever be heard of again."""
    girder = Girder()
    girder.failures = [error]
    async with recording(girder) as recorder:
        recorder.record(event(log="x"))
        assert await recorder.flush(2.0)


@pytest.mark.parametrize("error", [TypeError("no JSON"), GirderError("too large", status=413)])
async def test_undeliverable_update_blocks_no_other(error: Exception) -> None:
    girder = Girder()

    def answer(updates: list[JobUpdate]) -> Mapping[str, list[str]]:
        if any(u.log == "poison" for u in updates):
            raise error
        return {}

    girder.answer = answer
    async with recording(girder) as recorder:
        for job in "abcde":
            log = "poison" if job == "c" else job
            recorder.record(event(job, log=log, status=int(S.SUCCESS)))
        assert await recorder.flush(SECONDS)
    taken = [u for r in girder.requests for u in r]
    assert {u.id for u in taken if u.log != "poison" and u.statuses} == set("abcde")
    assert sorted(i for i, kind in girder.verdicts if kind == "done") == list("abcde")


class Proxy(Girder):
    """A Girder behind a proxy that refuses what is too large."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.taken: list[JobUpdate] = []

        def answer(updates: list[JobUpdate]) -> Mapping[str, list[str]]:
            if len(json.dumps([to_json(u.to_wire()) for u in updates])) > most:
                raise GirderError("Request Entity Too Large", status=413)
            self.taken += updates
            return {}

        self.answer = answer


async def test_log_is_divided_for_a_proxy_that_takes_little() -> None:
    girder = Proxy(most=10_000)
    lines = "".join(f"line {n}\n" for n in range(9000))
    async with recording(girder) as recorder:
        recorder.record(event("a", status=int(S.RUNNING), log=lines))
        recorder.record(event("b", log="b"))
        recorder.record(event("a", status=int(S.SUCCESS), log="end", result=b"r"))
        assert await recorder.flush(SECONDS)
    parts = [u for u in girder.taken if u.id == "a"]
    assert "".join(u.log or "" for u in parts) == lines + "end"
    numbers = [u.sequence for u in parts]
    assert numbers == sorted(set(numbers))
    assert [s for u in parts for s, _ in u.statuses or ()] == [int(S.RUNNING), int(S.SUCCESS)]
    assert parts[-1].result == b"r"
    assert [u.log for u in girder.taken if u.id == "b"] == ["b"]


async def test_result_that_a_proxy_refuses_is_replaced_by_an_error() -> None:
    girder = Proxy(most=10_000)
    async with recording(girder) as recorder:
        recorder.record(event("a", status=int(S.SUCCESS), log="all\n", result=b"r" * 10_000))
        assert await recorder.flush(SECONDS)
    (update,) = girder.taken
    assert (update.log, update.result) == ("all\n", None)
    assert update.error == "it could not be sent to Girder: Request Entity Too Large"


@pytest.mark.usefixtures("at_once")
async def test_refused_acknowledgements_are_divided_alone() -> None:
    girder, post = Girder(), None
    post = girder.post

    async def refuse_many(wire: list[dict[str, Any]], receipts: list[tuple[str, int]]) -> Any:
        answer = await post(wire, receipts)
        if len(receipts) > 3:
            raise GirderError("Request Entity Too Large", status=413)
        return answer

    girder.post = refuse_many  # type: ignore[method-assign]
    async with recording(girder) as recorder:
        girder.gate.clear()
        recorder.record(event("a", status=int(S.SUCCESS), log="a", result=b"r"))
        for n in range(10):
            recorder.record(event(f"b{n}"))
        girder.gate.set()
        assert await recorder.flush(SECONDS)
    taken = [some for some in girder.receipts if len(some) <= 3]
    assert sorted(job for some in taken for job, _ in some) == [f"b{n}" for n in range(10)]
    last = [u for r in girder.requests for u in r][-1]
    assert (last.log, last.result) == ("a", b"r")
