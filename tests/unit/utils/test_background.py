"""No loop in the background ends because a step of it fails: it says so, and goes on.

Each place is driven with an error that is injected once into what it does.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import girder_dask
from girder_dask.errors import CancelInterrupt
from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobSpec
from girder_dask.protocol.plain_values import pack_message
from girder_dask.utils.background import Guard, log_failure, repeat
from girder_dask.utils.backoff import Backoff
from girder_dask.worker import cancellation
from girder_dask.worker import plugin as hooks
from girder_dask.worker.interruption import soft_time_limit, thread_interrupter
from girder_dask.worker.isolation import fork_server_supervisor
from girder_dask.worker.isolation.child import _Child
from girder_dask.worker.isolation.process_sink import ProcessSink
from girder_dask.worker.job_log import process_log, selector_thread
from girder_dask.worker.job_log.log import JobLog
from girder_dask.worker.job_log.process_log import ProcessLog
from girder_dask.worker.outbox import Outbox
from girder_dask.worker.termination import TerminationSignals
from tests.support.deadline import SECONDS, soon, until
from tests.support.injected import Fails, Injected, inject, told

logger = logging.getLogger("girder_dask.tests")


def spec(job_id: str = "a") -> JobSpec:
    return JobSpec(id=job_id, attempt=1, task="m:f")


# -- the mechanism --------------------------------------------------------------------------


def test_an_error_is_told_once_until_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(logger, "The loop", first_delay_s=1.0, max_delay_s=3.0, jitter=0.0)
    pauses = []
    for text in ("one", "one", "one", "two"):
        with guard:
            raise Injected(text)
        pauses.append(guard.delay_s)
    assert pauses == [1.0, 2.0, 3.0, 3.0]
    assert guard.failed
    with caplog.at_level(logging.INFO), guard:
        pass
    assert (guard.failed, guard.delay_s) == (False, 0.0)
    with guard:
        raise Injected("two")
    failed = "The loop failed and continues: Injected: "
    assert told(caplog) == [failed + "one", failed + "two", failed + "two"]
    assert "The loop works again" in caplog.messages


def test_an_outage_is_told_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with Guard(logger, "The loop", expected=(OSError,)):
        raise ConnectionError("away")
    (record,) = caplog.records
    assert (record.levelno, record.exc_info) == (logging.WARNING, None)
    assert record.getMessage() == "The loop failed and continues: ConnectionError: away"


@pytest.mark.parametrize(
    "end", [asyncio.CancelledError, CancelInterrupt, SystemExit, KeyboardInterrupt]
)
def test_what_ends_a_loop_ends_it(end: type[BaseException]) -> None:
    with pytest.raises(end), Guard(logger, "The loop"):
        raise end


def test_neither_the_text_of_an_error_nor_its_log_ends_a_loop() -> None:
    class Nameless(Exception):
        def __str__(self) -> str:
            raise Injected

    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise Injected(record.getMessage())

    guard, broken = Guard(logger, "The loop"), Broken()
    logger.addHandler(broken)
    try:
        for error in (Nameless(), Injected("for this test")):
            with guard:
                raise error
            assert guard.failed
    finally:
        logger.removeHandler(broken)


def test_a_task_that_nobody_awaits_tells_its_error(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise Injected("for this test")

    async def main() -> list[asyncio.Task[Any]]:
        tasks = [asyncio.create_task(work) for work in (fail(), asyncio.sleep(60))]
        for task in tasks:
            log_failure(task, logger, "The task")
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return tasks

    kept = asyncio.run(main())  # which keeps asyncio from telling it
    assert told(caplog) == ["The task failed: Injected: for this test"]
    assert len(kept) == 2


async def test_a_repeated_step_sets_the_pause_and_no_error_ends_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await real(0)

    results = iter([7.0, None, Injected("one"), Injected("one"), None, 0.0])

    async def step() -> float | None:
        result = next(results, None)
        if isinstance(result, Exception):
            raise result
        if len(pauses) == 5:
            task.cancel()
        return result

    monkeypatch.setattr(asyncio, "sleep", sleep)
    guard = Guard(logger, "The step", first_delay_s=4.0, max_delay_s=9.0, jitter=0.0)
    task = asyncio.create_task(repeat(step, guard, interval_s=5.0))
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert pauses == [7.0, 5.0, 5.0, 8.0, 5.0, 0.0]
    assert told(caplog) == ["The step failed and continues: Injected: one"]


#: The modules that begin something in the background. Whoever adds one guards its steps (or has it
#: ``watched``), and adds a place to ``PLACES`` here or in ``test_background_services.py``.
IN_THE_BACKGROUND = {
    "client/job_card",
    "worker/isolation/child",
    "worker/isolation/process_sink",  # on the timers of the selector thread
    "scheduler/dask_cluster",
    "client/futures",
    "plugin/scheduler_link",
    "worker/interruption/soft_time_limit",
    "worker/interruption/thread_interrupter",
    "worker/job_log/log",  # on the timers of the selector thread
    "worker/job_log/process_log",  # on the timers of the selector thread
    "worker/job_log/selector_thread",
    "worker/back_pressure",
    "worker/outbox",
    "plugin/notify/redis_publisher",
    "plugin/map_cancellation/canceler",
    "plugin/memory_trimming",
    "plugin/metrics/flusher",
    "plugin/store/maps/count_throttle",
    "plugin/retention_sweeper",
    "plugin/token_sweeper",
    "plugin/store/unreachable",
    "scheduler/event_recorder",
    "scheduler/plugin",
    "scheduler/worker_rpc",
    "worker/termination",
    "worker/isolation/fork_server_supervisor",
    "worker/cancellation",
    "worker/plugin",
    "worker/celery_imports",
    "worker/nanny_plugin",
    "utils/working_directory",  # which joins what it begins
}
BEGINNINGS = {
    *("create_task", "ensure_future", "run_coroutine_threadsafe", "PeriodicCallback"),
    *("call_later", "call_at", "call_soon", "call_soon_threadsafe", "Thread", "Timer"),
    "start_thread_once",
}


def test_everything_in_the_background_has_its_place_here() -> None:
    root = Path(girder_dask.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        names = {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls}
        if names & BEGINNINGS:
            found.add(str(path.relative_to(root).with_suffix("")))
    # What they begin, scheduler/dask_cluster guards, and whoever calls start_thread_once.
    passing_on = {"scheduler/result_retention", "scheduler/job_transitions", "utils/background"}
    assert found - passing_on == IN_THE_BACKGROUND


# -- the places -----------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def an_outbox(**options: Any) -> Any:
    sent: list[dict[str, Any]] = []

    async def send(_name: str, _batch: int, events: list[dict[str, Any]]) -> list[str]:
        sent.extend(events)
        return [event["run"] for event in events]

    outbox = Outbox(send, interval_s=0.0, log_capacity=1 << 20, worker="tcp://w:1", **options)
    try:
        yield outbox, sent
    finally:
        await outbox.close(SECONDS)


async def outbox_on_dropped() -> None:
    dropped = Fails()
    async with an_outbox(on_dropped=dropped) as (outbox, sent):
        for count in (1, 2):
            outbox.open(spec()).status(JobStatus.RUNNING)
            await asyncio.wait_for(outbox.flushed(), SECONDS)
            assert (len(sent), dropped.calls) == (count, count)


async def outbox_output() -> None:
    async with an_outbox() as (outbox, sent):
        sinks = [outbox.open(spec(job_id)) for job_id in "ab"]
        inject(sinks[0], "take_event")
        for sink in sinks:
            sink.write("text\n")
        await asyncio.wait_for(outbox.flushed(), SECONDS)
        assert [event["id"] for event in sent] == ["b"]
        sinks[0].write("more\n")
        sinks[0].finish(JobStatus.SUCCESS)
        await soon(lambda: len(sent) == 2)
        assert sent[1]["log"] == "text\nmore\n"


async def outbox_loop() -> None:
    async with an_outbox() as (outbox, sent):
        inject(outbox, "_gather")
        outbox.open(spec()).status(JobStatus.RUNNING)
        await asyncio.wait_for(outbox.flushed(), SECONDS)
        assert len(sent) == 1


async def outbox_room() -> None:
    async def has_room(_job_id: str) -> bool:
        return True

    room = Fails(has_room)
    async with an_outbox(room=room) as (outbox, sent):
        sink = outbox.open(spec())
        for _ in range(5):
            sink.write("x" * (1 << 20))
            await asyncio.wait_for(outbox.flushed(), SECONDS)
        await soon(lambda: sum(len(event["log"]) for event in sent) == 5 << 20)
        assert room.calls == 2


class StubRun:
    """A run that ends when it has been interrupted."""

    def __init__(self) -> None:
        self.id, self.key, self.spec, self.stuck_reason = "a-1", "a", spec(), "it goes on"
        self.runs: dict[str, Any] = {self.id: self}

    def canceller(self) -> cancellation.RunCanceller:
        return cancellation.RunCanceller(self.runs, {}, 0.0)

    def interrupt(self) -> bool:
        self.runs.clear()
        return True

    def expire(self) -> bool:
        return True

    def cancel(self) -> None:
        pass

    drop = kill_processes = cancel

    def write(self, text: str) -> None:
        pass


async def canceller_cancel() -> None:
    run = StubRun()
    inject(run, "cancel")
    run.canceller().cancel(["a"])
    await soon(lambda: not run.runs)


async def canceller_drop() -> None:
    run = StubRun()
    inject(run, "drop")
    run.canceller().drop([run.id])
    await soon(lambda: not run.runs)


async def canceller_interrupt() -> None:
    run = StubRun()
    inject(run, "interrupt")
    run.canceller().cancel(["a"])
    await soon(lambda: not run.runs)


async def canceller_complaint() -> None:
    run = StubRun()
    inject(run, "write")
    calls: list[None] = []

    def interrupt() -> bool:
        calls.append(None)
        if len(calls) == 2:
            run.runs.clear()
        return True

    run.interrupt = interrupt  # type: ignore[method-assign]
    run.canceller().cancel(["a"])
    await soon(lambda: not run.runs)


async def canceller_limit() -> None:
    run = StubRun()
    inject(run, "expire")
    run.canceller().limit(run, 0.0)  # type: ignore[arg-type]
    await soon(lambda: not run.runs)


async def canceller_give_up() -> None:
    run = StubRun()
    run.interrupt = lambda: None  # type: ignore[method-assign]
    given_up = Fails(lambda _run: run.runs.clear())
    cancellation.RunCanceller(run.runs, {}, 0.0, 0.0, given_up).cancel(["a"])
    await soon(lambda: given_up.calls == 2)
    await soon(lambda: not run.runs)


async def outbox_event() -> None:
    async with an_outbox() as (outbox, sent):
        outbox.post(SimpleNamespace(to_wire=Fails(), log=None, result=None))
        outbox.open(spec()).status(JobStatus.RUNNING)
        await asyncio.wait_for(outbox.flushed(), SECONDS)
        assert [event["id"] for event in sent] == ["a"]


async def signal_leaving() -> None:
    heard = asyncio.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: heard.set())
    try:
        TerminationSignals(Fails(), child=False)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(heard.wait(), SECONDS)
    finally:
        signal.signal(signal.SIGTERM, before)


async def worker_restart() -> None:
    closed = asyncio.Event()

    async def close(**_more: Any) -> None:
        closed.set()

    async def leave(**_more: Any) -> None:
        pass

    plugin = hooks.GirderWorkerPlugin()
    scheduler = SimpleNamespace(girder_leave=leave)
    plugin._worker = SimpleNamespace(  # type: ignore[assignment]
        address="tcp://w:1", nanny=None, close=close, scheduler=scheduler
    )
    run = SimpleNamespace(spec=spec(), write=Fails(), give_up=lambda: None)
    plugin._give_up(run)  # type: ignore[arg-type]
    await asyncio.wait_for(closed.wait(), SECONDS)


async def fork_server_supervision() -> None:
    kept = fork_server_supervisor.ForkServerSupervisor()
    kept._serve = serve = Fails(lambda: False)  # type: ignore[method-assign]
    kept.start()
    await soon(lambda: serve.calls == 2)
    assert kept.wait(SECONDS) is None
    kept.close()


async def selector_select() -> None:
    own = selector_thread.SelectorThread()
    own.call_later(0.0, lambda: None)
    select = inject(own._selector, "select")
    for count in (1, 2):
        rung = threading.Event()
        own.call_later(0.0, rung.set)
        await soon(rung.is_set)
        await soon(lambda count=count: select.calls >= count)


async def selector_timer() -> None:
    own, rung = selector_thread.SelectorThread(), threading.Event()
    own.call_later(0.0, Fails())
    own.call_later(0.0, rung.set)
    await soon(rung.is_set)


async def selector_pipe() -> None:
    own = selector_thread.SelectorThread()
    read, write = os.pipe()
    heard: list[bytes] = []
    callback = Fails(lambda: heard.append(os.read(read, 100)))
    own.watch(read, callback)
    os.write(write, b"text")
    await soon(lambda: heard == [b"text"])
    assert callback.calls == 2
    own.unwatch(read)
    os.close(read)
    os.close(write)


async def selector_pipe_closed_meanwhile() -> None:
    own = selector_thread.SelectorThread()
    read, write = os.pipe()
    callback = Fails()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selector_thread, "_RETRY_DELAY_S", 60.0)
        own.watch(read, callback)
        os.write(write, b"text")
        await soon(lambda: read in own._paused)
    own.unwatch(read)
    assert read not in own._paused
    own._watch_again(read)
    assert read not in own._selector.get_map()
    os.close(read)
    os.close(write)


async def map_cancellation() -> None:
    from girder_dask.plugin.map_cancellation import canceler as map_canceler

    class Enough(BaseException):
        """Ends the thread, which has no other end."""

    step = Fails()

    def wait(_seconds: float) -> None:
        if step.calls == 2:
            raise Enough

    work = SimpleNamespace(wait=wait, set=lambda: None, clear=lambda: None)
    canceler: Any = map_canceler.MapCanceler(SimpleNamespace())  # type: ignore[arg-type]
    canceler.cancel_all = step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(map_canceler, "large_maps", SimpleNamespace(work=work))
        with pytest.raises(Enough):
            canceler._run()


async def thread_interruption() -> None:
    lock = threading.RLock()
    interrupter = thread_interrupter.ThreadInterrupter(lambda _ident: False, lock)
    strike = inject(interrupter, "_interrupt_left")
    left = {1: None}
    thread = threading.Thread(target=interrupter._interrupt_later, args=(left, CancelInterrupt))
    thread.start()
    await asyncio.to_thread(thread.join, SECONDS)
    assert (left, strike.calls) == ({}, 2)


async def child_listener() -> None:
    worker, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with worker, control:
        child = _Child(None, control, -1, ProcessLog())  # type: ignore[arg-type]
        inject(child, "_on_message")
        thread = threading.Thread(target=child._receive)
        thread.start()
        for kind in ("cancel", "run"):
            worker.send(pack_message(kind, None))
        await soon(child._inputs.is_set)
        worker.close()
        await asyncio.to_thread(thread.join, SECONDS)


async def job_log_timer() -> None:
    log = JobLog()
    retry = inject(log._buffer.lines, "retry")
    for count in (1, 2):
        log._set_timer()
        await soon(lambda count=count: retry.calls == count)
    log.close()


async def process_log_timer() -> None:
    read, write = os.pipe()
    log, is_in_write = ProcessLog(), Fails(lambda _thread: False)
    before, process_log.is_in_write = process_log.is_in_write, is_in_write  # type: ignore[assignment]
    try:
        log._unended[0] = write, b"text", 0.0
        for count in (1, 2):
            log._set_timer()
            await soon(lambda count=count: is_in_write.calls == count)
        assert os.read(read, 100) == b"text"
    finally:
        process_log.is_in_write = before
        os.close(read)
        os.close(write)


async def process_sink_timer() -> None:
    sent: list[Any] = []
    send = Fails(lambda kind, changes: sent.append((kind, changes)))
    sink = ProcessSink(send, ProcessLog())
    for count in (1, 2):
        sink._next_progress = time.monotonic() + 0.3
        sink.progress({"current": count})
        await soon(lambda count=count: send.calls == count)
    assert sent == [("progress", {"current": 2})]


class Reached(Exception):
    """The exception at a soft time limit."""


async def soft_time_limit_expiry() -> None:
    limit = soft_time_limit.SoftTimeLimit(Reached)
    inject(limit._interrupter, "interrupt")
    reached = False
    try:
        for seconds in (0.5, SECONDS):
            threading.Thread(target=limit.expire).start()
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                pass
    except Reached:
        reached = True
    limit.end()
    assert reached


PLACES = [
    outbox_on_dropped,
    outbox_output,
    outbox_loop,
    outbox_event,
    outbox_room,
    canceller_cancel,
    canceller_drop,
    canceller_interrupt,
    canceller_complaint,
    canceller_limit,
    canceller_give_up,
    signal_leaving,
    worker_restart,
    fork_server_supervision,
    selector_select,
    selector_timer,
    selector_pipe,
    selector_pipe_closed_meanwhile,
    job_log_timer,
    process_log_timer,
    process_sink_timer,
    soft_time_limit_expiry,
    map_cancellation,
    thread_interruption,
    child_listener,
]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server_supervisor, "_RESTART_BACKOFF", Backoff(0.01, 0.01))
    monkeypatch.setattr(selector_thread, "_RETRY_DELAY_S", 0.05)
    monkeypatch.setattr(cancellation, "_MIN_INTERRUPT_INTERVAL_S", 0.01)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: str(place.__name__))
def test_an_error_is_told_and_the_next_step_happens(
    place: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.run(place())
    until(lambda: told(caplog))
    assert len(told(caplog)) == 1
