"""Girder as the recorder of a scheduler sees it, and a running recorder."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from girder_dask.protocol.messages import JobEvent, JobUpdate
from girder_dask.scheduler.event_recorder import Recorder

__all__ = ["Girder", "event", "recording"]


class Girder:
    """What takes the updates. ``gate`` holds up its answers, ``failures`` are raised first."""

    def __init__(self) -> None:
        self.requests: list[list[JobUpdate]] = []
        self.receipts: list[list[tuple[str, int]]] = []
        self.times: list[float] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures: list[Exception] = []
        self.answer: Callable[[list[JobUpdate]], Mapping[str, list[str]]] = lambda _: {}
        self.verdicts: list[tuple[str, str]] = []

    async def post(
        self, wire: list[dict[str, Any]], receipts: list[tuple[str, int]]
    ) -> Mapping[str, list[str]]:
        updates = [JobUpdate.from_wire(each) for each in wire]
        self.requests.append(updates)
        self.receipts.append(receipts)
        self.times.append(asyncio.get_running_loop().time())
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        return self.answer(updates)

    def verdict(self, job_id: str, kind: str) -> None:
        self.verdicts.append((job_id, kind))

    def log(self, job_id: str) -> str:
        return "".join(u.log or "" for r in self.requests for u in r if u.id == job_id)


@contextlib.asynccontextmanager
async def recording(girder: Girder, **options: Any) -> AsyncIterator[Recorder]:
    options = {"retry_delay_s": 0.0, "interval_s": 0.0} | options
    on_recorded = options.pop("on_recorded", lambda *_: None)
    recorder = Recorder(girder.post, **options)
    task = asyncio.create_task(recorder.run(girder.verdict, on_recorded))
    try:
        yield recorder
        assert not task.done(), f"the recorder has died: {task.exception()!r}"
    finally:
        while not task.done():  # that once is enough is a test of its own
            task.cancel()
            await asyncio.wait([task], timeout=0.1)


def event(job: str = "a", attempt: int = 1, time: float = 1.0, **fields: Any) -> JobEvent:
    return JobEvent(id=job, attempt=attempt, time=time, **fields)
