"""Updates are delivered to Girder whatever fails, each once."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from girder_dask.errors import GirderError
from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobUpdate
from girder_dask.protocol.wire_json import to_json
from girder_dask.scheduler.event_recorder import Recorder
from tests.support.deadline import SECONDS, soon
from tests.support.recording_site import Girder, event, recording

S = JobStatus


async def test_delivery_leaves_out_the_undeliverable_part_of_an_error() -> None:
    girder = Girder()

    def answer(updates: list[JobUpdate]) -> Mapping[str, list[str]]:
        if any(u.exception for u in updates):
            raise GirderError("too large", status=413)
        return {}

    girder.answer = answer
    async with recording(girder) as recorder:
        recorder.record(event(status=int(S.ERROR), error="no", exception=b"e"))
        assert await recorder.flush(SECONDS)
    assert [u.exception for r in girder.requests for u in r] == [b"e", None]
    assert girder.verdicts == [("a", "done")]


async def test_delivery_repeats_a_failed_request_unchanged() -> None:
    girder = Girder()
    girder.failures = [GirderError("Girder is away."), GirderError("Girder is away.")]
    async with recording(girder) as recorder:
        recorder.record(event(log="1"))
        await soon(lambda: girder.requests)
        recorder.record(event(log="2"))
        assert await recorder.flush(SECONDS)
    assert girder.requests[0] == girder.requests[1] == girder.requests[2]
    assert [r[0].log for r in girder.requests] == ["1", "1", "1", "2"]
    assert recorder.delivery.error is None


async def test_delivery_backs_off_after_failed_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("girder_dask.utils.backoff._random.random", lambda: 0.0)  # no jitter
    girder = Girder()
    girder.failures = [GirderError("Girder is away.")] * 5
    async with recording(girder, retry_delay_s=0.05, max_retry_delay_s=0.2) as recorder:
        recorder.record(event(log="1"))
        await soon(lambda: recorder.delivery.error)
        assert recorder.delivery.error == "Girder is away."
        assert await recorder.flush(SECONDS)
    pauses = [b - a for a, b in zip(girder.times, girder.times[1:], strict=False)]
    assert all(
        pause >= least - 0.001
        for pause, least in zip(pauses, [0.05, 0.1, 0.2, 0.2, 0.2], strict=True)
    )
    assert pauses[-1] < 0.4


async def test_delivery_numbers_the_updates_of_an_attempt() -> None:
    girder = Girder()
    async with recording(girder) as recorder:
        for job, attempt in [("a", 1), ("a", 1), ("b", 1), ("a", 2), ("a", 2)]:
            recorder.record(event(job, attempt, log="x"))
            assert await recorder.flush(SECONDS)
    sent = [(u.id, u.attempt, u.sequence) for r in girder.requests for u in r]
    assert sent == [("a", 1, 1), ("a", 1, 2), ("b", 1, 1), ("a", 2, 1), ("a", 2, 2)]


@pytest.mark.usefixtures("at_once")
async def test_delivery_repeats_failed_acknowledgements_and_passes_on_verdicts() -> None:
    girder = Girder()
    girder.failures = [GirderError("Girder is away.")]
    girder.answer = lambda _: {"stale": ["a"], "gone": ["b"], "cancel": ["c"]}
    async with recording(girder) as recorder:
        for job in "abc":
            recorder.record(event(job))
        assert await recorder.flush(SECONDS)
    assert girder.receipts == [[("a", 1), ("b", 1), ("c", 1)]] * 2
    assert girder.verdicts == [("a", "stale"), ("b", "gone"), ("c", "cancel")]


@pytest.mark.usefixtures("at_once")
async def test_delivery_of_acknowledgements_survives_an_undeliverable_update() -> None:
    girder = Girder()

    def answer(updates: list[JobUpdate]) -> Mapping[str, list[str]]:
        if updates:
            raise GirderError("too large", status=413)
        return {}

    girder.answer = answer
    async with recording(girder) as recorder:
        girder.gate.clear()
        recorder.record(event("a", log="x"))
        recorder.record(event("b", log="x"))
        recorder.record(event("c"))
        girder.gate.set()
        assert await recorder.flush(SECONDS)
    assert [("c", 1)] in [
        some for r, some in zip(girder.requests, girder.receipts, strict=True) if not r
    ]


@pytest.mark.parametrize("error", [TypeError("no JSON"), GirderError("too large", status=413)])
async def test_delivery_of_an_undeliverable_update_blocks_no_other(error: Exception) -> None:
    girder = Girder()

    def answer(updates: list[JobUpdate]) -> Mapping[str, list[str]]:
        if any(u.log == "poison" for u in updates):
            raise error
        return {}

    girder.answer = answer
    async with recording(girder) as recorder:
        for job in "abcde":
            log = "poison" if job == "c" else job
            recorder.record(event(job, log=log, status=int(S.SUCCESS)))
        assert await recorder.flush(SECONDS)
    taken = [u for r in girder.requests for u in r]
    assert {u.id for u in taken if u.log != "poison" and u.statuses} == set("abcde")
    assert sorted(i for i, kind in girder.verdicts if kind == "done") == list("abcde")


class Proxy(Girder):
    """A Girder behind a proxy that refuses what is too large."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.taken: list[JobUpdate] = []

        def answer(updates: list[JobUpdate]) -> Mapping[str, list[str]]:
            if len(json.dumps([to_json(u.to_wire()) for u in updates])) > most:
                raise GirderError("Request Entity Too Large", status=413)
            self.taken += updates
            return {}

        self.answer = answer


async def test_delivery_divides_a_log_for_a_proxy_that_takes_little() -> None:
    girder = Proxy(most=10_000)
    lines = "".join(f"line {n}\n" for n in range(9000))
    async with recording(girder) as recorder:
        recorder.record(event("a", status=int(S.RUNNING), log=lines))
        recorder.record(event("b", log="b"))
        recorder.record(event("a", status=int(S.SUCCESS), log="end", result=b"r"))
        assert await recorder.flush(SECONDS)
    parts = [u for u in girder.taken if u.id == "a"]
    assert "".join(u.log or "" for u in parts) == lines + "end"
    numbers = [u.sequence for u in parts]
    assert numbers == sorted(set(numbers))
    assert [s for u in parts for s, _ in u.statuses or ()] == [int(S.RUNNING), int(S.SUCCESS)]
    assert parts[-1].result == b"r"
    assert [u.log for u in girder.taken if u.id == "b"] == ["b"]


async def test_delivery_replaces_a_result_that_a_proxy_refuses_by_an_error() -> None:
    girder = Proxy(most=10_000)
    async with recording(girder) as recorder:
        recorder.record(event("a", status=int(S.SUCCESS), log="all\n", result=b"r" * 10_000))
        assert await recorder.flush(SECONDS)
    (update,) = girder.taken
    assert (update.log, update.result) == ("all\n", None)
    assert update.error == "it could not be sent to Girder: Request Entity Too Large"


@pytest.mark.usefixtures("at_once")
async def test_delivery_divides_refused_acknowledgements_alone() -> None:
    girder, post = Girder(), None
    post = girder.post

    async def refuse_many(wire: list[dict[str, Any]], receipts: list[tuple[str, int]]) -> Any:
        answer = await post(wire, receipts)
        if len(receipts) > 3:
            raise GirderError("Request Entity Too Large", status=413)
        return answer

    girder.post = refuse_many  # type: ignore[method-assign]
    async with recording(girder) as recorder:
        girder.gate.clear()
        recorder.record(event("a", status=int(S.SUCCESS), log="a", result=b"r"))
        for n in range(10):
            recorder.record(event(f"b{n}"))
        girder.gate.set()
        assert await recorder.flush(SECONDS)
    taken = [some for some in girder.receipts if len(some) <= 3]
    assert sorted(job for some in taken for job, _ in some) == [f"b{n}" for n in range(10)]
    last = [u for r in girder.requests for u in r][-1]
    assert (last.log, last.result) == ("a", b"r")


class Receiver:
    """Takes updates as Girder does: each sequence number of an attempt once."""

    def __init__(self, outcomes: list[str]) -> None:
        self.outcomes = outcomes
        self.seen: dict[tuple[str, int], int] = {}
        self.log: dict[tuple[str, int], str] = defaultdict(str)
        self.statuses: dict[tuple[str, int], list[int]] = defaultdict(list)

    async def post(
        self,
        wire: list[dict[str, Any]],
        receipts: list[tuple[str, int]],  # noqa: ARG002
    ) -> Mapping[str, list[str]]:
        await asyncio.sleep(0)
        outcome = self.outcomes.pop() if self.outcomes else "works"
        if outcome == "fails before":
            raise GirderError("The request was lost.")
        for update in (JobUpdate.from_wire(each) for each in wire):
            key = (update.id, update.attempt)
            if update.sequence > self.seen.get(key, 0):
                self.seen[key] = update.sequence
                self.log[key] += update.log or ""
                self.statuses[key] += [int(status) for status, _ in update.statuses or ()]
        if outcome == "fails after":
            raise GirderError("The answer was lost.")
        return {}


steps = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(1, 2),
        st.none() | st.sampled_from([1, 2, 820]),
        st.booleans(),
    ),
    max_size=30,
)
outcomes = st.lists(st.sampled_from(["works", "fails before", "fails after"]), max_size=20)


@given(steps, outcomes, st.integers(1, 3))
@settings(deadline=None)
def test_delivery_of_every_log_is_complete_and_in_order(
    steps: list[tuple[str, int, int | None, bool]], outcomes: list[str], batch_size: int
) -> None:
    log: dict[tuple[str, int], str] = defaultdict(str)
    statuses: dict[tuple[str, int], list[int]] = defaultdict(list)
    receiver = Receiver(outcomes)

    async def main() -> None:
        recorder = Recorder(
            receiver.post,
            interval_s=0.0,
            batch_size=batch_size,
            retry_delay_s=0.0,
        )
        task = asyncio.create_task(recorder.run(lambda *_: None))
        for n, (job, attempt, status, pause) in enumerate(steps):
            recorder.record(event(job, attempt, log=f"{n},", status=status))
            log[job, attempt] += f"{n},"
            if status is not None:
                statuses[job, attempt].append(status)
            for _ in range(3 * pause):
                await asyncio.sleep(0)
        assert await recorder.flush(SECONDS)
        task.cancel()

    asyncio.run(main())
    assert receiver.log == log
    assert {k: v for k, v in receiver.statuses.items() if v} == statuses
