"""The start of a run waits a moment for its end, so that those of a short run go together."""

from __future__ import annotations

import asyncio

import pytest

from girder_dask.jobs import JobStatus
from girder_dask.worker import outbox as outbox_module
from tests.support.deadline import SECONDS, soon
from tests.unit.worker.test_outbox import A_WHILE, Scheduler, opened, sink

S = JobStatus


async def test_outbox_sends_the_start_and_the_end_of_a_short_run_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbox_module, "_START_DELAY_S", 3.0)
    scheduler = Scheduler()
    async with opened(scheduler) as outbox:
        short = sink(outbox)
        short.status(S.RUNNING)
        await asyncio.sleep(0.01)
        short.finish(S.SUCCESS)
        await soon(lambda: scheduler.statuses("a") == [S.RUNNING, S.SUCCESS])
        assert len(scheduler.batches) == 1
        monkeypatch.setattr(outbox_module, "_START_DELAY_S", 0.1)
        long = sink(outbox, "b")
        long.status(S.RUNNING)
        await soon(lambda: scheduler.statuses("b") == [S.RUNNING])


async def test_outbox_sends_a_start_that_a_caller_waits_for_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbox_module, "_START_DELAY_S", A_WHILE)
    scheduler = Scheduler()
    async with opened(scheduler) as outbox:
        sink(outbox).status(S.RUNNING)
        await asyncio.wait_for(outbox.flushed(), SECONDS)
        assert scheduler.statuses("a") == [S.RUNNING]
