"""What a run says of its end is waited for, and not in vain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from girder_dask.scheduler import run_reports as module
from girder_dask.scheduler.run_reports import RunReports
from tests.support.deadline import soon


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.02)
    monkeypatch.setattr(module, "_ACCOUNT_TIME", 0.2)


class Site:
    """Keys whose ends are not known, workers that are there, and what was acted on."""

    def __init__(self) -> None:
        self.open = {"a", "b"}
        self.workers = {"w"}
        self.held_up = False
        self.acted: list[str] = []
        self.accounts = RunReports(
            self.open.__contains__, self.workers.__contains__, lambda: self.held_up
        )

    def wait_for(self, key: str) -> None:
        self.accounts.await_report(key, "w", lambda: self.act(key))

    def act(self, key: str) -> None:
        self.acted.append(key)
        self.open.discard(key)


@contextmanager
def opened() -> Iterator[Site]:
    site = Site()
    yield site
    site.accounts.close()


async def test_an_account_that_comes_is_all() -> None:
    with opened() as site:
        site.wait_for("a")
        site.open.discard("a")
        await asyncio.sleep(0.4)
        assert site.acted == []


async def test_who_is_gone_says_nothing_more() -> None:
    with opened() as site:
        site.wait_for("a")
        site.wait_for("b")
        site.open.discard("b")
        site.workers.clear()
        await soon(lambda: site.acted == ["a"])


async def test_who_is_there_has_its_time() -> None:
    with opened() as site:
        site.wait_for("a")
        await asyncio.sleep(0.1)
        assert site.acted == []
        await soon(lambda: site.acted == ["a"])


async def test_nobody_is_late_who_is_made_to_wait() -> None:
    with opened() as site:
        site.held_up = True
        site.wait_for("a")
        await asyncio.sleep(0.5)
        assert site.acted == []
        site.held_up = False
        await asyncio.sleep(0.1)
        assert site.acted == []
        await soon(lambda: site.acted == ["a"])


async def test_one_that_cannot_be_acted_on_does_not_hold_up_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> None:
        raise ValueError("odd")

    with opened() as site:
        site.accounts.await_report("b", "w", fail)
        site.wait_for("a")
        await soon(lambda: site.acted == ["a"])
    assert "Acting on the end of b that Dask saw failed" in caplog.text
