"""The report of a run is awaited until it can no longer arrive."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from girder_dask.scheduler import run_reports as module
from girder_dask.scheduler.run_reports import RunReports
from girder_dask.utils.background import Guard, repeat
from tests.support.deadline import soon


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK_INTERVAL_S", 0.02)
    monkeypatch.setattr(module, "_REPORT_TIMEOUT_S", 1.0)


class Site:
    """Keys whose ends are not known, workers that are there, and what was acted on."""

    def __init__(self) -> None:
        self.open = {"a", "b"}
        self.workers = {"w"}
        self.recorder = SimpleNamespace(is_full=False)
        self.acted: list[str] = []
        loop = asyncio.get_running_loop()
        self.reports = RunReports(
            SimpleNamespace(is_open=self.open.__contains__),  # type: ignore[arg-type]
            SimpleNamespace(time=loop.time, has_worker=self.workers.__contains__),  # type: ignore[arg-type]
            self.recorder,  # type: ignore[arg-type]
        )

    def wait_for(self, key: str) -> None:
        self.reports.wait_for(key, "w", lambda: self.act(key))

    def act(self, key: str) -> None:
        self.acted.append(key)
        self.open.discard(key)


@asynccontextmanager
async def opened() -> AsyncIterator[Site]:
    site = Site()
    guard = Guard(logging.getLogger("girder_dask.tests"), "The check")
    checks = repeat(site.reports.check, guard, interval_s=module.CHECK_INTERVAL_S)
    task = asyncio.create_task(checks)
    yield site
    task.cancel()


async def test_arrived_report_needs_no_action() -> None:
    async with opened() as site:
        site.wait_for("a")
        site.open.discard("a")
        await asyncio.sleep(1.3)
        assert site.acted == []


async def test_report_of_a_lost_worker_is_lost() -> None:
    async with opened() as site:
        site.wait_for("a")
        site.wait_for("b")
        site.open.discard("b")
        site.workers.clear()
        await soon(lambda: site.acted == ["a"])


async def test_report_of_a_connected_worker_has_a_timeout() -> None:
    async with opened() as site:
        site.wait_for("a")
        await asyncio.sleep(0.1)
        assert site.acted == []
        await soon(lambda: site.acted == ["a"])


async def test_report_is_not_late_while_the_buffer_is_full() -> None:
    async with opened() as site:
        site.recorder.is_full = True
        site.wait_for("a")
        await asyncio.sleep(1.3)
        assert site.acted == []
        site.recorder.is_full = False
        await asyncio.sleep(0.1)
        assert site.acted == []
        await soon(lambda: site.acted == ["a"])


async def test_failing_action_does_not_block_other_reports(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> None:
        raise ValueError("odd")

    async with opened() as site:
        site.reports.wait_for("b", "w", fail)
        site.wait_for("a")
        await soon(lambda: site.acted == ["a"])
    assert "Handling the end of b that Dask reported failed" in caplog.text
