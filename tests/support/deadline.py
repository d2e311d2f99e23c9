"""Waiting for something that happens in another thread, with an end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

SECONDS = 20.0


def until(condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Return the first true value of ``condition``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"this did not come true within {seconds} s"
        time.sleep(0.002)
    return value


async def soon(condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Return the first true value of ``condition``, and let the event loop go on meanwhile."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"this did not come true within {seconds} s"
        await asyncio.sleep(0.002)
    return value
