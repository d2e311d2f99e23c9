"""The way to the scheduler, against a server that speaks Dask's protocol."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

import pytest
from distributed.comm.core import CommClosedError
from distributed.core import Server

from girder_dask.plugin.scheduler_addresses import SchedulerAddresses
from girder_dask.plugin.scheduler_link import SchedulerLink
from girder_dask.protocol.messages import JobSpec
from tests.support.deadline import SECONDS, until


class LocalScheduler:
    """A server with the handlers of our scheduler plugin, in a thread of its own."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.batches: list[int] = []
        self.specs: list[JobSpec] = []
        self.refuse: Exception | None = None
        self.refused = 0
        self.runs = 0
        self.hellos = 0
        self.begun: set[str] = set()
        self.thinks = 0.0  # seconds that it takes to say which jobs have begun
        self.loaded = True  # whether our plugin is
        self.site: str | None = None  # the id of its Girder
        self.leads: bool | None = True
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server: Server | None = None
        self.address = self.start("tcp://127.0.0.1:0")

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def start(self, address: str) -> str:
        async def listen() -> str:
            handlers = {
                "girder_hello": self._hello,
                "girder_submit": self._submit,
                "girder_cancel": self._cancel,
            }
            self.runs += 1
            self._server = Server(handlers if self.loaded else {}, needs_workdir=False)
            await self._server.listen(address)
            return str(self._server.address)

        return str(self._run(listen()))

    async def _hello(self) -> dict[str, Any]:
        self.hellos += 1
        return {
            "scheduler": f"run {self.runs}",
            "site": self.site,
            "leads": self.leads,
            "leader": "tcp://elsewhere:8786 on b",
        }

    async def _submit(self, scheduler: str, specs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.refuse is not None:
            self.refused += 1
            raise self.refuse
        assert scheduler == f"run {self.runs}"
        self.specs += [JobSpec.from_wire(wire) for wire in specs]
        self.got += [wire["id"] for wire in specs]
        self.batches.append(len(specs))
        return {"accepted": [wire["id"] for wire in specs]}

    async def _cancel(self, jobs: list[str]) -> dict[str, Any]:
        self.got += [f"cancel {job}" for job in jobs]
        await asyncio.sleep(self.thinks)
        return {"begun": [job for job in jobs if job in self.begun]}

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            self._run(server.close())

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()


@pytest.fixture
def scheduler() -> Iterator[LocalScheduler]:
    local = LocalScheduler()
    yield local
    local.close()


@pytest.fixture(autouse=True)
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let attempts to connect end sooner: the scheduler is on this host, or away."""
    monkeypatch.setattr("girder_dask.plugin.scheduler_rpc._CONNECT_TIMEOUT_S", 1.0)


@pytest.fixture
def link(scheduler: LocalScheduler) -> Iterator[SchedulerLink]:
    opened = SchedulerLink(lambda: scheduler.address)
    yield opened
    opened.close()


def test_cancel_now_returns_the_jobs_that_have_begun(
    scheduler: LocalScheduler, link: SchedulerLink
) -> None:
    scheduler.begun = {"b"}
    assert list(link.cancel_now(["a", "b"], SECONDS) or ()) == ["b"]
    assert scheduler.got == ["cancel a", "cancel b"]


def test_cancel_now_does_not_wait_for_a_silent_or_absent_scheduler(
    scheduler: LocalScheduler, link: SchedulerLink
) -> None:
    scheduler.begun = {"b"}
    scheduler.thinks = 60.0
    assert link.cancel_now(["b"], 0.2) is None
    scheduler.stop()
    link.submit([spec("c")])
    until(lambda: link.status()["reachable"] is False)
    start = time.monotonic()
    assert link.cancel_now(["b"], SECONDS) is None
    assert time.monotonic() - start < SECONDS / 2


def spec(job_id: str) -> JobSpec:
    return JobSpec(id=job_id, attempt=1, task="m:f", payload=b"\x00\xff", token="SECRET")


def test_link_delivers_jobs_and_cancellations(
    scheduler: LocalScheduler, link: SchedulerLink
) -> None:
    link.submit([spec("a"), spec("b")])
    link.cancel(["a"])
    link.submit([spec("c")])
    until(lambda: len(scheduler.got) == 4)
    assert [job for job in scheduler.got if not job.startswith("cancel")] == ["a", "b", "c"]
    assert scheduler.got.index("a") < scheduler.got.index("cancel a")
    assert scheduler.specs[0] == spec("a")


def test_status_is_unknown_before_the_first_delivery(link: SchedulerLink) -> None:
    status = link.status()
    assert (status["reachable"], status["error"], status["since"]) == (None, None, None)


def test_status_says_that_the_scheduler_answers(
    scheduler: LocalScheduler, link: SchedulerLink
) -> None:
    begun = time.time()
    link.submit([spec("a")])
    until(lambda: link.status()["reachable"])
    status = link.status()
    assert (status["address"], status["error"]) == (scheduler.address, None)
    assert begun <= status["since"] <= time.time()
    link.submit([spec("b")])
    until(lambda: "b" in scheduler.got)
    assert link.status()["since"] == status["since"], "since when, not when last"


def test_submit_sends_many_jobs_in_several_messages_in_order(
    scheduler: LocalScheduler, link: SchedulerLink
) -> None:
    link.submit([spec(str(n)) for n in range(1201)])
    until(lambda: len(scheduler.got) == 1201)
    assert scheduler.got == [str(n) for n in range(1201)]
    assert max(scheduler.batches) == 500


def link_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "girder-dask-link"}


def test_submit_is_safe_in_many_threads(scheduler: LocalScheduler, link: SchedulerLink) -> None:
    before = link_threads()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: link.submit([spec(str(n))]), range(200)))
    until(lambda: len(scheduler.got) == 200)
    assert sorted(scheduler.got, key=int) == [str(n) for n in range(200)]
    assert len(link_threads() - before) == 1


def test_submit_does_not_wait_for_an_absent_scheduler_which_is_found_again(
    scheduler: LocalScheduler, link: SchedulerLink, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "girder_dask.plugin.scheduler_link")
    link.submit([spec("a")])
    until(lambda: scheduler.got == ["a"])
    scheduler.stop()
    begun = time.monotonic()
    link.submit([spec("lost")])
    assert time.monotonic() - begun < 1.5, "two tries to connect take 2 s"
    until(lambda: link.status()["reachable"] is False)
    assert scheduler.address in link.status()["error"]
    assert "Jobs stay queued" in caplog.text
    assert "SECRET" not in caplog.text

    scheduler.start(scheduler.address)
    link.submit([spec("b")])
    until(lambda: "b" in scheduler.got)
    until(lambda: link.status()["reachable"])
    assert link.status()["error"] is None
    assert "lost" not in scheduler.got, "the scheduler asks Girder for what it lacks"


def test_link_loses_no_job_when_the_scheduler_has_closed_the_connection(
    scheduler: LocalScheduler, link: SchedulerLink
) -> None:
    link.submit([spec("a")])
    until(lambda: scheduler.got == ["a"])
    scheduler.stop()
    scheduler.start(scheduler.address)
    link.submit([spec("b")])
    until(lambda: "b" in scheduler.got)
    assert link.status()["reachable"]


def test_link_asks_for_the_scheduler_once_for_each_connection(scheduler: LocalScheduler) -> None:
    scheduler.site = "ours"
    link = SchedulerLink(lambda: scheduler.address, site=lambda: "ours")
    try:
        for name, hellos in (("a", 1), ("b", 2)):
            for n in range(5):
                link.submit([spec(f"{name}{n}")])
                until(lambda last=f"{name}{n}": last in scheduler.got)
            assert scheduler.hellos == hellos
            scheduler.stop()
            scheduler.start(scheduler.address)
    finally:
        link.close()


def test_link_asks_a_scheduler_that_does_not_know_its_girder_each_time(
    scheduler: LocalScheduler,
) -> None:
    link = SchedulerLink(lambda: scheduler.address, site=lambda: "ours")
    try:
        link.submit([spec("a")])
        until(lambda: "a" in scheduler.got)
        scheduler.site = "theirs"
        link.submit([spec("b")])
        until(lambda: "another Girder" in (link.status()["error"] or ""))
        assert scheduler.got == ["a"]
    finally:
        link.close()


def test_link_asks_for_the_scheduler_when_its_address_has_changed(
    scheduler: LocalScheduler,
) -> None:
    other = LocalScheduler()
    other.runs += 1
    scheduler.site = other.site = "ours"
    addresses = [scheduler.address]
    link = SchedulerLink(lambda: addresses[0], site=lambda: "ours")
    try:
        link.submit([spec("a")])
        until(lambda: scheduler.got == ["a"])
        addresses[0] = other.address
        link.submit([spec("b")])
        until(lambda: other.got == ["b"])
    finally:
        link.close()
        other.close()


def test_link_reports_a_refusal_and_delivers_the_next_job(
    scheduler: LocalScheduler, link: SchedulerLink
) -> None:
    scheduler.refuse = ValueError("wire version 7 cannot be read here")
    link.submit([spec("a")])
    until(lambda: link.status()["error"])
    assert "wire version 7 cannot be read here" in link.status()["error"]
    scheduler.refuse = None
    link.submit([spec("b")])
    until(lambda: scheduler.got == ["b"])
    assert scheduler.refused == 1


def test_link_sends_a_job_once_if_the_connection_ends_before_the_answer(
    scheduler: LocalScheduler, link: SchedulerLink
) -> None:
    """The scheduler may have got it, and may have run it by now."""
    scheduler.refuse = CommClosedError("the end of the connection")
    link.submit([spec("a")])
    until(lambda: link.status()["error"])
    assert scheduler.refused == 1


def test_status_names_a_scheduler_without_our_plugin(
    scheduler: LocalScheduler, link: SchedulerLink
) -> None:
    scheduler.stop()
    scheduler.loaded = False
    scheduler.start(scheduler.address)
    link.submit([spec("a")])
    until(lambda: link.status()["error"])
    assert "preload girder_dask.scheduler_hooks there" in link.status()["error"]


def test_link_hands_jobs_over_before_it_sends_them(scheduler: LocalScheduler) -> None:
    handed: list[tuple[str | None, list[str]]] = []

    def hand_over(run: str | None, ids: Sequence[str]) -> list[str]:
        assert not set(ids) & set(scheduler.got)
        handed.append((run, list(ids)))
        if "away" in ids:
            raise LookupError("the database is away")
        return [i for i in ids if i != "claimed"]

    link = SchedulerLink(lambda: scheduler.address, hand_over=hand_over)
    try:
        link.submit([spec("a"), spec("claimed"), spec("b")])
        until(lambda: scheduler.got == ["a", "b"])
        for job_id in ("claimed", "away"):
            link.submit([spec(job_id)])
            until(lambda job_id=job_id: handed[-1][1] == [job_id])  # type: ignore[misc]
        scheduler.stop()
        many = [f"unreached {n}" for n in range(1200)]
        link.submit([spec(job_id) for job_id in many])
        until(lambda: handed[-1] == (None, many))
        scheduler.start(scheduler.address)
        link.submit([spec("c")])
        until(lambda: scheduler.got == ["a", "b", "c"])
        assert handed == [
            ("run 1", ["a", "claimed", "b"]),
            ("run 1", ["claimed"]),
            ("run 1", ["away"]),
            (None, many),
            ("run 2", ["c"]),
        ]
    finally:
        link.close()


def test_link_reports_undelivered_jobs_with_the_reason(scheduler: LocalScheduler) -> None:
    news: list[tuple[str | None, list[str]]] = []
    link = SchedulerLink(lambda: scheduler.address, lambda why, ids: news.append((why, list(ids))))
    try:
        link.submit([spec("a")])
        until(lambda: "a" in scheduler.got)
        assert news == []
        scheduler.stop()
        link.submit([spec("b"), spec("c")])
        until(lambda: len(news) == 2)
        why = f"Girder does not reach the Dask scheduler at {scheduler.address}"
        assert news == [(why, []), (why, ["b", "c"])]
        link.submit([spec("d")])
        assert news[2] == (why, ["d"]), "at once, now that it is known"
        scheduler.start(scheduler.address)
        until(lambda: news[-1] == (None, []))
    finally:
        link.close()


def test_link_notices_without_jobs_that_the_scheduler_goes_and_comes(
    scheduler: LocalScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("girder_dask.plugin.scheduler_link._PROBE_INTERVAL_S", 0.05)
    news: list[str | None] = []
    link = SchedulerLink(lambda: scheduler.address, lambda why, _ids: news.append(why))
    try:
        link.connect()
        until(lambda: link.status()["reachable"])
        scheduler.stop()
        until(lambda: news)
        assert link.status()["reachable"] is False
        scheduler.start(scheduler.address)
        until(lambda: news[-1] is None)
        assert link.status()["reachable"] is True
    finally:
        link.close()


def test_link_reports_that_no_scheduler_is_set() -> None:
    news: list[str | None] = []
    link = SchedulerLink(lambda: None, lambda why, _ids: news.append(why))
    link.submit([spec("a")])
    until(lambda: link.status()["error"])
    assert news[0] == "no Dask scheduler is set in Girder (dask.scheduler_address)"
    assert link.status()["address"] is None
    assert "dask.scheduler_address" in link.status()["error"]
    link.close()


@pytest.mark.parametrize("address", ["nonsense", "foo://bar:1", "tcp://127.0.0.1"])
def test_link_reports_a_malformed_address(address: str) -> None:
    link = SchedulerLink(lambda: address)
    link.submit([spec("a")])
    until(lambda: link.status()["error"])
    assert address in link.status()["error"]
    link.close()


def test_link_uses_a_changed_address(scheduler: LocalScheduler) -> None:
    other = LocalScheduler()
    address = scheduler.address
    link = SchedulerLink(lambda: address)
    try:
        link.submit([spec("a")])
        until(lambda: scheduler.got == ["a"])
        address = other.address
        link.submit([spec("b")])
        until(lambda: other.got == ["b"])
        assert scheduler.got == ["a"]
        assert link.status()["address"] == other.address
    finally:
        link.close()
        other.close()


def test_link_reads_the_address_again_after_an_error(
    scheduler: LocalScheduler,
) -> None:
    """In Girder it is a setting, and the database may be away for a moment."""
    asked = threading.Event()

    def address() -> str:
        if not asked.is_set():
            asked.set()
            raise RuntimeError("the database is away")
        return scheduler.address

    link = SchedulerLink(address)
    try:
        link.submit([spec("a")])
        assert asked.wait(20)
        link.submit([spec("b")])
        until(lambda: "b" in scheduler.got)
    finally:
        link.close()


def test_close_ends_the_thread_and_a_later_submission_starts_another(
    scheduler: LocalScheduler, link: SchedulerLink
) -> None:
    before = link_threads()
    link.submit([spec("a")])
    until(lambda: scheduler.got == ["a"])
    link.close()
    link.close()
    assert not link_threads() - before
    link.submit([spec("b")])
    until(lambda: scheduler.got == ["a", "b"])


def test_link_delivers_in_a_forked_process(scheduler: LocalScheduler, link: SchedulerLink) -> None:
    """Girder's servers fork; threads do not come along."""
    link.submit([spec("a")])
    until(lambda: scheduler.got == ["a"])
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            link.submit([spec("child")])
            os.close(write)
            os.read(read, 1)  # until this process closes it
        finally:
            os._exit(0)
    try:
        until(lambda: scheduler.got == ["a", "child"])
    finally:
        os.close(write)
        os.close(read)
        os.waitpid(pid, 0)


def test_link_sends_nothing_to_a_scheduler_of_another_girder(scheduler: LocalScheduler) -> None:
    reasons: list[str | None] = []
    link = SchedulerLink(
        lambda: scheduler.address, lambda reason, _: reasons.append(reason), site=lambda: "ours"
    )
    try:
        scheduler.site = "theirs"
        link.submit([spec("a")])
        until(lambda: reasons)
        assert reasons[0] == (
            f"the Dask scheduler at {scheduler.address} does not take jobs of this Girder"
        )
        assert link.status()["error"] == (
            f"the scheduler at {scheduler.address} does not take jobs (LookupError('it runs the "
            "jobs of another Girder; correct girder.api-url there, or dask.scheduler_address "
            "here'))"
        )
        assert scheduler.got == []
        scheduler.site = "ours"
        link.submit([spec("b")])
        until(lambda: "b" in scheduler.got)
        assert reasons[-1] is None
    finally:
        link.close()


def test_link_sends_nothing_to_a_scheduler_that_stands_by(scheduler: LocalScheduler) -> None:
    reasons: list[str | None] = []
    handed_over: list[str] = []
    scheduler.leads = False
    link = SchedulerLink(
        lambda: scheduler.address,
        lambda reason, _: reasons.append(reason),
        lambda _, ids: [handed_over.append(job_id) or job_id for job_id in ids],  # type: ignore[func-returns-value]
    )
    try:
        link.submit([spec("a")])
        until(lambda: "a" in handed_over)
        assert reasons[0] == (
            "the Dask scheduler to which Girder sends jobs stands by for another one"
        )
        assert link.status()["error"] == (
            f"the scheduler at {scheduler.address} stands by for the one at "
            "tcp://elsewhere:8786 on b"
        )
        assert scheduler.got == []
        scheduler.leads = None  # Girder has not answered it yet
        link.submit([spec("b")])
        until(lambda: "b" in scheduler.got)
    finally:
        link.close()


@pytest.mark.parametrize("first", ["stands by", "is away"])
def test_link_uses_the_address_of_the_scheduler_that_leads(
    scheduler: LocalScheduler, first: str
) -> None:
    other = LocalScheduler()
    scheduler.leads = False
    if first == "is away":
        scheduler.stop()
    addresses = SchedulerAddresses(lambda: [scheduler.address, other.address])
    link = SchedulerLink(addresses.current, try_next=addresses.try_next)
    try:
        link.submit([spec("a")])
        until(lambda: "a" in other.got)
        assert link.status()["address"] == other.address
        assert link.status()["reachable"]
        assert scheduler.got == []
    finally:
        link.close()
        other.close()


def test_link_tries_each_address_once(scheduler: LocalScheduler) -> None:
    other = LocalScheduler()
    scheduler.leads = other.leads = False
    addresses = SchedulerAddresses(lambda: [scheduler.address, other.address])
    link = SchedulerLink(addresses.current, try_next=addresses.try_next)
    try:
        link.check(SECONDS)
        link.check(SECONDS)
        # The link greets both when it begins, and for each check.
        assert all(1 <= each.hellos <= 4 for each in (scheduler, other))
        assert link.status()["reachable"] is False
    finally:
        link.close()
        other.close()
