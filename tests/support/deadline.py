"""Waits, with a deadline, for events in other threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

SECONDS = 40.0


def until(condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Wait until ``condition()`` is true, and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"this did not come true within {seconds} s"
        time.sleep(0.002)
    return value


async def soon(condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Wait until ``condition()`` is true while the event loop runs, and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"this did not come true within {seconds} s"
        await asyncio.sleep(0.002)
    return value
