"""No loop of a scheduler, of Girder, of a notebook or of a stack ends because a step of it fails.

As in ``test_background.py``, which has the loops of workers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from girder_dask.client import futures, job_card
from girder_dask.jobs import JobStatus
from girder_dask.plugin.scheduler_link import SchedulerLink
from girder_dask.protocol.messages import JobEvent, JobSpec
from girder_dask.scheduler.claims import JobClaims
from girder_dask.scheduler.dask_cluster import DaskCluster
from girder_dask.scheduler.dependencies import DependencyGraph
from girder_dask.scheduler.event_recorder import Recorder
from girder_dask.scheduler.pending_reasons import PendingReasons
from girder_dask.scheduler.placement.stealing import JobStealing
from girder_dask.scheduler.result_retention import RetainedResults
from girder_dask.scheduler.run_reports import RunReports
from girder_dask.scheduler_hooks import make_plugin
from girder_dask.standalone import launcher, reaper
from girder_dask.standalone.report import Reporter
from tests.support.deadline import SECONDS, soon, until
from tests.support.dispatch_site import MemoryCluster
from tests.support.injected import Fails, Injected, inject, told
from tests.support.local_girder import Peer, serving

S = JobStatus


def spec(job_id: str = "a") -> JobSpec:
    return JobSpec(id=job_id, attempt=1, task="m:f")


# -- the scheduler --------------------------------------------------------------------------


class Recording:
    """A recorder that runs, and what it has sent and heard."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.heard: list[str] = []
        self.ended: list[str] = []
        self.recorder = Recorder(self.post, interval_s=0.0)
        self.on_verdict = lambda job_id, _kind: self.ended.append(job_id)
        self.on_recorded = lambda job_id, _attempt: self.heard.append(job_id)

    def run(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.recorder.run(self.on_verdict, self.on_recorded))

    async def post(self, updates: list[dict[str, Any]], _receipts: Any) -> Any:
        self.sent += [update["id"] for update in updates]
        return {}

    async def tell(self) -> None:
        """Record the ends of two jobs, one after the other."""
        running = self.run()
        for count, job_id in enumerate("ab", 1):
            event = JobEvent(id=job_id, attempt=1, time=1.0, status=int(S.SUCCESS))
            self.recorder.record(event)
            await soon(lambda count=count: len(self.ended) == count)
        running.cancel()
        await asyncio.wait([running])


async def recorder_loop() -> None:
    site = Recording()
    inject(site.recorder, "_deliver_all")
    await site.tell()
    assert site.sent == site.heard == ["a", "b"]


async def recorder_delivery() -> None:
    site = Recording()
    inject(site.recorder.delivery, "_post")
    await site.tell()
    assert site.sent == site.heard == ["a", "b"]


async def recorder_heard() -> None:
    site = Recording()
    inject(site, "on_recorded")
    await site.tell()
    assert site.sent == ["a", "b"]


async def recorder_verdict() -> None:
    site = Recording()
    verdict = inject(site, "on_verdict")
    running = site.run()
    for count, job_id in enumerate("ab", 1):
        event = JobEvent(id=job_id, attempt=1, time=1.0, status=int(S.SUCCESS))
        site.recorder.record(event)
        await soon(lambda count=count: verdict.calls == count)
    running.cancel()
    await asyncio.wait([running])


async def recorder_answer() -> None:
    """Girder answers something else."""
    site = Recording()

    class Answer(dict[str, Any]):
        get = Fails(lambda *_: ())

    answer = Answer()

    async def post(_updates: Any, _receipts: Any) -> Any:
        return answer

    site.recorder.delivery._post = post
    await site.tell()
    assert site.heard == ["a", "b"]


def run_reports_site(is_open: Callable[[str], bool]) -> RunReports:
    """Reports of runs whose worker is gone."""
    now = iter(range(100))
    return RunReports(
        SimpleNamespace(is_open=is_open),  # type: ignore[arg-type]
        SimpleNamespace(time=lambda: next(now), has_worker=lambda _worker: False),  # type: ignore[arg-type]
        SimpleNamespace(is_full=False),  # type: ignore[arg-type]
    )


async def run_reports_question() -> None:
    acted: list[str] = []
    is_open = Fails(lambda _key: True)
    reports = run_reports_site(is_open)
    is_open.calls = 1
    for key in "ab":
        reports.wait_for(key, "w", lambda key=key: acted.append(key))  # type: ignore[misc]
    is_open.calls = 0
    for _ in range(2):
        reports.check()
    assert sorted(acted) == ["a", "b"]


async def run_reports_action() -> None:
    acted: list[str] = []
    reports = run_reports_site(lambda _key: True)
    reports.wait_for("a", "w", Fails())
    reports.wait_for("b", "w", lambda: acted.append("b"))
    reports.check()
    assert acted == ["b"]


async def retained_results() -> None:
    cluster = MemoryCluster()
    retained = RetainedResults(cluster, DependencyGraph(), ttl_s=10.0)
    retained.add("a", "key-a", 1, stored=False)
    inject(cluster, "is_wanted")
    cluster.advance(10.0)
    assert cluster.released == []
    cluster.advance(1.0)
    assert cluster.released == ["key-a"]


def a_cluster(**client: Any) -> DaskCluster:
    scheduler = SimpleNamespace(tasks={}, clients={"girder-dask-keeper": None}, **client)
    return DaskCluster(scheduler, print)  # type: ignore[arg-type]


async def cluster_giving() -> None:
    refused: list[tuple[str, str]] = []
    async with Scheduler(port=0, dashboard_address=":0") as scheduler:
        cluster = DaskCluster(scheduler, print)
        cluster.on_refused = lambda *refusal: refused.append(refusal)
        inject(cluster, "_run_spec")
        cluster.submit([spec("a"), spec("b")], {})
        await soon(lambda: "f-b-1" in scheduler.tasks)
    assert refused == [("f-a-1", "Dask did not take the task: Injected: for this test")]


async def cluster_refilling() -> None:
    async with Scheduler(port=0, dashboard_address=":0") as scheduler:
        cluster = DaskCluster(scheduler, print)
        take = inject(cluster.window, "take")
        cluster.submit([spec("a")], {})
        await soon(lambda: take.calls == 1)
        cluster.refill()
        await soon(lambda: "f-a-1" in scheduler.tasks)


async def cluster_announcing() -> None:
    class Hearing(SchedulerPlugin):
        name = "hearing"

    hearing = Hearing()
    update_graph = inject(hearing, "update_graph")
    async with Scheduler(port=0, dashboard_address=":0") as scheduler:
        scheduler.add_plugin(hearing)
        cluster = DaskCluster(scheduler, print)
        cluster.submit([spec("a"), spec("b")], {})
        await soon(lambda: {"f-a-1", "f-b-1"} <= scheduler.tasks.keys())
    assert update_graph.calls == 2


async def cluster_releasing() -> None:
    released: list[str] = []
    release = Fails(lambda keys, *_args, **_more: released.extend(keys))
    cluster = a_cluster(client_releases_keys=release)
    cluster._scheduler.tasks.update(dict.fromkeys("ab", SimpleNamespace(annotations=None)))  # type: ignore[arg-type]
    for key in "ab":
        cluster.release([key])
        await asyncio.sleep(0)
    assert released == ["b"]


async def cluster_later() -> None:
    done = asyncio.Event()
    cluster = a_cluster()
    cluster.call_later(0.0, Fails())
    cluster.call_later(0.0, done.set)
    await asyncio.wait_for(done.wait(), SECONDS)


async def cluster_told() -> None:
    async def fail() -> None:
        raise Injected

    cluster = a_cluster()
    cluster.begin(fail())
    await soon(lambda: not cluster._calls)


async def in_a_scheduler(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    """Run a scheduler against a Girder until a method has failed once and been called again."""
    import dask

    step = Fails(getattr(owner, name))

    def method(*args: Any, **more: Any) -> Any:
        return step(*args, **more)

    monkeypatch.setattr(owner, name, method)
    for interval in ("STEAL_INTERVAL_S", "CHECK_INTERVAL_S", "WINDOW_INTERVAL_S"):
        monkeypatch.setattr(f"girder_dask.scheduler.plugin.{interval}", 0.01)
    with serving() as peer, dask.config.set({"girder.scheduler.pull-interval": "10 ms"}):
        answers: dict[str, Any] = {
            "POST api_key/token": (200, {"authToken": {"token": "t"}}),
            "POST dask/job/claim": claim,
            "POST dask/job/updates": (200, {}),
            "POST dask/job/states": (200, {"jobs": []}),
        }
        peer.answers |= answers
        async with Scheduler(port=0, dashboard_address=":0") as scheduler:
            plugin = make_plugin(peer.url, "the-key")
            scheduler.add_plugin(plugin)
            await plugin.start(scheduler)
            await soon(lambda: step.calls >= 3)
            ended = {task.get_name() for task in plugin._tasks if task.done()}
            assert ended <= {"girder-dask certificate"}, "which has none to keep"


def claim(_peer: Peer) -> tuple[int, Any]:
    return 200, {"specs": [], "cancel": []}


async def scheduler_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    await in_a_scheduler(monkeypatch, JobClaims, "claim")


async def scheduler_dependencies(monkeypatch: pytest.MonkeyPatch) -> None:
    await in_a_scheduler(monkeypatch, JobClaims, "look_up_dependencies")


async def scheduler_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    await in_a_scheduler(monkeypatch, PendingReasons, "scan")


async def scheduler_stealing(monkeypatch: pytest.MonkeyPatch) -> None:
    await in_a_scheduler(monkeypatch, JobStealing, "steal")


async def scheduler_window(monkeypatch: pytest.MonkeyPatch) -> None:
    await in_a_scheduler(monkeypatch, DaskCluster, "update_window")


async def scheduler_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    await in_a_scheduler(monkeypatch, RunReports, "check")


# -- Girder ---------------------------------------------------------------------------------


async def a_link(name: str) -> None:
    news: list[str] = []
    link = SchedulerLink(lambda: None, lambda _reason, ids: news.extend(ids))
    thread = link._ensure_thread()
    until(lambda: thread.state["error"])
    inject(thread, name)
    link.submit([spec("a")])
    link.submit([spec("b")])
    await soon(lambda: "b" in news)
    assert thread._thread.is_alive()
    await soon(lambda: not thread._specs)
    link.close()
    assert not thread._thread.is_alive()


async def link_delivery() -> None:
    await a_link("_deliver")


async def link_submission() -> None:
    await a_link("_submit")


async def link_address() -> None:
    await a_link("_hello")


async def courier_connection() -> None:
    from girder_dask.plugin.notify.redis_publisher import LazyMessages, RedisPublisher

    class Redis:
        """One that has nobody who listens."""

        def info(self) -> dict[str, Any]:
            return {"role": "replica"}

        def pipeline(self, **_more: Any) -> Any:
            return SimpleNamespace(publish=published.append, execute=lambda: None)

    published: list[Any] = []
    made: list[int] = []

    def post(number: int) -> None:
        publisher.post(LazyMessages(frozenset("c"), 1, lambda _heard: made.append(number) or []))  # type: ignore[func-returns-value]

    connect = Fails(Redis)
    publisher = RedisPublisher(connect)
    post(1)
    await soon(lambda: connect.calls)
    post(2)
    await soon(lambda: made == [2])


async def unreached_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    from girder_dask.plugin.store import unreachable

    mark = Fails(lambda *_args, **_more: 0)
    monkeypatch.setattr(unreachable, "write_reason", mark)
    monkeypatch.setattr(unreachable, "_PAUSE_S", 0.01)
    telling = unreachable.UnreachableReporter()
    telling.set_reason("no scheduler", ["a"])
    thread = telling._thread
    assert thread is not None
    await soon(lambda: mark.calls >= 2)
    telling.set_reason(None)
    await asyncio.to_thread(thread.join, SECONDS)


class Enough(BaseException):
    """Ends a thread that has no other end."""


def run_twice(monkeypatch: pytest.MonkeyPatch, module: Any, work: Any, step: Fails) -> None:
    """Run the loop of a thread until its step was called twice."""

    def sleep(_seconds: float) -> None:
        if step.calls == 2:
            raise Enough

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: 0.0))
    with pytest.raises(Enough):
        work()


async def sweeper_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    from girder_dask.plugin import token_sweeper

    sweep = Fails(lambda _now: 0)
    monkeypatch.setattr(token_sweeper.tokens, "sweep", sweep)
    run_twice(monkeypatch, token_sweeper, token_sweeper._work, sweep)


async def retention_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    from girder_dask.plugin import retention_sweeper

    rules = Fails(list)
    monkeypatch.setattr(retention_sweeper, "settings", SimpleNamespace(retention=rules))
    run_twice(monkeypatch, retention_sweeper, retention_sweeper._work, rules)


async def metrics_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    from girder_dask.plugin.metrics import flusher

    gauges = Fails(dict)
    monkeypatch.setattr(flusher.counter_store, "store_gauges", lambda *_each: None)
    run_twice(monkeypatch, flusher, flusher.Flusher(gauges, dict)._work, gauges)


async def memory_trim() -> None:
    from girder_dask.plugin import memory_trimming

    trim = Fails()
    for _ in range(2):
        timer = threading.Timer(0.0, memory_trimming._trim, [trim])
        timer.start()
        timer.join()
    assert trim.calls == 2


async def recount_later() -> None:
    from girder_dask.plugin.store.maps.count_throttle import CountThrottle

    count = Fails(lambda _ids: {})
    recount = CountThrottle(count)
    recount._ended["p"] = 1
    for _ in range(2):
        recount._count_later("p")
    assert count.calls == 2


# -- notebooks ------------------------------------------------------------------------------


async def card_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_card, "_MIN_POLL_S", 0.01)
    widget = SimpleNamespace(comm=1, _view_count=None, value="", observe=lambda *_a, **_m: None)
    jobs = [{"_id": "a", "title": "Count", "status": int(S.SUCCESS), "log": []}]
    load_jobs = Fails(lambda _ids: jobs)
    backend = SimpleNamespace(load_jobs=load_jobs, load_job=lambda _id, **_more: jobs[0])
    shown = job_card.JobCard(backend, {"_id": "a", "status": int(S.RUNNING)}, widget)  # type: ignore[arg-type]
    shown.follow()
    await soon(lambda: shown.is_over)
    await soon(lambda: shown._thread is None)


async def futures_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    async def pin(**_more: Any) -> dict[str, str]:
        return {"a": "key-a"}

    bound = Fails(lambda _client, key: key)
    monkeypatch.setattr(futures, "_future_of_key", bound)
    loop = SimpleNamespace(asyncio_loop=asyncio.get_running_loop())
    client = SimpleNamespace(loop=loop, id="c", scheduler=SimpleNamespace(girder_pin=pin))
    backend = SimpleNamespace(pins=True, dask_client=lambda: client)
    held: list[Any] = []

    class Result:
        id = "a"
        _pin = staticmethod(held.append)

    result = Result()
    for _ in range(2):
        futures.pin(backend, [result])  # type: ignore[arg-type,list-item]
    await soon(lambda: held == ["key-a"])


# -- a stack --------------------------------------------------------------------------------


class Stub:
    """A part of a stack that has ended, and is started again."""

    is_worker, started_at, log = False, 0.0, Path("log")

    def __init__(self, name: str) -> None:
        self.name = name
        self.running = False

    def limit_log(self, _max_bytes: int) -> None:
        """Do nothing: there is no log."""

    def describe_end(self, how: str) -> str:
        return f"{self.name} {how}"

    def is_ready(self) -> bool:
        return True


class Stack:
    def __init__(self) -> None:
        self.parts = [Stub("one"), Stub("two")]
        self.reporter = Reporter()
        self.started: list[str] = []
        self.saves = 0

    def start_again(self, part: Stub) -> None:
        part.running = True
        self.started.append(part.name)

    def clear(self, part: Stub) -> None:
        pass

    def save(self) -> None:
        self.saves += 1


async def a_stack(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_WATCH_INTERVAL_S", 0.01)
    stopped = threading.Event()
    thread = threading.Thread(target=launcher.watch, args=(stack, stopped))
    thread.start()
    await soon(lambda: sorted(stack.started) == ["one", "two"])
    await soon(lambda: stack.saves)
    assert thread.is_alive()
    stopped.set()
    await asyncio.to_thread(thread.join, SECONDS)


async def stack_part(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack()
    inject(stack.parts[0], "describe_end")
    await a_stack(stack, monkeypatch)


async def stack_save(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack()
    inject(stack, "save")
    await a_stack(stack, monkeypatch)


async def guard_line(monkeypatch: pytest.MonkeyPatch) -> None:
    note = Fails()
    monkeypatch.setattr(reaper, "_apply_line", note)
    monkeypatch.setattr(reaper.sys, "stdin", ["+1\n", "-1\n"])
    monkeypatch.setattr(
        reaper,
        "signal",
        SimpleNamespace(
            **dict.fromkeys(("SIGINT", "SIGTERM", "SIGHUP", "SIG_IGN"), 0), signal=lambda *_: None
        ),
    )
    reaper.main()
    assert note.calls == 2


def test_reaper_logs_what_went_wrong(tmp_path: Path) -> None:
    log = tmp_path / "reaper.log"
    with (tmp_path / "lock").open("w") as lock:
        process = reaper.Reaper(str(tmp_path), lock.fileno(), log)
        process._tell("nonsense\n")
        process.close()
    assert log.stat().st_mode & 0o777 == 0o600
    assert "The reaper of the stack failed and continues: ValueError" in log.read_text()
    assert process._process.returncode == 0


PLACES = [
    recorder_loop,
    recorder_delivery,
    recorder_heard,
    recorder_verdict,
    recorder_answer,
    run_reports_question,
    run_reports_action,
    retained_results,
    cluster_giving,
    cluster_refilling,
    cluster_announcing,
    cluster_releasing,
    cluster_later,
    cluster_told,
    scheduler_claims,
    scheduler_pending,
    scheduler_dependencies,
    scheduler_stealing,
    scheduler_window,
    scheduler_reports,
    link_delivery,
    link_submission,
    link_address,
    courier_connection,
    unreached_mark,
    sweeper_sweep,
    metrics_flush,
    retention_pass,
    memory_trim,
    recount_later,
    card_look,
    futures_hold,
    stack_part,
    stack_save,
    guard_line,
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: str(place.__name__))
def test_an_error_is_told_and_the_next_step_happens(
    place: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.run(place(monkeypatch) if "monkeypatch" in place.__annotations__ else place())
    until(lambda: told(caplog))
    assert len(told(caplog)) == 1
