"""The ways in which jobs are canceled, and jobs that are deleted while they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import girder_client
import pytest
from cancel_site import (
    BEATS,
    assert_history,
    assert_whole,
    beats,
    is_over,
    running_does,
)
from fault_site import FaultStack, until

from girder_dask.jobs import JobStatus

S = JobStatus


def begin(stack: FaultStack, path: Path, user: Any = None, **options: Any) -> str:
    """Start a task that writes to a file until it is interrupted."""
    given = {"path": str(path), "silent": options.pop("silent", False)}

    def start() -> str:
        from my_worker_tasks import does

        return str(does.apply_async((BEATS,), given, **options).id)

    job_id = str(stack.call(start, user=user))
    if "resources" not in options:
        until(lambda: len(beats(path)) > 3)
    return job_id


def assert_all_is_well(stack: FaultStack) -> None:
    """Check that no part has died or complained, and that jobs run."""
    assert all(part.running for part in stack.parts)
    assert stack.wait(stack.start_task("noop"))["status"] == S.SUCCESS
    for part in stack.parts:
        if part.name not in ("mongod", "redis"):
            assert "Traceback" not in part.log.read_text(errors="replace"), part.name


def is_gone(stack: FaultStack, job_id: str) -> bool:
    try:
        stack.job(job_id)
    except girder_client.HttpError as e:
        return e.status == 400
    return False


def cancel_as_page(stack: FaultStack, job_id: str, user: Any) -> None:
    user.client.put(f"job/{job_id}/cancel")


def cancel_as_result(stack: FaultStack, job_id: str, user: Any) -> None:
    def cancel() -> None:
        from girder_dask import JobResult

        JobResult(job_id).cancel()

    stack.call(cancel, user=user)


@pytest.mark.parametrize("cancel", [cancel_as_page, cancel_as_result])
def test_cancel_by_the_owner(lasting_stack: FaultStack, tmp_path: Path, cancel: Any) -> None:
    user = lasting_stack.create_user()
    path, never = tmp_path / "beats", tmp_path / "never"
    job_id = begin(lasting_stack, path, user)
    waiting = begin(lasting_stack, never, user, resources={"nowhere": 1})
    for each in (waiting, job_id):
        cancel(lasting_stack, each, user)
    assert lasting_stack.job(waiting)["status"] == S.CANCELED
    assert_history(lasting_stack.job(waiting), ["QUEUED", "CANCELED"])
    job = lasting_stack.wait(job_id)
    assert is_over(path)
    assert_history(job)
    assert_whole("".join(job["log"]), path)
    assert not never.exists()


PARENT = """
from my_worker_tasks import does
options = [{}, {"isolation": "process"}, {"resources": {"nowhere": 1}}]
ids = [
    str(does.apply_async((code,), {"path": f"{path}{n}", "silent": False}, **each).id)
    for n, each in enumerate(options)
]
print(*ids, flush=True)
import time
while True:
    time.sleep(0.02)
"""


def test_cancel_of_the_parent(lasting_stack: FaultStack, tmp_path: Path) -> None:
    """Its jobs that run, in threads and processes, and those in the queue."""
    stack = lasting_stack
    user = stack.create_user()
    paths = [tmp_path / f"beats{n}" for n in range(3)]
    parent = running_does(stack, PARENT, user, code=BEATS, path=str(tmp_path / "beats"))
    children = stack.log(parent).split()
    assert len(children) == 3
    until(lambda: all(len(beats(path)) > 3 for path in paths[:2]))
    user.client.put(f"job/{parent}/cancel")
    assert stack.job(children[2])["status"] == S.CANCELED
    for job_id in (parent, *children[:2]):
        assert_history(stack.wait(job_id))
    for job_id, path in zip(children[:2], paths, strict=False):
        assert is_over(path)
        assert_whole(stack.log(job_id), path)
    assert not paths[2].exists()


def test_cancel_of_the_parent_of_a_map(lasting_stack: FaultStack, tmp_path: Path) -> None:
    calls = [(BEATS, str(tmp_path / f"beats{n}"), False) for n in range(2)]

    def start() -> tuple[str, list[str]]:
        from girder_dask import task

        @task
        def beat(call: Any) -> None:
            exec(call[0], {"path": call[1], "silent": call[2]})  # noqa: S102

        made = beat.map(calls)
        return str(made.id), [str(result.id) for result in made.results]

    parent, children = lasting_stack.call(start)
    until(lambda: all(len(beats(Path(path))) > 3 for _, path, _ in calls))
    lasting_stack.admin.put(f"job/{parent}/cancel")
    assert lasting_stack.wait(parent)["status"] == S.CANCELED
    for job_id in children:
        assert_history(lasting_stack.job(job_id))
    assert all(is_over(Path(path)) for _, path, _ in calls)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_job_document_deleted_while_it_runs(
    lasting_stack: FaultStack, tmp_path: Path, isolation: str, silent: bool
) -> None:
    stack = lasting_stack
    user = stack.create_user()
    path = tmp_path / "beats"
    job_id = begin(stack, path, user, silent=silent, isolation=isolation)
    user.client.delete(f"job/{job_id}")
    until(lambda: is_over(path), 15)
    assert is_gone(stack, job_id)
    assert_all_is_well(stack)
    assert is_gone(stack, job_id), "what its run said last has not brought it back"


def test_job_document_deleted_while_it_waits(fault_stack: Any, tmp_path: Path) -> None:
    """With a scheduler and without one: it never runs, neither do those that it has started."""
    stack = fault_stack(workers=1, threads=1)
    never = tmp_path / "never"
    held = begin(stack, tmp_path / "held")
    waiting = stack.start_task("tally", str(never), 1)
    until(lambda: stack.job(waiting)["dask"].get("scheduler"))
    known = stack.start_task("tally", str(never), 2)
    until(lambda: stack.job(known)["dask"].get("scheduler"))
    stack.admin.delete(f"job/{waiting}")
    stack.kill("scheduler")
    stack.admin.delete(f"job/{known}")
    late = stack.start_task("tally", str(never), 3)
    stack.admin.delete(f"job/{late}")
    stack.admin.delete(f"job/{held}")
    stack.restart("scheduler")
    until(lambda: is_over(tmp_path / "held"), 15)
    stack.kill("worker-0")
    stack.restart("worker-0")
    assert stack.wait(stack.start_task("noop"))["status"] == S.SUCCESS
    assert not never.exists()


def test_owner_deleted_while_jobs_run(lasting_stack: FaultStack, tmp_path: Path) -> None:
    stack = lasting_stack
    user = stack.create_user()
    paths = [tmp_path / name for name in ("thread", "process")]
    running = [begin(stack, path, user, isolation=path.name) for path in paths]
    never = tmp_path / "never"
    waiting = begin(stack, never, user, resources={"nowhere": 1})
    stack.admin.delete(f"user/{user.id}")
    assert_history(stack.job(waiting), ["QUEUED", "CANCELED"])
    why = f"The owner of this job, {user.login}, was deleted.\n"
    assert stack.log(waiting).endswith(why)
    for job_id, path in zip(running, paths, strict=True):
        job = stack.wait(job_id)
        assert is_over(path)
        assert_history(job)
        assert why in "".join(job["log"])
        assert_whole("".join(job["log"]).replace(why, ""), path)
    assert not never.exists()
    assert_all_is_well(stack)
