"""DaskCluster in a real scheduler."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from distributed import CancelledError, Client, Future, Scheduler, Worker
from distributed.diagnostics.plugin import SchedulerPlugin

from girder_dask.protocol.messages import JobSpec
from girder_dask.protocol.names import ATTEMPT_ANNOTATION
from girder_dask.scheduler.dask_cluster import DaskCluster
from tests.support.deadline import soon

ran: list[str] = []


def run_job(spec: JobSpec, values: Any = None) -> Any:
    ran.append(spec.key)
    return [spec.id, values]


class Plugin(SchedulerPlugin):
    """Passes on what the dispatcher would, for the keys that are ``open``."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.cluster: DaskCluster
        self.open: set[str] = set()
        self.numbers: dict[str, Any] = {}  # those that workers were told, by keys

    def transition(self, key: Any, start: str, finish: str, *_args: Any, **_details: Any) -> None:
        if start == "released" and key in self.open:
            self.cluster.on_received(key)
        elif start == "released":
            self.cluster.on_received_late(key)
        if finish == "processing":
            annotations = self.scheduler.tasks[key].annotations or {}
            self.numbers[key] = annotations.get(ATTEMPT_ANNOTATION)
        if finish == "memory" and key in self.open:
            assert self.cluster.on_result(key) > 0

    def submit(self, job_id: str, values: dict[str, str] | None = None, **fields: Any) -> str:
        spec = JobSpec(id=job_id, attempt=1, task="m:count", **fields)
        self.open.add(spec.key)
        self.cluster.submit([spec], {job_id: values} if values else {})
        return spec.key

    def state(self, key: str) -> str | None:
        ts = self.scheduler.tasks.get(key)
        return None if ts is None else str(ts.state)


@contextlib.asynccontextmanager
async def site(*, connected: bool = True) -> AsyncIterator[Plugin]:
    ran.clear()
    async with Scheduler(port=0, dashboard_address=":0") as scheduler:
        plugin = Plugin(scheduler)
        scheduler.add_plugin(plugin)
        plugin.cluster = DaskCluster(scheduler, run_job)
        if connected:
            await plugin.cluster.connect()
        try:
            yield plugin
        finally:
            await plugin.cluster.close()


async def test_cluster_retains_a_result_until_it_is_released() -> None:
    async with site() as dask, Worker(dask.scheduler.address, nthreads=1):
        key = dask.submit("a")
        await soon(lambda: dask.state(key) == "memory")
        await soon(lambda: not dask.cluster.is_wanted(key))
        await asyncio.sleep(0.1)
        assert dask.state(key) == "memory"
        dask.cluster.release([key, "unknown"])
        await soon(lambda: dask.state(key) is None)


async def test_cluster_passes_results_of_dependencies() -> None:
    async with site() as dask, Worker(dask.scheduler.address, nthreads=1):
        a = dask.submit("a")
        await soon(lambda: dask.state(a) == "memory")
        b = dask.submit("b", {"a": a}, priority=3)
        await soon(lambda: dask.state(b) == "memory")
        async with Client(dask.scheduler.address, asynchronous=True, set_as_default=False) as c:
            future = Future(b, c)
            dask.cluster.pin(b, c.id)
            assert await future == ["b", {"a": ["a", None]}]
        assert dask.cluster.take_refused() == []


async def test_cluster_does_not_recompute_the_result_of_a_lost_worker() -> None:
    async with site() as dask:
        async with Worker(dask.scheduler.address, nthreads=1) as worker:
            key = dask.submit("a")
            await soon(lambda: dask.state(key) == "memory")
            await dask.scheduler.remove_worker(worker.address, stimulus_id="lost")
        assert dask.state(key) is None
        async with Worker(dask.scheduler.address, nthreads=1):
            other = dask.submit("b")
            await soon(lambda: dask.state(other) == "memory")
        assert ran == ["count-a-1", "count-b-1"]


async def test_take_refused_returns_a_job_whose_value_was_lost_in_flight() -> None:
    async with site() as dask, Worker(dask.scheduler.address, nthreads=1):
        a = dask.submit("a")
        await soon(lambda: dask.state(a) == "memory")
        dask.cluster.release([a])
        b = dask.submit("b", {"a": a})
        refused = await soon(dask.cluster.take_refused)
        assert refused == [b]
        assert dask.cluster.take_refused() == []
        assert ran == [a]


async def test_release_before_the_connection_prevents_the_run() -> None:
    async with site(connected=False) as dask, Worker(dask.scheduler.address, nthreads=1):
        a, b = dask.submit("a"), dask.submit("b")
        dask.cluster.release([a])
        await asyncio.sleep(0)
        await dask.cluster.connect()
        await soon(lambda: dask.state(b) == "memory")
        assert ran == [b]


async def test_release_in_flight_lets_dask_forget_the_task() -> None:
    async with site() as dask:
        a = dask.submit("a")
        dask.cluster.release([a])
        dask.open.clear()
        await soon(lambda: any(a == t.key for t in dask.scheduler.transition_log))
        await soon(lambda: dask.state(a) is None)


async def test_release_in_flight_prevents_the_run() -> None:
    async with site() as dask, Worker(dask.scheduler.address, nthreads=1):
        first = dask.submit("first")
        await soon(lambda: dask.state(first) == "memory")
        a, b = dask.submit("a"), dask.submit("b")
        assert dask.state(a) is None, "it is on its way"
        dask.open.discard(a)
        dask.cluster.release([a])
        await soon(lambda: dask.state(b) == "memory")
        await soon(lambda: dask.state(a) is None)
        assert dask.numbers == {first: None, a: 0, b: None}


async def test_connect_retries_after_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("girder_dask.scheduler.dask_cluster._CONNECT_DELAY_S", 0.01)
    failures = [OSError("refused"), ValueError("odd")]
    original = Client.__init__

    def fail_first(self: Any, *args: Any, **kwargs: Any) -> None:
        if failures:
            raise failures.pop()
        original(self, *args, **kwargs)

    monkeypatch.setattr(Client, "__init__", fail_first)
    async with site() as dask, Worker(dask.scheduler.address, nthreads=1):
        key = dask.submit("a")
        await soon(lambda: dask.state(key) == "memory")
    assert failures == []


async def test_connection_keeps_no_message_log_of_jobs() -> None:
    async with site() as dask, Worker(dask.scheduler.address, nthreads=1):
        for n in range(5):
            key = dask.submit(str(n))
            await soon(lambda key=key: dask.state(key) == "memory")
        client = dask.cluster._client
        assert client is not None
        assert len(client.scheduler_comm.recent_message_log) <= 1


async def test_pin_works_before_and_after_dask_has_the_key() -> None:
    async with site() as dask:
        address = dask.scheduler.address
        async with Client(address, asynchronous=True, set_as_default=False) as client:
            dask.cluster.pin("count-a-1", client.id)
            dask.cluster.pin("count-a-1", "a client that is gone")
            early = Future("count-a-1", client)
            a, b = dask.submit("a"), dask.submit("b")
            await soon(lambda: dask.state(b) is not None)
            late = Future(b, client)
            dask.cluster.pin(b, client.id)
            dask.cluster.pin(b, "a client that is gone")
            assert "a client that is gone" not in dask.scheduler.clients
            async with Worker(address, nthreads=1):
                assert await early == ["a", None]
                assert await late == ["b", None]
                dask.cluster.release([a, b])
                await asyncio.sleep(0.05)
                assert dask.state(a) == dask.state(b) == "memory"
                assert dask.cluster.is_wanted(a)
                del early, late
                await soon(lambda: dask.state(a) is None and dask.state(b) is None)


async def test_release_cancels_the_future_of_a_pinned_job_that_never_ran() -> None:
    async with (
        site() as dask,
        Client(dask.scheduler.address, asynchronous=True, set_as_default=False) as client,
    ):
        future = Future("count-a-1", client)
        dask.cluster.pin("count-a-1", client.id)
        dask.cluster.release(["count-a-1"])
        with pytest.raises(CancelledError):
            await asyncio.wait_for(future.result(), 10)


async def test_release_sets_attempt_zero_before_dask_can_assign_again() -> None:
    async with site() as dask:
        address = dask.scheduler.address
        async with Client(address, asynchronous=True, set_as_default=False) as client:
            dask.cluster.pin("count-a-1", client.id)
            key = dask.submit("a")
            await soon(lambda: dask.state(key) is not None)
            dask.cluster.set_attempt(key, 3)
            assert dask.scheduler.tasks[key].annotations[ATTEMPT_ANNOTATION] == 3
            dask.cluster.release([key, "unknown"])
            assert dask.scheduler.tasks[key].annotations[ATTEMPT_ANNOTATION] == 0


async def test_unstarted_is_empty_if_the_worker_does_not_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def unstarted() -> list[str]:
        raise LookupError("no tasks")

    async with site() as dask, Worker(dask.scheduler.address, nthreads=1) as worker:
        worker.handlers["girder_not_begun"] = unstarted
        assert await dask.cluster.unstarted(worker.address) == ()
    assert "did not report what it has not started" in caplog.text


async def test_cancel_runs_logs_a_worker_that_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def cancel(keys: list[str]) -> list[str]:
        raise LookupError(f"no {keys}")

    answers: list[str] = []
    async with site() as dask, Worker(dask.scheduler.address, nthreads=1) as worker:
        worker.handlers["girder_cancel"] = cancel
        dask.cluster.cancel_runs(worker.address, ["a"], lambda key, _worker: answers.append(key))
        await soon(lambda: not dask.cluster._calls)
    assert f"Worker {worker.address} could not be asked to stop a: " in caplog.text
    assert answers == []


async def test_unrunnable_names_keys_that_no_worker_can_run() -> None:
    none = "no worker is connected to the Dask scheduler"
    async with site() as dask:
        keys = [dask.submit(str(n)) for n in range(3)]
        gpu = dask.submit("gpu", resources={"gpu": 2, "disk": 0.5})
        await soon(lambda: len(dask.cluster.unrunnable()) == 4)
        assert dask.cluster.unrunnable() == dict.fromkeys([*keys, gpu], none)
        async with Worker(dask.scheduler.address, nthreads=1, resources={"gpu": 1, "disk": 1}) as w:
            await soon(lambda: all(dask.state(key) == "memory" for key in keys))
            why = "the one worker does not have the resources disk=0.5 and gpu=2"
            assert dask.cluster.unrunnable() == {gpu: f"{why} (dask worker --resources)"}
            async with Worker(dask.scheduler.address, nthreads=1):
                why = why.replace("the one worker does not have", "none of the 2 workers has")
                assert dask.cluster.unrunnable() == {gpu: f"{why} (dask worker --resources)"}
            dask.scheduler.handle_worker_status_change("paused", w.address, "test")
            late = dask.submit("late")
            await soon(lambda: late in dask.cluster.unrunnable())
            assert dask.cluster.unrunnable()[late].startswith(
                "no worker that could run it takes tasks"
            )
            dask.scheduler.handle_worker_status_change("running", w.address, "test")
            await soon(lambda: dask.state(late) == "memory")
            assert list(dask.cluster.unrunnable()) == [gpu]


async def test_unrunnable_leaves_out_keys_that_wait_for_a_thread() -> None:
    async with site() as dask, Worker(dask.scheduler.address, nthreads=1):
        for n in range(50):
            dask.submit(str(n))
        await soon(lambda: dask.scheduler.queued)
        assert dask.cluster.unrunnable() == {}
