"""DaskCluster in a real scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from distributed import CancelledError, Client, Future, Scheduler, Worker, secede
from distributed.diagnostics.graph_layout import GraphLayout
from distributed.diagnostics.plugin import SchedulerPlugin

from girder_dask.protocol.messages import JobSpec
from girder_dask.protocol.names import ATTEMPT_ANNOTATION
from girder_dask.scheduler import dask_cluster
from girder_dask.scheduler.adaptive import AdaptiveTarget
from girder_dask.scheduler.dask_cluster import DaskCluster
from tests.support.deadline import soon

ran: list[str] = []
gate = threading.Event()


def run_job(spec: JobSpec, values: Any = None) -> Any:
    ran.append(spec.key)
    if spec.task == "m:waits":
        secede()
    if spec.task != "m:count":
        gate.wait(20)
    return [spec.id, values]


def run_other(name: str) -> None:
    ran.append(name)


class Plugin(SchedulerPlugin):
    """Passes on what the dispatcher would, for the keys that are ``open``."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.cluster: DaskCluster
        self.open: set[str] = set()
        self.numbers: dict[str, Any] = {}  # those that workers were told, by keys

    def transition(self, key: Any, _start: str, finish: str, *_args: Any, **_more: Any) -> None:
        if finish in ("memory", "erred", "forgotten"):
            self.cluster.on_ended(key)
        if finish == "processing":
            annotations = self.scheduler.tasks[key].annotations or {}
            self.numbers[key] = annotations.get(ATTEMPT_ANNOTATION)
        if finish == "memory" and key in self.open:
            assert self.cluster.on_result(key) > 0

    def add_worker(self, **_details: Any) -> None:
        self.cluster.update_window()

    def submit(self, job_id: str, values: dict[str, str] | None = None, **fields: Any) -> str:
        spec = JobSpec(id=job_id, attempt=1, **{"task": "m:count", **fields})
        self.open.add(spec.key)
        self.cluster.submit([spec], {job_id: values} if values else {})
        return spec.key

    def state(self, key: str) -> str | None:
        ts = self.scheduler.tasks.get(key)
        return None if ts is None else str(ts.state)


@contextlib.asynccontextmanager
async def site(jobs_per_thread: float | None = None) -> AsyncIterator[Plugin]:
    ran.clear()
    async with Scheduler(port=0, dashboard_address=":0") as scheduler:
        plugin = Plugin(scheduler)
        scheduler.add_plugin(plugin)
        plugin.cluster = DaskCluster(scheduler, run_job, jobs_per_thread)
        yield plugin


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


async def test_job_runs_without_a_value_that_was_lost() -> None:
    async with site() as dask, Worker(dask.scheduler.address, nthreads=1):
        a, lost = dask.submit("a"), "count-lost-1"
        await soon(lambda: dask.state(a) == "memory")
        b = dask.submit("b", {"a": a, "lost": lost})
        await soon(lambda: dask.state(b) == "memory")
        async with Client(dask.scheduler.address, asynchronous=True, set_as_default=False) as c:
            dask.cluster.pin(b, c.id)
            assert await Future(b, c) == ["b", {"a": ["a", None]}]


async def test_release_in_the_same_moment_prevents_the_run() -> None:
    async with site() as dask, Worker(dask.scheduler.address, nthreads=1):
        a, b = dask.submit("a"), dask.submit("b")
        dask.cluster.release([a])
        await soon(lambda: dask.state(b) == "memory")
        assert ran == [b]
        assert dask.state(a) is None


async def test_release_prevents_the_run_of_an_assigned_task() -> None:
    async with site() as dask, Worker(dask.scheduler.address, nthreads=1):
        first = dask.submit("first")
        await soon(lambda: dask.state(first) == "memory")
        a = dask.submit("a")
        await asyncio.sleep(0)
        assert dask.state(a) == "processing"
        dask.cluster.release([a])
        await soon(lambda: dask.state(a) is None)
        assert dask.cluster.assigned_to(a) is None


async def test_submission_has_no_client() -> None:
    async with site() as dask, Worker(dask.scheduler.address, nthreads=1):
        key = dask.submit("a")
        await soon(lambda: dask.state(key) == "memory")
        assert dask.scheduler.client_comms.keys() <= {"fire-and-forget"}


async def test_submission_keeps_the_order_of_priorities_and_of_arrival() -> None:
    async with (
        site() as dask,
        Client(dask.scheduler.address, asynchronous=True, set_as_default=False) as client,
    ):
        earlier = [client.submit(run_other, "client-0")]
        await soon(lambda: dask.scheduler.tasks)
        dask.submit("a"), dask.submit("b"), dask.submit("high", priority=1)
        dask.submit("low", priority=-1)
        await soon(lambda: len(dask.scheduler.tasks) == 5)
        await asyncio.sleep(0.11)  # until Dask no longer counts tasks as submitted together
        later = [client.submit(run_other, "client-1")]
        await soon(lambda: len(dask.scheduler.tasks) == 6)
        async with Worker(dask.scheduler.address, nthreads=1):
            await client.gather([*earlier, *later])
            await soon(lambda: len(ran) == 6)
    order = ["high", "client-0", "a", "b", "client-1", "low"]
    assert ran == [name if "client" in name else f"count-{name}-1" for name in order]


async def test_submission_spreads_few_jobs_over_all_workers() -> None:
    async with site() as dask:
        address = dask.scheduler.address
        async with Worker(address, nthreads=1) as one, Worker(address, nthreads=1) as two:
            gate.clear()
            keys = [dask.submit(str(n), task="m:held") for n in range(4)]
            await soon(lambda: len(ran) == 2)
            places = [dask.cluster.assigned_to(key) for key in keys]
            assert {one.address, two.address} <= set(places)
            gate.set()
            await soon(lambda: all(dask.state(key) == "memory" for key in keys))


@pytest.mark.parametrize("where", ["scheduler", "plugin"])
async def test_submission_shows_in_what_dask_tells_of_tasks(where: str) -> None:
    async with site() as dask, Worker(dask.scheduler.address, nthreads=1):
        graph = GraphLayout(dask.scheduler)
        dask.scheduler.add_plugin(graph)
        a = dask.submit("a")
        await soon(lambda: dask.state(a) == "memory")
        b = dask.submit("b", {"a": a})
        await soon(lambda: dask.state(b) == "memory")
        if where == "plugin":
            assert graph.x[a] < graph.x[b]
        else:
            computation = dask.scheduler.computations[0]
            assert {group.name for group in computation.groups} == {"count-a"}
            spans = dask.scheduler.extensions["spans"].spans
            assert {ts.group.span_id for ts in dask.scheduler.tasks.values()} <= spans.keys()


async def test_submission_leaves_nothing_in_what_dask_keeps_for_ever() -> None:
    async with site() as dask, Worker(dask.scheduler.address, nthreads=1) as worker:
        known = []
        for n in range(4):
            key = dask.submit(f"{n:024x}")  # as long as an id, so all are of one group
            await soon(lambda key=key: dask.state(key) == "memory")
            dask.cluster.release([key])
            await soon(lambda key=key: dask.state(key) is None)
            assert not dask.scheduler.task_groups
            spans = dask.scheduler.extensions["spans"]
            groups = sum(len(span.groups) for span in spans.spans.values())
            known.append((list(spans.spans), groups))
        assert known == [(["girder_dask"], 0)] * 4
        keys = [name for name in worker.digests_total if isinstance(name, tuple)]
        assert {name[1] for name in keys if name[0] == "execute"} == {"girder_dask"}


async def test_submission_leaves_the_group_of_others_in_their_span() -> None:
    async with (
        site() as dask,
        Worker(dask.scheduler.address, nthreads=1),
        Client(dask.scheduler.address, asynchronous=True, set_as_default=False) as client,
    ):
        future = client.submit(run_other, "x", key=f"count-{7:024x}-1")
        await future
        (span,) = dask.scheduler.extensions["spans"].spans.values()
        key = dask.submit(f"{8:024x}")
        await soon(lambda: dask.state(key) == "memory")
        assert span.name == ("default",)
        assert {group.name for group in span.groups} == {"count"}


async def test_computation_has_a_bounded_number_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "_MAX_GROUPS", 2)
    async with site() as dask:
        for n in range(5):
            key = dask.submit(f"{n:024x}", task=f"m:f{n}")
            await soon(lambda key=key: dask.state(key))
        groups = [[g.name for g in each.groups] for each in dask.scheduler.computations]
        assert sorted(map(len, groups)) == [1, 2, 2]


# -- the window ---------------------------------------------------------------------------------


async def test_window_gives_dask_a_few_jobs_for_each_thread() -> None:
    gate.clear()
    async with site(3) as dask:
        keys = [dask.submit(f"{n:02}", task="m:held") for n in range(20)]
        await soon(lambda: dask.scheduler.tasks)
        assert list(dask.scheduler.tasks) == keys[:1], "without a worker"
        async with Worker(dask.scheduler.address, nthreads=2):
            await soon(lambda: list(dask.scheduler.tasks) == keys[:6])
            async with Worker(dask.scheduler.address, nthreads=1):
                await soon(lambda: list(dask.scheduler.tasks) == keys[:9])
                dask.cluster.release(keys[9:11])
                gate.set()
                await soon(lambda: all(dask.state(key) == "memory" for key in keys[11:]))
        assert sorted(ran) == keys[:9] + keys[11:]


async def test_window_has_as_many_jobs_as_the_resources_of_workers_allow() -> None:
    gate.clear()
    async with site(4) as dask:
        address = dask.scheduler.address

        def submit(name: str, **resources: float) -> list[str]:
            return [dask.submit(f"{name}{n}", task="m:held", resources=resources) for n in range(9)]

        gpus, parts = submit("gpu", gpu=1), submit("part", gpu=1, disk=0.1)
        queue, plain = submit("queue", queue=1), submit("plain")
        async with (
            Worker(address, nthreads=1, resources={"gpu": 2, "disk": 0.3}),
            Worker(address, nthreads=1, resources={"queue": 1e9}),
        ):
            await soon(lambda: len(dask.scheduler.tasks) == 2 + 2 + 4 + 8)
            found = {*gpus[:2], *parts[:2], *queue[:4], *plain[:8]}
            assert set(dask.scheduler.tasks) == found
            gate.set()
            every = [*gpus, *parts, *queue, *plain]
            await soon(lambda: all(dask.state(key) == "memory" for key in every))


async def test_window_does_not_count_tasks_that_have_left_their_threads() -> None:
    gate.clear()
    async with site(1) as dask, Worker(dask.scheduler.address, nthreads=1):
        parent = dask.submit("parent", task="m:waits")
        await soon(lambda: parent in ran)
        child = dask.submit("child")
        await soon(lambda: any(ws.long_running for ws in dask.scheduler.workers.values()))
        dask.cluster.update_window()
        await soon(lambda: dask.state(child) == "memory")
        gate.set()
        await soon(lambda: dask.state(parent) == "memory")


async def test_window_lets_a_job_of_higher_priority_pass() -> None:
    gate.clear()
    async with site(2) as dask, Worker(dask.scheduler.address, nthreads=1):
        keys = [dask.submit(str(n), task="m:held") for n in range(5)]
        await soon(lambda: ran)
        high = dask.submit("high", priority=1)
        await soon(lambda: dask.state(high))
        gate.set()
        await soon(lambda: all(dask.state(key) == "memory" for key in [*keys, high]))
        assert ran.index(high) <= 2, "after the one that ran and the one that its worker had"


async def test_unrunnable_names_jobs_that_wait_behind_the_window() -> None:
    async with site(1) as dask:
        keys = [dask.submit(str(n)) for n in range(3)]
        gpus = [dask.submit(f"gpu{n}", resources={"gpu": 1}) for n in range(3)]
        await soon(lambda: len(dask.scheduler.tasks) == 2)
        none = "no worker is connected to the Dask scheduler"
        assert dask.cluster.unrunnable() == dict.fromkeys([*keys, *gpus], none)
        async with Worker(dask.scheduler.address, nthreads=1):
            await soon(lambda: all(dask.state(key) == "memory" for key in keys))
            why = "the one worker does not have the resources gpu=1 (dask worker --resources)"
            assert dask.cluster.unrunnable() == dict.fromkeys(gpus, why)


@pytest.mark.parametrize("workers", [0, 1, 2])
async def test_adaptive_target_counts_jobs_that_wait(workers: int) -> None:
    """As many workers as if Dask had all jobs."""
    targets = []
    for jobs_per_thread in (None, 2):
        gate.clear()
        async with site(jobs_per_thread) as dask, contextlib.AsyncExitStack() as stack:
            AdaptiveTarget(dask.scheduler, dask.cluster.window).install()
            for _ in range(workers):
                await stack.enter_async_context(Worker(dask.scheduler.address, nthreads=2))
            for n in range(300):
                dask.submit(str(n), task="m:held")
            await soon(lambda: dask.scheduler.tasks)
            assert (len(dask.scheduler.tasks) == 300) == (jobs_per_thread is None)
            target = dask.scheduler.handlers["adaptive_target"]
            targets.append([target(), target("100 s"), dask.scheduler.adaptive_target("1 ms")])
            gate.set()
            if workers:
                await soon(lambda: len(ran) == 300)
    assert targets[0] == targets[1]
    assert max(targets[0]) >= 75


async def test_adaptive_targets_count_workers_with_a_gpu_and_their_jobs_apart() -> None:
    gate.clear()
    async with site(1) as dask:
        target = AdaptiveTarget(dask.scheduler, dask.cluster.window)
        address = dask.scheduler.address
        for n in range(40):
            dask.submit(f"cpu{n}", task="m:held")
        assert target.targets() == {False: target.target(), True: 0}
        for n in range(40):
            dask.submit(f"gpu{n}", task="m:held", resources={"GPU": 1})
        # Both wait in Dask and behind its window.
        await soon(lambda: dask.scheduler.tasks)
        alone = target.targets()
        assert alone[False] == alone[True] > 1
        async with Worker(address, nthreads=1, resources={"GPU": 1}) as worker:
            await soon(lambda: dask.scheduler.workers[worker.address].processing)
            assert target.targets()[True] > 1
            dask.cluster.release([key for key in dask.open if "gpu" in key])
            await soon(lambda: not any("gpu" in key for key in dask.scheduler.tasks))
            await soon(lambda: dask.scheduler.workers[worker.address].processing)
            # Jobs that ask for none run there, so it stays, and no second one is wanted.
            assert target.targets()[True] == 1
            assert target.targets()[False] > 1
            gate.set()


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
