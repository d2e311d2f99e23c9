"""The recorder turns events into updates, and delivers every one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from girder_dask.errors import GirderError
from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobUpdate, attempt_id
from girder_dask.scheduler.event_recorder import Recorder
from tests.support.deadline import SECONDS, soon
from tests.support.recording_site import Girder, event, recording

S = JobStatus
A_WHILE = 120.0


async def test_recorder_sends_at_once_when_idle() -> None:
    girder = Girder()
    async with recording(girder, interval_s=A_WHILE) as recorder:
        recorder.record(event(log="x"))
        await soon(lambda: girder.requests)


async def test_recorder_skips_the_interval_for_changes_of_state_alone() -> None:
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


async def test_recorder_keeps_to_the_interval_for_output() -> None:
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


async def test_recorder_merges_the_events_of_a_job() -> None:
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


async def test_recorder_sends_the_exception_with_the_error() -> None:
    girder = Girder()
    async with recording(girder, buffer_bytes=1000) as recorder:
        girder.gate.clear()
        recorder.record(event(log="x"))
        recorder.record(event(status=int(S.ERROR), error="no", exception=b"e" * 2000))
        await soon(lambda: girder.requests)
        assert recorder.pending_bytes > 2000
        girder.gate.set()
        assert await recorder.flush(SECONDS)
        assert recorder.pending_bytes == 0
    (update,) = girder.requests[0]
    assert (update.error, update.exception) == ("no", b"e" * 2000)


async def test_recorder_coalesces_events_during_a_request() -> None:
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
    assert recorder.delivery.requests == 2
    assert recorder.updates == 102


async def test_recorder_sends_the_oldest_jobs_up_to_the_batch_size() -> None:
    girder = Girder()
    async with recording(girder, batch_size=3) as recorder:
        for n in range(7):
            recorder.record(event(str(n), log="x"))
        assert await recorder.flush(SECONDS)
    assert [[u.id for u in r] for r in girder.requests] == [list("012"), list("345"), ["6"]]


async def test_recorder_limits_the_size_of_requests() -> None:
    girder = Girder()
    async with recording(girder) as recorder:
        for n in range(3):
            recorder.record(event(str(n), log="x" * (9 << 20)))
        assert await recorder.flush(SECONDS)
    assert [len(r) for r in girder.requests] == [1, 1, 1]


async def test_recorder_counts_updates_in_flight_as_waiting() -> None:
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


async def test_recorder_room_waits_while_the_buffer_is_full() -> None:
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


async def test_recorder_counts_bytes_until_they_are_acknowledged() -> None:
    girder = Girder()
    async with recording(girder, buffer_bytes=1000) as recorder:
        for _ in range(50):
            recorder.record(event(log="x" * 300, result=b"y" * 300))
            assert await recorder.flush(SECONDS)
            await asyncio.wait_for(recorder.room(), SECONDS)


async def test_recorder_lets_no_job_block_the_others(
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


async def test_recorder_room_for_waits_until_girder_took_the_output(
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


async def test_recorder_sends_a_long_log_in_parts(
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
        assert recorder.pending_bytes == 0
    answered = girder.requests[1:]
    assert "".join(u.log or "" for r in answered for u in r if u.id == "a") == "".join(pieces)
    assert all(sum(len(u.log or "") for u in r) <= 1500 for r in answered)
    ends = [u for r in answered for u in r if u.statuses]
    assert [(u.id, u.result) for u in ends] == [("a", b"r")]
    assert answered[-1][-1].id in ("a", "b")
    numbers = [u.sequence for r in answered for u in r if u.id == "a"]
    assert numbers == sorted(set(numbers))


async def test_recorder_sends_the_rest_of_a_long_log_before_the_next_attempt(
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
        assert not recorder.delivery._sequences, "nor of its earlier attempts"
    assert girder.log("a") == "".join(f"{n:03}" * 100 for n in range(20))
    attempts = [u.attempt for r in girder.requests for u in r if u.id == "a"]
    assert attempts == sorted(attempts)
    assert "b" in [u.id for u in girder.requests[0]], "others have their turns"


async def test_recorder_forget_makes_room() -> None:
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


async def test_recorder_flush_returns_whether_all_is_delivered() -> None:
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
    done, pending = await asyncio.wait([task], timeout=SECONDS)
    task.cancel()
    assert done
    assert not pending


async def test_recorder_passes_on_verdicts() -> None:
    girder = Girder()
    girder.answer = lambda _: {"stale": ["a"], "gone": ["b"], "cancel": ["c"]}
    async with recording(girder) as recorder:
        recorder.record(event("c", log="x"))
        assert await recorder.flush(SECONDS)
    assert girder.verdicts == [("a", "stale"), ("b", "gone"), ("c", "cancel")]


async def test_recorder_reports_a_job_as_done_once_its_end_is_acknowledged() -> None:
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


async def test_recorder_forgets_an_ended_job() -> None:
    girder = Girder()
    async with recording(girder) as recorder:
        recorder.record(event("a", status=int(S.SUCCESS)))
        recorder.record(event("b", log="x"))
        assert await recorder.flush(SECONDS)
        recorder.forget("b", 1)
        assert not recorder.delivery._sequences
        assert not recorder._pending


async def test_recorder_passes_on_recorded_attempts() -> None:
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


async def test_recorder_takes_a_superseded_attempt_for_no_recorded_one() -> None:
    girder = Girder()
    heard: list[tuple[str, int]] = []
    girder.answer = lambda _: {"superseded": [attempt_id("a", 1), attempt_id("b", 1)]}
    async with recording(girder, on_recorded=lambda *what: heard.append(what)) as recorder:
        recorder.record(event("a", 1, status=int(S.RUNNING)))
        recorder.record(event("a", 2, status=int(S.QUEUED)))
        recorder.record(event("b", 1, status=int(S.RUNNING)))
        assert await recorder.flush(SECONDS)
    assert heard == [("a", 2)]
    assert girder.verdicts == []


# -- acknowledgements ------------------------------------------------------------------------


@pytest.mark.usefixtures("at_once")
async def test_recorder_sends_acknowledgements_of_many_jobs_in_one_request() -> None:
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


async def test_recorder_drops_an_acknowledgement_once_the_job_starts() -> None:
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


async def test_recorder_does_not_delay_an_end_for_acknowledgements() -> None:
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
async def test_recorder_acknowledges_no_forgotten_job() -> None:
    girder = Girder()
    async with recording(girder) as recorder:
        recorder.record(event("a"))
        recorder.forget("a", 1)
        assert await recorder.flush(SECONDS)
        assert recorder.waiting == 0
    assert girder.requests == []


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("no JSON")])
async def test_recorder_survives_unexpected_errors(error: Exception) -> None:
    """Else no job of this scheduler would ever be heard of again."""
    girder = Girder()
    girder.failures = [error]
    async with recording(girder) as recorder:
        recorder.record(event(log="x"))
        assert await recorder.flush(SECONDS)


async def test_recorder_merges_the_images_of_containers() -> None:
    girder = Girder()
    async with recording(girder, interval_s=A_WHILE) as recorder:
        recorder.record(event(log="x"))
        await soon(lambda: girder.requests)
        recorder.record(event(images={"a:1": "one"}))
        recorder.record(event(images={"b:1": "two"}))
        recorder.record(event(status=int(S.RUNNING)))
        await soon(lambda: len(girder.requests) == 2)
    assert girder.requests[1][0].images == {"a:1": "one", "b:1": "two"}
