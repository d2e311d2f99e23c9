"""The plugin in a real scheduler, against a server that answers like Girder."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Nanny, Scheduler

from girder_dask import config
from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobSpec
from girder_dask.protocol.payload import pack_call
from girder_dask.protocol.wire_json import to_json
from girder_dask.scheduler.plugin import GirderSchedulerPlugin
from girder_dask.scheduler_hooks import make_plugin
from tests.support.deadline import soon
from tests.support.local_girder import Answer, Peer, serving

S = JobStatus
STATES = "POST dask/job/states"


class Girder:
    """Hands out ``specs`` once, and takes updates."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.specs: list[JobSpec] = []
        self.states: list[Any] = []
        peer.answers |= {
            "POST api_key/token": (200, {"authToken": {"token": "t"}}),
            "POST dask/job/claim": self.claim,
            "POST dask/job/updates": (200, {}),
            STATES: self.answer_states,
        }

    def claim(self, _peer: Peer) -> Answer:
        specs, self.specs = self.specs, []
        return 200, {"specs": [to_json(spec.to_wire()) for spec in specs], "cancel": []}

    def answer_states(self, _peer: Peer) -> Answer:
        answer = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return (500, {"message": "busy"}) if answer is None else (200, {"jobs": answer})

    def updates(self, job_id: str) -> list[dict[str, Any]]:
        bodies = [json.loads(b) for b in list(self.peer.bodies) if b'"updates"' in b]
        return [u for body in bodies for u in body["updates"] if u["id"] == job_id]

    def log(self, job_id: str) -> str:
        return "".join(update.get("log") or "" for update in self.updates(job_id))

    def ended(self, job_id: str) -> int | None:
        statuses = [s for u in self.updates(job_id) for s, _ in u.get("statuses") or ()]
        return statuses[-1] if statuses and statuses[-1] in (3, 4, 5) else None


@pytest.fixture
def girder() -> Iterator[Girder]:
    with serving() as peer:
        yield Girder(peer)


@contextlib.asynccontextmanager
async def running(girder: Girder, **more: Any) -> AsyncIterator[GirderSchedulerPlugin]:
    config.get("scheduler")  # loads the defaults, or they are gone with the changes
    changes = {
        "girder.scheduler.pull-interval": "100 ms",
        "girder.scheduler.retry-delay": "20 ms",
        "girder.scheduler.retry-backoff": "50 ms",
        **more,
    }
    with dask.config.set(changes):
        async with Scheduler(port=0, dashboard_address=":0") as scheduler:
            plugin = make_plugin(girder.peer.url, "the-key")
            scheduler.add_plugin(plugin)
            await plugin.start(scheduler)
            yield plugin


def spec(job_id: str, task: str, *args: Any, **fields: Any) -> JobSpec:
    payload = pack_call(args, {})
    fields = {"attempt": 1, "trusted": True, **fields}
    return JobSpec(id=job_id, task=f"my_worker_tasks:{task}", payload=payload, **fields)


async def test_claimed_job_waits_for_dependencies_that_only_girder_knows(girder: Girder) -> None:
    """As after a restart of the scheduler."""
    girder.specs = [
        spec("b", "add_one", 1, dependencies=["a"]),
        spec("c", "add_one", 1, dependencies=["b"]),
        spec("d", "add_one", 1, dependencies=["x"]),
    ]
    x = {"_id": "x", "status": int(S.CANCELED), "title": "Gone"}
    girder.states = [
        None,
        [{"_id": "a", "status": int(S.RUNNING)}, x],
        [{"_id": "a", "status": int(S.SUCCESS)}, x],
    ]
    async with running(girder) as plugin, Nanny(plugin._scheduler.address, nthreads=1):
        await soon(lambda: girder.ended("b") == girder.ended("c") == S.SUCCESS)
        await soon(lambda: girder.ended("d") == S.ERROR)
        await soon(lambda: not len(plugin.dispatcher.jobs))
        await soon(lambda: not plugin._scheduler.tasks)
    asked = [json.loads(b)["ids"] for b in girder.peer.bodies if b.startswith(b'{"ids"')]
    assert asked == [["a", "x"], ["a", "x"], ["a"]]
    errors = [update.get("error") for update in girder.updates("d")]
    assert "Input job x ('Gone') was canceled, so this job cannot run." in errors


async def test_raised_job_is_retried_under_another_key(girder: Girder) -> None:
    girder.specs = [spec("a", "fails", "no", retries=2)]
    async with running(girder) as plugin, Nanny(plugin._scheduler.address, nthreads=1):
        await soon(lambda: girder.ended("a") == S.ERROR)
        await soon(lambda: not plugin._scheduler.tasks)
    log = girder.log("a")
    assert log.count("ValueError: no\n") == 3
    assert "Try 2 of 3 failed; the job is retried in 0.1 s as attempt 3.\n" in log
    assert {update["attempt"] for update in girder.updates("a")} == {1, 2, 3}


@contextlib.asynccontextmanager
async def deaf(plugin: GirderSchedulerPlugin) -> AsyncIterator[None]:
    """Hear nothing of what runs say, until the end."""
    handlers, end = plugin._scheduler.handlers, asyncio.Event()
    hear = handlers["girder_events"]

    async def hear_later(**events: Any) -> Any:
        await end.wait()
        return await hear(**events)

    handlers["girder_events"] = hear_later
    try:
        yield
    finally:
        handlers["girder_events"] = hear
        end.set()


def numbers(tally: Path) -> list[str]:
    """Return ``number attempt`` of each run that has begun, sorted."""
    lines = tally.read_text().splitlines() if tally.exists() else []
    return sorted(line.rpartition(" ")[0] for line in lines)


async def test_unreported_start_on_a_leaving_worker_costs_an_attempt(
    girder: Girder, tmp_path: Path
) -> None:
    """What that worker has not begun keeps its number."""
    tally = tmp_path / "tally"
    girder.specs = [
        spec("a", "tally", str(tally), 1, [60.0, 0.0]),
        spec("b", "tally", str(tally), 2),
    ]
    async with running(girder) as plugin:
        async with Nanny(plugin._scheduler.address, nthreads=1) as nanny, deaf(plugin):
            await soon(lambda: numbers(tally) == ["1 1"])
            worker = plugin._scheduler.workers[nanny.worker_address]
            assert {ts.key for ts in worker.processing} == {"tally-a-1", "tally-b-1"}
            await plugin.retirement.girder_leave(worker.address, grace=0.1)
        async with Nanny(plugin._scheduler.address, nthreads=1):
            await soon(lambda: girder.ended("a") == girder.ended("b") == S.SUCCESS)
    assert numbers(tally) == ["1 1", "1 2", "2 1"]
    assert f"Worker {worker.address} is leaving; the job is retried as attempt 2.\n" in (
        girder.log("a")
    )
    assert girder.log("b") == "attempt 1 line 0\n"


async def test_unreported_start_on_a_thief_costs_an_attempt(girder: Girder, tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    girder.specs = [spec("a", "tally", str(tally), 1, [60.0, 0.0])]
    async with running(girder) as plugin:
        address = plugin._scheduler.address
        async with contextlib.AsyncExitStack() as nannies:
            async with deaf(plugin):
                nanny = await nannies.enter_async_context(Nanny(address, nthreads=1))
                await soon(lambda: numbers(tally) == ["1 1"])
                other = await nannies.enter_async_context(Nanny(address, nthreads=1))
                jobs = plugin.dispatcher.jobs
                job = jobs.by_key("tally-a-1")
                assert job is not None
                jobs.place(job, other.worker_address)
                thief = nanny.worker_address
                await plugin._scheduler.remove_worker(thief, stimulus_id="lost")
            await soon(lambda: girder.ended("a") == S.SUCCESS)
    assert numbers(tally) == ["1 1", "1 2"]
    lost = f"Worker {thief} was lost with the job; it is retried as attempt 2.\n"
    assert lost in girder.log("a")


async def test_job_on_an_ending_worker_runs_again_if_the_scheduler_is_slow(
    girder: Girder, tmp_path: Path
) -> None:
    """The worker stops what runs on it, which is no word about the job."""
    mark = tmp_path / "mark"
    code = f"""
import pathlib, time
mark = pathlib.Path({str(mark)!r})
if not mark.exists():
    mark.touch()
    while True:
        time.sleep(0.02)
"""

    over = asyncio.Event()

    async def silent(**_asked: Any) -> None:
        await over.wait()

    girder.specs = [spec("a", "does", code)]
    async with running(girder) as plugin:
        plugin._scheduler.handlers["girder_leave"] = silent
        async with Nanny(plugin._scheduler.address, nthreads=1) as nanny:
            await soon(mark.exists)
            await nanny.kill(timeout=20, reason="test")
            await nanny.instantiate()
            await soon(lambda: girder.ended("a") is not None)
            over.set()  # or the scheduler waits for it when it closes
    statuses = [s for u in girder.updates("a") for s, _ in u.get("statuses") or ()]
    assert statuses == [S.RUNNING, S.QUEUED, S.RUNNING, S.SUCCESS]


async def test_next_attempt_starts_once_girder_recorded_it(
    girder: Girder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else another scheduler would give its number to another run."""
    monkeypatch.setattr("girder_dask.scheduler.rpc._ANSWER_TIMEOUT_S", 0.1)
    tally, girder_path = tmp_path / "tally", "POST dask/job/updates"
    girder.specs = [spec("a", "tally", str(tally), 1, [60.0, 0.0])]
    async with running(girder) as plugin:
        address = plugin._scheduler.address
        async with Nanny(address, nthreads=1) as nanny:
            await soon(lambda: girder.ended("a") is None and numbers(tally) == ["1 1"])
            answer = girder.peer.answers[girder_path]
            girder.peer.answers[girder_path] = (503, {"message": "away"})
            async with Nanny(address, nthreads=1):
                await plugin._scheduler.remove_worker(nanny.worker_address, stimulus_id="lost")
                await soon(lambda: plugin._cluster.assigned_to("tally-a-1"))
                assert await plugin.rpc.may_start("tally-a-1", 2) is None
                await asyncio.sleep(0.5)
                assert numbers(tally) == ["1 1"]
                girder.peer.answers[girder_path] = answer
                await soon(lambda: girder.ended("a") == S.SUCCESS)
    assert numbers(tally) == ["1 1", "1 2"]


async def test_submit_refuses_jobs_for_another_scheduler(girder: Girder) -> None:
    async with running(girder) as plugin:
        assert (await plugin.rpc.girder_hello())["scheduler"] == plugin.id
        wire = spec("a", "add_one", 1).to_wire()
        assert await plugin.rpc.girder_submit("before", [wire]) == {"accepted": []}
        assert "a" not in plugin.dispatcher.jobs
        assert await plugin.rpc.girder_submit(plugin.id, [wire]) == {"accepted": ["a"]}
        assert "a" in plugin.dispatcher.jobs


async def test_status_has_the_error_of_claims(girder: Girder) -> None:
    claim = girder.peer.answers["POST dask/job/claim"]
    girder.peer.answers["POST dask/job/claim"] = lambda _peer: (500, {"message": "malformed"})
    async with running(girder) as plugin:
        await soon(lambda: plugin.claims.error is not None)
        told = (await plugin.rpc.girder_status())["claim_error"]
        assert "answered 500" in told
        girder.peer.answers["POST dask/job/claim"] = claim
        await soon(lambda: plugin.claims.error is None)


async def test_pin_waits_for_a_job_that_still_arrives(girder: Girder) -> None:
    async with running(girder) as plugin:
        asyncio.get_running_loop().call_later(
            0.2, lambda: plugin.dispatcher.accept([spec("a", "add_one", 1)])
        )
        assert await plugin.rpc.girder_pin(["a"], "nobody") == {"a": "add_one-a-1"}
        assert (await plugin.rpc.girder_status())["kept"] == 0


async def test_pin_gives_up_a_job_that_never_arrives(
    girder: Girder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("girder_dask.scheduler.rpc._PIN_TIMEOUT_S", 0.1)
    async with running(girder) as plugin:
        assert await plugin.rpc.girder_pin(["a"], "nobody") == {}


async def test_events_forget_outboxes_of_old_workers(
    girder: Girder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("girder_dask.scheduler.rpc._MAX_OUTBOXES", 3)
    async with running(girder) as plugin:
        for n in range(10):
            await plugin.rpc.girder_events(f"outbox{n}", 1, [])
            await plugin.rpc.girder_events("busy", n + 1, [])
        assert list(plugin.rpc._batches) == ["outbox8", "outbox9", "busy"]


async def test_stealing_moves_a_job_to_a_free_thread(girder: Girder, tmp_path: Path) -> None:
    """Dask moves none of a task that takes a few milliseconds on average; here it moves nothing."""
    gates = [tmp_path / "a", tmp_path / "b"]
    seldom = {"distributed.scheduler.work-stealing-interval": "1 hour"}
    async with running(girder, **seldom) as plugin:
        address, place = plugin._scheduler.address, plugin._cluster.assigned_to
        async with Nanny(address, nthreads=1), Nanny(address, nthreads=1):
            long = [spec(gate.name, "hold", str(gate)) for gate in gates]
            plugin.dispatcher.accept(long)
            await soon(lambda: all(plugin.dispatcher.jobs.by_key(s.key).run for s in long))
            late = [spec(f"late{n}", "hold", str(tmp_path)) for n in range(2)]
            plugin.dispatcher.accept(late)
            await soon(lambda: all(place(s.key) for s in late))
            assert {place(s.key) for s in late} == {place(s.key) for s in long}
            gates[0].touch()
            await soon(lambda: all(girder.ended(s.id) == S.SUCCESS for s in late))
            assert girder.ended("b") is None
            gates[1].touch()
            await soon(lambda: girder.ended("b") == S.SUCCESS)
        assert {u["attempt"] for s in late for u in girder.updates(s.id)} == {1}


async def test_job_that_dask_does_not_take_ends_in_error(
    girder: Girder, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_task = Scheduler.new_task

    def refuse(self: Scheduler, key: str, *args: Any, **more: Any) -> Any:
        if key.startswith("add_one-a-"):
            raise ValueError("odd")
        return new_task(self, key, *args, **more)

    monkeypatch.setattr(Scheduler, "new_task", refuse)
    async with running(girder) as plugin, Nanny(plugin._scheduler.address, nthreads=1):
        plugin.dispatcher.accept([spec("a", "add_one", 1), spec("b", "add_one", 1)])
        await soon(lambda: girder.ended("a") == S.ERROR and girder.ended("b") == S.SUCCESS)
        await soon(lambda: not len(plugin.dispatcher.jobs))
    errors = [update.get("error") for update in girder.updates("a")]
    assert "Dask did not take the task: ValueError: odd" in errors
