"""Maps that are sent in pieces while Girder is killed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from my_worker_tasks import my_task

from girder_dask import connect
from girder_dask.jobs import JobStatus
from tests.support.fault_site import FaultStack, until

S = JobStatus
PIECE = 20


def test_a_map_goes_on_after_girder_was_killed_between_two_pieces(
    fault_stack: Callable[..., FaultStack], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("girder_dask.tasks.mapping.PIECE_JOBS", PIECE)
    stack = fault_stack(workers=1, threads=2)
    key = stack.admin.post("api_key", parameters={"name": "pieces", "active": "true"})["key"]
    back = threading.Thread(target=stack.restart, args=("girder",))

    def elements() -> Iterator[int]:
        for n in range(5 * PIECE):
            if n == 2 * PIECE + 3:
                stack.kill("girder")
                back.start()
            yield n

    with connect(stack.girder, api_key=key):
        result = my_task.map(elements(), girder_map_total=5 * PIECE)
        back.join()
        values = [value["args"] for value in result.get(timeout=60)]
    assert values == [[n] for n in range(5 * PIECE)]
    job = stack.wait(result.id)
    assert job["status"] == S.SUCCESS
    assert job["dask"]["group"]["total"] == 5 * PIECE
    until(lambda: stack.job(result.id)["progress"]["current"] == 5 * PIECE)


def test_the_cancel_of_a_large_map_outlives_girder(fault_stack: Callable[..., FaultStack]) -> None:
    stack = fault_stack(workers=1, threads=2)

    def start(count: int) -> str:
        from my_worker_tasks import noop

        return str(noop.options(resources={"nowhere": 1}).starmap([()] * count).id)

    parent = stack.call(start, 3_000)
    stack.admin.put(f"job/{parent}/cancel")
    stack.kill("girder")
    stack.restart("girder")
    assert stack.wait(parent, 90)["status"] == S.CANCELED
    assert stack.job(parent)["dask"]["group"]["canceled"] == 3_000
