"""Maps that are sent to Girder in pieces over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from my_worker_tasks import my_task

import girder_dask
from girder_dask import connect
from girder_dask.errors import JobCanceled
from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import MapParent
from girder_dask.protocol.request_limits import MAX_JOBS_PER_REQUEST
from girder_dask.protocol.wire_json import to_json
from tests.support.breaking_proxy import BreakingProxy, breaking_proxy
from tests.support.rest_site import ask, call

PIECE = 20


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("girder_dask.tasks.mapping.PIECE_JOBS", PIECE)


@pytest.fixture
def proxy(girder_stack: Any) -> Iterator[BreakingProxy]:
    with breaking_proxy(girder_stack.api) as proxy:
        yield proxy


@pytest.fixture
def connected(girder_stack: Any, proxy: BreakingProxy) -> Iterator[girder_dask.Connection]:
    """A connection through a proxy that cuts connections."""
    parameters = {"name": "pieces", "active": "true"}
    key = str(girder_stack.admin.post("api_key", parameters=parameters)["key"])
    with connect(proxy.url, api_key=key) as found:
        yield found


def group_of(stack: Any, job_id: str) -> dict[str, Any]:
    return dict(stack.job(job_id)["dask"]["group"])


def first_job(stack: Any, kind: str) -> dict[str, Any]:
    """Return the oldest job of a type, which is the parent of a map of that type."""
    oldest = {"limit": 1, "sort": "_id", "sortdir": 1, "types": json.dumps([kind])}
    return dict(stack.admin.get("job", oldest)[0])


def children_of(job_id: str) -> list[dict[str, Any]]:
    """Return arguments and states of the jobs of a map. Run it in Girder."""
    from bson import ObjectId
    from girder_jobs.models.job import Job

    fields = {"args": True, "status": True}
    found = Job().collection.find({"parentId": ObjectId(job_id)}, fields, sort=[("_id", 1)])
    return [{"args": job["args"], "status": job["status"]} for job in found]


@pytest.mark.usefixtures("connected")
def test_a_map_of_several_pieces_is_one_map(girder_stack: Any) -> None:
    seen: list[Any] = []

    def elements() -> Iterator[int]:
        for n in range(3 * PIECE + 5):
            if n == 2 * PIECE:
                parent = first_job(girder_stack, "pieces")
                seen.append(group_of(girder_stack, parent["_id"]))
            yield n

    result = my_task.map(elements(), girder_map_total=100, girder_job_type="pieces")
    assert [value["args"] for value in result.get(timeout=60)] == [[n] for n in range(65)]
    assert result.status == JobStatus.SUCCESS
    assert (seen[0]["total"], seen[0]["sending"]) == (100, True)
    group = group_of(girder_stack, result.id)
    assert (group["total"], group["done"]) == (65, 65)
    assert not {"sending", "recording", "incomplete", "lost"} & group.keys()
    assert len(girder_stack.call(children_of, result.id)) == 65
    titles = [result.results[n]["title"] for n in (0, -1)]
    assert titles == ["my_task 1/100", "my_task 65/100"]


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("direction", ["request", "answer"])
def test_a_connection_that_breaks_within_a_piece_loses_and_doubles_nothing(
    girder_stack: Any, proxy: BreakingProxy, direction: str
) -> None:
    size = 300 if direction == "answer" else 4_000

    def elements() -> Iterator[int]:
        for n in range(4 * PIECE):
            if n in (PIECE + 1, 3 * PIECE + 1):
                drop(proxy, size)
            yield n

    result = my_task.map(elements(), girder_map_total=4 * PIECE)
    assert proxy.done == 2
    values = [value["args"] for value in result.get(timeout=60)]
    assert values == [[n] for n in range(4 * PIECE)]
    assert len(girder_stack.call(children_of, result.id)) == 4 * PIECE


def drop(proxy: BreakingProxy, size: int) -> None:
    """Cut the connection, whose next piece comes through another one, after so many bytes."""
    proxy.cuts.append(size)


@pytest.mark.usefixtures("connected")
def test_cancel_stops_a_map_that_is_being_sent(girder_stack: Any) -> None:
    sent: list[int] = []
    nowhere = my_task.options(resources={"nowhere": 1})

    def elements() -> Iterator[int]:
        for n in range(10 * PIECE):
            if n == 3 * PIECE:
                parent = first_job(girder_stack, "stopped")
                sent.append(parent["_id"])
                girder_stack.admin.put(f"job/{parent['_id']}/cancel")
            yield n

    with pytest.raises(JobCanceled, match="was canceled after"):
        nowhere.map(elements(), girder_map_total=10 * PIECE, girder_job_type="stopped")
    job = girder_stack.wait(sent[0])
    assert job["status"] == JobStatus.CANCELED
    states = {child["status"] for child in girder_stack.call(children_of, sent[0])}
    assert states == {JobStatus.CANCELED}


@pytest.mark.parametrize("total", [None, 7 * PIECE])
def test_a_map_whose_client_dies_ends_as_incomplete(girder_stack: Any, total: int | None) -> None:
    parent = send_pieces(girder_stack, girder_stack.admin, 3, total=total)
    for child in girder_stack.call(child_ids, parent):
        girder_stack.wait(child)
    until_counted(girder_stack, parent, 3 * PIECE)
    job = girder_stack.job(parent)
    assert job["status"] == JobStatus.RUNNING, "its sender may go on"
    girder_stack.call(grow_old, parent)
    job = girder_stack.wait(parent)
    assert job["status"] == JobStatus.ERROR
    of_all = "" if total is None else f" of {total}"
    told = f"This map is incomplete: the process that sent it stopped after 60{of_all} jobs."
    assert told in girder_stack.log(parent)
    assert job["progress"]["message"].endswith(", others were never sent")
    late = send_piece(girder_stack, girder_stack.admin, parent, offset=3 * PIECE)
    assert late.status_code == 409
    assert "counts as incomplete" in late.json()["message"]


def test_a_piece_is_refused_for_what_is_no_open_map(girder_stack: Any, girder_user: Any) -> None:
    parent = send_pieces(girder_stack, girder_stack.admin, 1, more=False)
    answer = send_piece(girder_stack, girder_stack.admin, parent, offset=PIECE)
    assert (answer.status_code, "is complete" in answer.json()["message"]) == (409, True)
    missing = send_piece(girder_stack, girder_stack.admin, "5f3c00000000000000000000", offset=1)
    assert missing.status_code == 404
    girder_stack.call(make_admin, girder_user.id)
    foreign = send_piece(girder_stack, girder_user, parent, offset=PIECE)
    assert (foreign.status_code, "is not yours" in foreign.json()["message"]) == (403, True)
    assert len(girder_stack.call(children_of, parent)) == PIECE


def test_a_repeated_piece_is_recorded_once(girder_stack: Any) -> None:
    parent = send_pieces(girder_stack, girder_stack.admin, 1)
    again = [
        send_piece(
            girder_stack, girder_stack.admin, parent, offset=PIECE, more=False, key="ab" * 16
        )
        for _ in range(2)
    ]
    first, second = (answer.json()["ids"] for answer in again)
    assert first == second
    assert len(first) == PIECE
    assert girder_stack.wait(parent)["status"] == JobStatus.SUCCESS
    assert group_of(girder_stack, parent)["total"] == 2 * PIECE


def test_a_request_with_too_many_jobs_is_refused(girder_stack: Any) -> None:
    body = {"submissions": [None] * (MAX_JOBS_PER_REQUEST + 1)}
    answer = ask(girder_stack, "POST", "dask/job", by=girder_stack.admin, json=body)
    assert answer.status_code == 413
    assert "has 10,001 jobs, more than the 10,000" in answer.json()["message"]


# -- requests ------------------------------------------------------------------------------------


def calls(offset: int) -> list[dict[str, Any]]:
    return [call("my_worker_tasks:noop", title=f"n {offset + n}") for n in range(PIECE)]


def send_pieces(
    stack: Any, by: Any, count: int, *, total: int | None = None, more: bool = True
) -> str:
    """Send the first pieces of a map, and return its id."""
    group = to_json(MapParent("Pieces", total=total).to_wire())
    body = {"submissions": calls(0), "group": group, "more": more}
    parent = str(ask(stack, "POST", "dask/job", by=by, json=body).json()["jobs"][0]["_id"])
    for n in range(1, count):
        assert send_piece(stack, by, parent, offset=n * PIECE).ok
    return parent


def send_piece(
    stack: Any, by: Any, parent: str, *, offset: int, more: bool = True, key: str | None = None
) -> Any:
    body = {"submissions": calls(offset), "parent": parent, "offset": offset, "more": more}
    return ask(
        stack,
        "POST",
        "dask/job",
        by=by,
        data=json.dumps({**body, "key": key}),
        headers={"Content-Type": "application/json"},
    )


def until_counted(stack: Any, parent: str, done: int) -> None:
    from tests.support.fault_site import until

    until(lambda: group_of(stack, parent)["done"] == done)


def child_ids(parent: str) -> list[str]:
    from bson import ObjectId
    from girder_jobs.models.job import Job

    found = Job().collection.find({"parentId": ObjectId(parent)}, {"_id": True})
    return [str(job["_id"]) for job in found]


def grow_old(parent: str) -> None:
    """Let Girder believe that the last piece came long ago."""
    from datetime import datetime, timedelta, timezone

    from bson import ObjectId
    from girder_jobs.models.job import Job

    long_ago = datetime.now(timezone.utc) - timedelta(minutes=15)
    change = {"$set": {"dask.group.recording": long_ago, "updated": long_ago}}
    Job().collection.update_one({"_id": ObjectId(parent)}, change)


def make_admin(user_id: str) -> None:
    from bson import ObjectId
    from girder.models.user import User

    User().collection.update_one({"_id": ObjectId(user_id)}, {"$set": {"admin": True}})
