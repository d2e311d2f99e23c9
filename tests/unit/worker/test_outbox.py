"""What runs say reaches the scheduler: all of it, once, in order."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection
from typing import Any

import pytest

from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobEvent, JobSpec
from girder_dask.utils.backoff import Backoff
from girder_dask.worker import event_delivery, run_sink
from girder_dask.worker import outbox as outbox_module
from girder_dask.worker.outbox import Outbox
from girder_dask.worker.run_sink import RunSink
from tests.support.deadline import SECONDS, soon

S = JobStatus
A_WHILE = 120.0
WORKER = "tcp://10.0.0.7:4312"


class Scheduler:
    """Takes batches. ``gate`` holds up its answers, ``failures`` are raised first."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, int, list[JobEvent]]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures: list[Exception] = []
        self.dropped: set[str] = set()
        self.taken: dict[str, int] = {}
        self.events: list[JobEvent] = []
        self.fail_after_taking = False
        self.takes = 0.0

    async def send(self, name: str, batch: int, wire: list[dict[str, Any]]) -> Collection[str]:
        events = [JobEvent.from_wire(each) for each in wire]
        self.batches.append((name, batch, events))
        await self.gate.wait()
        if self.takes:
            await asyncio.sleep(self.takes)
        if self.failures and not self.fail_after_taking:
            raise self.failures.pop(0)
        if batch > self.taken.get(name, 0):
            self.taken[name] = batch
            self.events += events
        if self.failures:
            raise self.failures.pop(0)
        return {e.run for e in events if e.run in self.dropped}

    def log(self, job_id: str) -> str:
        return "".join(e.log or "" for e in self.events if e.id == job_id)

    def statuses(self, job_id: str) -> list[int]:
        return [e.status for e in self.events if e.id == job_id and e.status is not None]


@contextlib.asynccontextmanager
async def opened(
    scheduler: Scheduler, *, interval_s: float = 0.0, capacity: int = 1 << 20
) -> AsyncIterator[Outbox]:
    outbox = Outbox(scheduler.send, interval_s=interval_s, log_capacity=capacity, worker=WORKER)
    try:
        yield outbox
    finally:
        scheduler.gate.set()
        await outbox.close(SECONDS)


def sink(outbox: Outbox, job_id: str = "a", attempt: int = 1) -> RunSink:
    return outbox.open(JobSpec(id=job_id, attempt=attempt, task="m:f"))


async def in_thread(function: Any, *args: Any) -> Any:
    return await asyncio.wait_for(asyncio.to_thread(function, *args), SECONDS)


async def test_an_idle_outbox_sends_at_once() -> None:
    scheduler = Scheduler()
    async with opened(scheduler, interval_s=A_WHILE) as outbox:
        sink(outbox).write("x\n")
        await soon(lambda: scheduler.log("a") == "x\n")


async def test_an_event_says_of_which_run_on_which_worker_it_is() -> None:
    scheduler = Scheduler()
    async with opened(scheduler) as outbox:
        first, second = sink(outbox, attempt=2), sink(outbox, attempt=2)
        begun = time.time()
        first.status(S.RUNNING)
        second.status(S.RUNNING)
        await soon(lambda: len(scheduler.events) == 2)
    one, two = scheduler.events
    assert (one.id, one.attempt, one.worker, one.status) == ("a", 2, WORKER, 2)
    assert {one.run, two.run} == {first.run, second.run}
    assert first.run != second.run
    assert begun <= one.time <= time.time()


async def test_output_waits_for_the_interval_but_a_change_of_state_does_not() -> None:
    scheduler = Scheduler()
    async with opened(scheduler, interval_s=A_WHILE) as outbox:
        out = sink(outbox)
        out.write("1\n")
        await soon(lambda: scheduler.log("a") == "1\n")
        out.write("2\n")
        out.progress({"current": 1})
        await in_thread(lambda: None)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(scheduler.batches) == 1
        out.status(S.RUNNING)
        await soon(lambda: scheduler.log("a") == "1\n2\n")
        assert len(scheduler.batches) == 2


async def test_flushing_does_not_wait_for_the_interval() -> None:
    scheduler = Scheduler()
    async with opened(scheduler, interval_s=A_WHILE) as outbox:
        out = sink(outbox)
        out.write("1\n")
        await soon(lambda: scheduler.log("a") == "1\n")
        out.write("2\n")
        out.flush()
        await soon(lambda: scheduler.log("a") == "1\n2\n")


async def test_output_alone_keeps_to_the_interval_however_much_there_is() -> None:
    scheduler = Scheduler()
    scheduler.takes = 0.002  # as a message over the network does
    begun = time.monotonic()

    def write(out: RunSink) -> None:
        while time.monotonic() < begun + 1.0:
            out.write("x\n")
            time.sleep(0.001)

    async with opened(scheduler, interval_s=0.2) as outbox:
        await in_thread(write, sink(outbox))
    elapsed = time.monotonic() - begun
    assert len(scheduler.batches) <= elapsed / 0.2 + 3


async def test_many_threads_lose_and_mix_up_nothing() -> None:
    scheduler = Scheduler()
    jobs = [f"job{n}" for n in range(8)]

    def work(out: RunSink) -> None:
        out.status(S.RUNNING)
        for n in range(500):
            out.write(f"{out.spec.id} {n}\n")
        out.finish(S.SUCCESS, result=out.spec.id.encode())

    async with opened(scheduler, interval_s=0.001, capacity=2000) as outbox:
        with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
            loop = asyncio.get_running_loop()
            await asyncio.gather(
                *(loop.run_in_executor(pool, work, sink(outbox, job)) for job in jobs)
            )
    for job in jobs:
        assert scheduler.log(job) == "".join(f"{job} {n}\n" for n in range(500))
        assert scheduler.statuses(job) == [S.RUNNING, S.SUCCESS]


async def test_failed_batches_are_sent_again_as_they_were_before_anything_else(
    monkeypatch: Any,
) -> None:
    monkeypatch.setattr(event_delivery, "_RETRY_BACKOFF", Backoff(0.001, 5.0))
    scheduler = Scheduler()
    scheduler.failures = [OSError("away"), RuntimeError("a bug"), asyncio.TimeoutError()]
    async with opened(scheduler) as outbox:
        out = sink(outbox)
        out.write("1\n")
        await soon(lambda: scheduler.batches)
        out.write("2\n")
        out.finish(S.SUCCESS)
    assert [batch for _, batch, _ in scheduler.batches] == [1, 1, 1, 1, 2]
    assert scheduler.batches[0] == scheduler.batches[1] == scheduler.batches[3]
    assert scheduler.log("a") == "1\n2\n"


async def test_a_batch_whose_answer_was_lost_can_be_told_from_a_new_one(
    monkeypatch: Any,
) -> None:
    monkeypatch.setattr(event_delivery, "_RETRY_BACKOFF", Backoff(0.001, 5.0))
    scheduler = Scheduler()
    scheduler.fail_after_taking = True
    scheduler.failures = [OSError("away")] * 3
    async with opened(scheduler) as outbox:
        out = sink(outbox)
        for n in range(5):
            out.write(f"{n}\n")
            await soon(lambda n=n: scheduler.log("a").endswith(f"{n}\n"))
        out.finish(S.SUCCESS)
    assert scheduler.log("a") == "0\n1\n2\n3\n4\n"
    assert scheduler.statuses("a") == [S.SUCCESS]
    assert len({name for name, _, _ in scheduler.batches}) == 1


async def test_two_outboxes_have_two_names() -> None:
    scheduler = Scheduler()
    async with opened(scheduler) as one, opened(scheduler) as two:
        sink(one, "a").write("1\n")
        sink(two, "b").write("2\n")
        await soon(lambda: scheduler.log("a") and scheduler.log("b"))
    assert len({name for name, _, _ in scheduler.batches}) == 2


async def test_the_end_and_the_rest_of_the_log_are_one_event() -> None:
    scheduler = Scheduler()
    async with opened(scheduler, interval_s=A_WHILE) as outbox:
        out = sink(outbox)
        out.write("1\n")
        await soon(lambda: scheduler.log("a"))
        scheduler.gate.clear()
        out.flush()
        out.write("2\n")
        await soon(lambda: len(scheduler.batches) == 2)
        out.write("3\n")
        out.progress({"current": 3})
        out.finish(S.ERROR, error="ValueError: no")
        scheduler.gate.set()
    end = scheduler.events[-1]
    assert (end.status, end.log, end.error) == (S.ERROR, "3\n", "ValueError: no")
    assert end.progress == {"current": 3}
    assert scheduler.log("a") == "1\n2\n3\n"


async def test_no_text_gets_behind_the_end_while_the_sender_is_busy() -> None:
    scheduler = Scheduler()

    def work(out: RunSink) -> None:
        for n in range(50):
            out.write(f"{n}\n")
        out.finish(S.SUCCESS)

    async with opened(scheduler) as outbox:
        loop = asyncio.get_running_loop()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            outs = [sink(outbox, f"job{n}") for n in range(200)]
            await asyncio.gather(*(loop.run_in_executor(pool, work, out) for out in outs))
    last: dict[str, JobEvent] = {}
    for event in scheduler.events:
        assert event.id not in last or last[event.id].status is None, "an event after the end"
        last[event.id] = event
    text = "".join(f"{n}\n" for n in range(50))
    assert all(scheduler.log(out.spec.id) == text for out in outs)


async def test_nothing_comes_after_the_end() -> None:
    """A thread that a task left behind may go on."""
    scheduler = Scheduler()
    async with opened(scheduler) as outbox:
        out = sink(outbox)
        out.finish(S.SUCCESS)
        out.write("late\n")
        out.progress({"current": 9})
        other = sink(outbox, "b")
        other.write("x\n")
        await soon(lambda: scheduler.log("b"))
        out.progress({"current": 10})
        await soon(lambda: not outbox._dirty)
    assert [e.status for e in scheduler.events if e.id == "a"] == [S.SUCCESS]


async def test_progress_is_merged_and_a_hundred_thousand_changes_are_few_events() -> None:
    scheduler = Scheduler()

    def work(out: RunSink) -> None:
        out.progress({"total": 100_000})
        for n in range(100_000):
            out.progress({"current": n + 1})
        out.finish(S.SUCCESS)

    async with opened(scheduler, interval_s=0.1) as outbox:
        begun = time.monotonic()
        await in_thread(work, sink(outbox))
        elapsed = time.monotonic() - begun
    shown: dict[str, Any] = {}
    for event in scheduler.events:
        shown |= event.progress or {}
    assert shown == {"total": 100_000, "current": 100_000}
    assert len(scheduler.events) <= elapsed / 0.1 + 10


async def test_a_writer_waits_while_nobody_takes_its_output() -> None:
    scheduler = Scheduler()
    scheduler.gate.clear()
    written = 0

    def work(out: RunSink) -> None:
        nonlocal written
        for _ in range(100):
            written += 1
            out.write("x" * 99 + "\n")

    async with opened(scheduler, capacity=1000) as outbox:
        writing = asyncio.create_task(asyncio.to_thread(work, sink(outbox)))
        await soon(lambda: written >= 11)
        await asyncio.wait([writing], timeout=0.2)
        assert written < 40
        scheduler.gate.set()
        await asyncio.wait_for(writing, SECONDS)
    assert len(scheduler.log("a")) == 10_000


async def test_a_long_output_is_sent_in_pieces() -> None:
    scheduler = Scheduler()
    async with opened(scheduler, capacity=1 << 24) as outbox:
        out = sink(outbox)
        await in_thread(out.write, "x" * (3 << 20))
        await soon(lambda: len(scheduler.log("a")) == 3 << 20)
    assert max(len(e.log or "") for e in scheduler.events) == 1 << 20


async def test_many_events_go_in_several_batches() -> None:
    scheduler = Scheduler()
    async with opened(scheduler) as outbox:
        for n in range(2500):
            sink(outbox, str(n)).status(S.RUNNING)
        await soon(lambda: len(scheduler.events) == 2500)
    assert [len(events) for _, _, events in scheduler.batches] == [1000, 1000, 500]


# -- asking whether one is still heard -----------------------------------------------------


async def test_a_run_that_is_heard_is_confirmed_after_all_it_said() -> None:
    scheduler = Scheduler()
    async with opened(scheduler, interval_s=A_WHILE) as outbox:
        out = sink(outbox)
        out.write("1\n")
        await soon(lambda: scheduler.log("a"))
        scheduler.gate.clear()
        out.write("2\n")
        out.status(S.PUSHING_OUTPUT)
        asked = asyncio.create_task(asyncio.to_thread(out.confirm, SECONDS))
        await asyncio.wait([asked], timeout=0.1)
        assert not asked.done()
        scheduler.gate.set()
        assert await asyncio.wait_for(asked, SECONDS)
        assert scheduler.log("a") == "1\n2\n"


async def test_a_run_that_is_no_longer_heard_is_told_so() -> None:
    scheduler = Scheduler()
    async with opened(scheduler) as outbox:
        old, new = sink(outbox), sink(outbox)
        scheduler.dropped.add(old.run)
        old.status(S.PUSHING_OUTPUT)
        new.status(S.PUSHING_OUTPUT)
        assert not await in_thread(old.confirm, SECONDS)
        assert await in_thread(new.confirm, SECONDS)


async def test_a_scheduler_that_does_not_answer_confirms_nothing() -> None:
    scheduler = Scheduler()
    scheduler.gate.clear()
    async with opened(scheduler) as outbox:
        out = sink(outbox)
        out.status(S.PUSHING_OUTPUT)
        assert not await in_thread(out.confirm, 0.05)


async def test_who_asks_is_told_when_the_worker_closes() -> None:
    """Its thread would hold up the end of the worker."""
    scheduler = Scheduler()
    scheduler.gate.clear()
    outbox = Outbox(scheduler.send, interval_s=0.0, log_capacity=1 << 20, worker=WORKER)
    out = sink(outbox)
    out.status(S.PUSHING_OUTPUT)
    asked = asyncio.create_task(asyncio.to_thread(out.confirm, SECONDS))
    await soon(lambda: outbox._barriers)
    await outbox.close(0.01)
    assert not await asyncio.wait_for(asked, SECONDS / 2)
    scheduler.gate.set()
    assert not await in_thread(out.confirm, SECONDS)


async def test_many_threads_may_ask_at_once() -> None:
    scheduler = Scheduler()

    def work(out: RunSink) -> bool:
        heard = True
        for n in range(20):
            out.write(f"{n}\n")
            heard = out.confirm(SECONDS) and heard
            seen = scheduler.log(out.spec.id)
            assert seen.endswith(f"{n}\n"), seen
        return heard

    async with opened(scheduler, interval_s=A_WHILE) as outbox:
        loop = asyncio.get_running_loop()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = await asyncio.gather(
                *(loop.run_in_executor(pool, work, sink(outbox, str(n))) for n in range(8))
            )
    assert answers == [True] * 8


# -- closing -------------------------------------------------------------------------------


async def test_closing_sends_what_waits() -> None:
    scheduler = Scheduler()
    outbox = Outbox(scheduler.send, interval_s=A_WHILE, log_capacity=1 << 20, worker=WORKER)
    outs = [sink(outbox, str(n)) for n in range(3)]
    outs[0].write("0\n")
    await soon(lambda: scheduler.log("0"))
    outs[1].write("1\n")
    outs[2].status(S.RUNNING)
    await outbox.close(SECONDS)
    assert scheduler.log("1") == "1\n"
    assert scheduler.statuses("2") == [S.RUNNING]


async def test_a_run_that_floods_waits_for_room_and_the_others_do_not() -> None:
    scheduler, room = Scheduler(), asyncio.Event()
    asked: list[str] = []

    async def wait_for_room(job_id: str) -> bool:
        asked.append(job_id)
        if len(asked) == 1:
            raise OSError("no scheduler")
        await room.wait()
        return True

    outbox = Outbox(
        scheduler.send, interval_s=0.0, log_capacity=1 << 23, worker=WORKER, room=wait_for_room
    )
    flood, other = sink(outbox, "flood"), sink(outbox, "other")
    text = "x" * (6 << 20)
    flood.write(text)
    await soon(lambda: len(asked) == 2)
    assert 4 << 20 <= len(scheduler.log("flood")) < 6 << 20
    other.write("y\n")
    flood.progress({"current": 1})
    await soon(lambda: scheduler.log("other") == "y\n")
    await soon(lambda: any(e.progress for e in scheduler.events))
    assert len(scheduler.log("flood")) < 6 << 20
    assert asked == ["flood", "flood"]
    room.set()
    await soon(lambda: len(scheduler.log("flood")) == 6 << 20)
    flood.finish(S.SUCCESS)
    await soon(lambda: scheduler.statuses("flood"))
    assert scheduler.log("flood") == text
    await outbox.close(SECONDS)


async def test_the_end_of_a_run_waits_for_no_room_and_comes_in_parts() -> None:
    scheduler = Scheduler()

    async def no_room(job_id: str) -> bool:
        return False

    outbox = Outbox(
        scheduler.send, interval_s=0.0, log_capacity=1 << 23, worker=WORKER, room=no_room
    )
    out = sink(outbox)
    text = "".join(f"line {n}\n" for n in range(600_000))
    out.write(text)
    await in_thread(out.finish, S.ERROR)
    await soon(lambda: scheduler.statuses("a"))
    assert scheduler.log("a") == text
    assert all(len(e.log or "") <= 1 << 20 for e in scheduler.events)
    assert scheduler.events[-1].status == S.ERROR
    assert all(len(events) <= 2 for _, _, events in scheduler.batches)
    await outbox.close(SECONDS)


async def test_output_that_waits_for_room_is_sent_when_the_worker_closes() -> None:
    scheduler = Scheduler()
    asked = asyncio.Event()

    async def never(job_id: str) -> bool:
        asked.set()
        await asyncio.Event().wait()
        return True

    outbox = Outbox(scheduler.send, interval_s=0.0, log_capacity=1 << 23, worker=WORKER, room=never)
    sink(outbox).write("x" * (6 << 20))
    await asyncio.wait_for(asked.wait(), SECONDS)
    await outbox.close(SECONDS)
    assert len(scheduler.log("a")) == 6 << 20


async def test_output_that_is_forced_all_the_time_does_not_keep_the_sender_busy() -> None:
    scheduler = Scheduler()
    async with opened(scheduler, interval_s=A_WHILE) as outbox:
        out = sink(outbox)
        begun = time.monotonic()

        def flood() -> None:
            for n in range(20_000):
                out.progress({"current": n})
                out.flush()

        await in_thread(flood)
        elapsed = time.monotonic() - begun
        assert len(scheduler.batches) <= elapsed / run_sink._FLUSH_INTERVAL_S + 2


async def test_who_waits_does_not_wait_for_what_comes_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A busy sender rests for SECONDS, and at first not at all.
    for name, value in (("SPACING_S", SECONDS), ("REST_FACTOR", 1e6), ("BURST_BATCHES", 10)):
        monkeypatch.setattr(outbox_module, f"_{name}", value)
    scheduler = Scheduler()
    scheduler.takes = 0.005
    async with opened(scheduler, interval_s=A_WHILE) as outbox:
        busy, waits = sink(outbox, "a"), sink(outbox, "b")
        over = threading.Event()

        def speak() -> None:
            while not over.wait(0.001):
                busy.status(S.RUNNING)

        speaking = asyncio.create_task(asyncio.to_thread(speak))
        try:
            await soon(lambda: len(scheduler.batches) >= 10)
            begun = time.monotonic()
            for _ in range(5):
                assert await in_thread(waits.confirm, SECONDS)
            # Neither for the end of what is said, nor for the rest of a busy sender.
            assert time.monotonic() - begun < SECONDS
        finally:
            over.set()
            await speaking


async def test_a_busy_sender_rests_also_when_more_comes_while_it_sends() -> None:
    scheduler = Scheduler()
    scheduler.takes = 0.01
    async with opened(scheduler, interval_s=A_WHILE) as outbox:
        out = sink(outbox)

        def speak() -> None:
            for _ in range(40):
                out.status(S.RUNNING)
                time.sleep(0.005)
                out.status(S.RUNNING)
                time.sleep(0.02)

        begun = time.monotonic()
        await in_thread(speak)
        elapsed = time.monotonic() - begun
        most = outbox_module._BURST_BATCHES + elapsed / outbox_module._SPACING_S + 2
        assert len(scheduler.batches) <= most


async def test_closing_has_a_limit() -> None:
    scheduler = Scheduler()
    scheduler.gate.clear()
    outbox = Outbox(scheduler.send, interval_s=0.0, log_capacity=1 << 20, worker=WORKER)
    sink(outbox).write("x\n")
    await asyncio.wait_for(outbox.close(0.1), SECONDS)
    assert not [t for t in asyncio.all_tasks() if t.get_name() == "girder-dask outbox"]


async def test_an_outbox_with_nothing_to_say_closes_at_once() -> None:
    scheduler = Scheduler()
    outbox = Outbox(scheduler.send, interval_s=A_WHILE, log_capacity=1 << 20, worker=WORKER)
    await asyncio.wait_for(outbox.close(A_WHILE), SECONDS)
    assert scheduler.batches == []


async def test_a_run_that_writes_after_closing_is_not_hurt() -> None:
    scheduler = Scheduler()
    outbox = Outbox(scheduler.send, interval_s=0.0, log_capacity=1 << 20, worker=WORKER)
    out = sink(outbox)
    await outbox.close(SECONDS)
    thread = threading.Thread(target=lambda: (out.write("x\n"), out.finish(S.SUCCESS)))
    thread.start()
    await in_thread(thread.join, SECONDS)
    assert not thread.is_alive()


async def test_what_is_sent_of_several_jobs_is_kept_apart() -> None:
    scheduler = Scheduler()
    async with opened(scheduler) as outbox:
        outs = {name: sink(outbox, name) for name in "abc"}
        wanted: dict[str, str] = defaultdict(str)
        for n in range(300):
            name = "abc"[n % 3]
            outs[name].write(f"{n}\n")
            wanted[name] += f"{n}\n"
            if n % 50 == 0:
                await asyncio.sleep(0)
        for out in outs.values():
            out.finish(S.SUCCESS)
    assert {name: scheduler.log(name) for name in "abc"} == wanted
