"""Delivery of batches to a scheduler that is away."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from girder_dask.utils.background import Guard
from girder_dask.worker import event_delivery
from girder_dask.worker.event_delivery import EventDelivery

logger = logging.getLogger("girder_dask.tests")


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that deliveries wait, without the wait."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(event_delivery, "asyncio", type("asyncio", (), {"sleep": sleep}))
    return waited


async def deliver(failures: int) -> int:
    """Deliver one batch, which fails so often, and return how often it was sent."""
    sent: list[int] = []

    async def send(_name: str, number: int, _events: list[dict[str, Any]]) -> list[str]:
        sent.append(number)
        if len(sent) <= failures:
            raise OSError("away")
        return []

    delivery = EventDelivery(send, lambda _runs: None, "outbox", Guard(logger, "Dropping"))
    await delivery.deliver([{"id": "a"}])
    return len(sent)


def test_two_workers_do_not_come_back_in_step(delays: list[float]) -> None:
    for _ in range(2):
        assert asyncio.run(deliver(failures=8)) == 9
    one, other = delays[:8], delays[8:]
    assert all(a != b for a, b in zip(one, other, strict=True))
    assert 0.1 <= one[0] <= 0.2
    assert all(2.5 <= delay <= 5.0 for delay in one[5:])


def test_an_outage_is_logged_when_it_begins_and_when_it_ends(
    delays: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, event_delivery.__name__):
        asyncio.run(deliver(failures=5))
    assert len(delays) == 5
    assert caplog.messages == [
        "The scheduler did not accept job events; trying again: OSError: away",
        "The scheduler accepts job events again",
    ]
