"""The main job: from ``delay()`` inside Girder to a finished job."""

from __future__ import annotations

import re
from typing import Any

import pytest

from girder_dask.jobs import JobStatus
from tests.support.girder_services import wait_until

IMAGE = bytes(range(256)) * 20


def states(job: dict[str, Any]) -> list[str]:
    """Return the names of the states that a job went through."""
    return [JobStatus(stamp["status"]).name for stamp in job["timestamps"]]


def start(stack: Any, client: Any, name: str, *args: Any, **kwargs: Any) -> str:
    """Start a task of my_worker_tasks by a route, and return the id of its job."""
    import json

    options = {k: kwargs.pop(k) for k in ("folderId",) if k in kwargs}
    answer = client.post(
        f"my_plugin/task/{name}",
        parameters={"args": json.dumps(args), "kwargs": json.dumps(kwargs), **options},
    )
    return str(answer["id"])


# -- the examples of Girder's documentation -----------------------------------------------------


def test_documented_call_runs_with_its_arguments(girder_stack, girder_user):
    shown = girder_user.client.post("my_plugin/start", parameters={"arg1": "a", "arg2": "b"})
    job = girder_stack.wait(shown["id"])
    assert states(job) == ["QUEUED", "RUNNING", "SUCCESS"]
    assert shown["user_id"] == girder_user.id
    assert shown["args"] == ["a", "b"]
    assert shown["kwargs"] == {"kwarg1": "hello", "kwarg2": "world"}
    assert shown["handler"] == "dask_handler"
    assert girder_stack.log(shown["id"]).splitlines() == [
        "arg1 is 'a'",
        "arg2 is 'b'",
        "kwarg1 is 'hello'",
        "kwarg2 is 'world'",
    ]


def test_documented_call_with_title_and_type(girder_stack, girder_user):
    shown = girder_user.client.post("my_plugin/start_titled")
    assert (shown["title"], shown["type"]) == ("This is my job", "my_task")
    assert girder_stack.wait(shown["id"])["status"] == JobStatus.SUCCESS


@pytest.mark.parametrize("route", ["process_file", "process_file_utils"])
def test_documented_call_with_a_file(girder_stack, girder_user, route):
    file = girder_user.client.uploadStreamToFolder(
        girder_user.folder["_id"], _stream(), "image.bin", len(IMAGE)
    )
    shown = girder_user.client.post(f"my_plugin/{route}/{file['_id']}")
    assert shown["kwargs"] == {"input_file": f"GirderFileId('{file['_id']}')"}
    job = girder_stack.wait(shown["id"])
    assert states(job) == ["QUEUED", "FETCHING_INPUT", "RUNNING", "SUCCESS"]
    assert f"'size': {len(IMAGE)}" in girder_stack.log(shown["id"])


def _stream() -> Any:
    import io

    return io.BytesIO(IMAGE)


# -- what is recorded ---------------------------------------------------------------------------


def test_options_of_a_call_set_fields_of_the_job(girder_stack, girder_user):
    job_id = start(
        girder_stack,
        girder_user.client,
        "noop",
        girder_job_title="My title",
        girder_job_type="my_type",
        girder_job_public=True,
        girder_job_other_fields={"station": 7},
    )
    job = girder_stack.wait(job_id)
    assert (job["title"], job["type"], job["public"]) == ("My title", "my_type", True)
    document = girder_stack.call(_document, job_id)
    assert document["station"] == 7


def _document(job_id: str) -> dict[str, Any]:
    from bson import ObjectId
    from girder_jobs.models.job import Job

    return dict(Job().collection.find_one({"_id": ObjectId(job_id)}))


def test_owner_can_be_another_user(girder_stack, girder_admin, girder_user):
    def start_for(user_id: str) -> str:
        from girder.models.user import User
        from my_worker_tasks import noop

        return noop.delay(girder_user=User().load(user_id, force=True)).id

    job_id = girder_stack.call(start_for, girder_user.id)
    girder_stack.wait(job_id)
    assert str(girder_stack.call(_document, job_id)["userId"]) == girder_user.id


def test_job_result_inside_girder(girder_stack, girder_user):
    def use() -> dict[str, Any]:
        from my_worker_tasks import my_task

        result = my_task.delay(1, girder_job_title="Index me")
        value = result.get(timeout=30)
        return {
            "value": value,
            "title": result["title"],
            "status": int(result.status),
            "ready": result.ready(),
            "successful": result.successful(),
            "failed": result.failed(),
            "log": result.log(),
            "repr": repr(result),
        }

    seen = girder_stack.call(use, user=girder_user)
    assert seen["value"] == {"args": [1], "kwargs": {}}
    assert (seen["title"], seen["status"]) == ("Index me", JobStatus.SUCCESS)
    assert (seen["ready"], seen["successful"], seen["failed"]) == (True, True, False)
    assert seen["log"] == "arg1 is 1\n"
    assert "SUCCESS" in seen["repr"]


def test_no_token_is_in_the_job_document(girder_stack, girder_user):
    file = girder_user.client.uploadStreamToFolder(
        girder_user.folder["_id"], _stream(), "image.bin", len(IMAGE)
    )
    job_id = girder_user.client.post(f"my_plugin/process_file_utils/{file['_id']}")["id"]

    def secrets_in_document(job_id: str) -> list[str]:
        from bson import ObjectId
        from girder.models.token import Token
        from girder_jobs.models.job import Job

        text = repr(Job().collection.find_one({"_id": ObjectId(job_id)}))
        return [str(t["_id"]) for t in Token().find() if str(t["_id"]) in text]

    assert girder_stack.call(secrets_in_document, job_id) == []
    girder_stack.wait(job_id)
    assert girder_stack.call(secrets_in_document, job_id) == []


def test_token_of_a_job_is_deleted_when_it_ends(girder_stack, girder_user, tmp_path):
    def use_token(path: str) -> None:
        import time
        from pathlib import Path

        from bson import ObjectId
        from girder.models.token import Token
        from my_worker_tasks import hold

        from girder_dask.plugin.store.models import DaskJob

        def until_there_are(count: int) -> None:
            deadline = time.monotonic() + 60
            while Token().collection.count_documents({"_id": token}) != count:
                assert time.monotonic() < deadline
                time.sleep(0.01)

        result = hold.delay(path)
        token = DaskJob().collection.find_one({"_id": ObjectId(result.id)})["token"]
        until_there_are(1)  # it is stored when the job is sent
        Path(path).touch()
        result.wait(60)
        until_there_are(0)  # the state is written first

    girder_stack.call(use_token, str(tmp_path / "go"), user=girder_user)


def test_scheduled_job_document_runs(girder_stack, girder_user):
    def schedule() -> tuple[str, int]:
        from girder.api.rest import getCurrentUser
        from girder_jobs.models.job import Job

        job = Job().createJob(
            title="By hand",
            type="manual",
            handler="dask_handler",
            user=getCurrentUser(),
            args=(1, 2),
            kwargs={"k": "v"},
            otherFields={"dask": {"task": "my_worker_tasks:my_task"}},
        )
        Job().scheduleJob(job)
        return str(job["_id"]), Job().load(job["_id"], force=True)["status"]

    job_id, status = girder_stack.call(schedule, user=girder_user)
    assert status != JobStatus.INACTIVE
    job = girder_stack.wait(job_id)
    assert states(job) == ["QUEUED", "RUNNING", "SUCCESS"]
    assert "k is 'v'" in girder_stack.log(job_id)


# -- output ---------------------------------------------------------------------------------------


def test_every_line_lands_in_its_own_job(girder_stack, girder_user):
    """Eight jobs at once, each of which prints 500 lines from each of four sources."""
    ids = {
        f"job{i}": start(girder_stack, girder_user.client, "chatty", 500, f"job{i}")
        for i in range(8)
    }
    for tag, job_id in ids.items():
        assert girder_stack.wait(job_id, timeout=90)["status"] == JobStatus.SUCCESS
        lines = girder_stack.log(job_id).splitlines()
        assert len(lines) == 2000
        for source in ("main", "thread", "logging", "subprocess"):
            assert [line for line in lines if f" {source} " in line] == [
                f"{tag} {source} {i}" for i in range(500)
            ]


SPEAKS = """
import pathlib, time
for n in range(1, 5):
    print("step", n)
    self.job_manager.updateProgress(total=4, current=n)
    while not pathlib.Path(path).exists():
        time.sleep(0.02)
"""


def test_output_arrives_while_the_job_runs(girder_stack, girder_user, tmp_path):
    go = tmp_path / "go"
    job_id = start(girder_stack, girder_user.client, "does", SPEAKS, path=str(go))
    wait_until(lambda: girder_stack.log(job_id) == "step 1\n", "the first line")
    seen = girder_stack.job(job_id)
    assert seen["status"] == JobStatus.RUNNING
    go.touch()
    job = girder_stack.wait(job_id)
    assert job["progress"]["current"] == 4
    assert girder_stack.log(job_id).split() == ["step", "1", "step", "2", "step", "3", "step", "4"]


def test_bytes_on_stdout_are_text_in_the_log(girder_stack, girder_user):
    job_id = start(girder_stack, girder_user.client, "writes_bytes")
    assert girder_stack.wait(job_id)["status"] == JobStatus.SUCCESS
    assert girder_stack.log(job_id) == "bytes to stdout\nbytes to buffer\n"


def test_each_job_sees_its_warning(girder_stack, girder_user):
    for _ in range(3):
        job_id = start(girder_stack, girder_user.client, "warns", "mind the gap")
        assert girder_stack.wait(job_id)["status"] == JobStatus.SUCCESS
        assert "UserWarning: mind the gap" in girder_stack.log(job_id)


# -- outputs --------------------------------------------------------------------------------------


def test_result_hook_uploads(girder_stack, girder_user):
    folder = girder_user.client.createFolder(girder_user.folder["_id"], "out", reuseExisting=True)
    job_id = start(girder_stack, girder_user.client, "make_files", 3, folderId=folder["_id"])
    job = girder_stack.wait(job_id)
    assert states(job) == ["QUEUED", "RUNNING", "PUSHING_OUTPUT", "SUCCESS"]
    items = girder_user.client.listItem(folder["_id"])
    assert sorted(item["name"] for item in items) == [f"file-{i}.txt" for i in range(3)]


def test_work_directory_is_gone_afterwards(girder_stack, girder_user):
    def work_dir() -> str:
        from my_worker_tasks import env

        return str(env.delay().get(timeout=30)["work_dir"])

    from pathlib import Path

    path = Path(girder_stack.call(work_dir, user=girder_user))
    assert path.parent.exists()
    assert not path.exists()


# -- errors ---------------------------------------------------------------------------------------


def test_traceback_is_that_of_the_users_code(girder_stack, girder_user):
    job_id = start(girder_stack, girder_user.client, "fails", "no coins here")
    job = girder_stack.wait(job_id)
    assert states(job) == ["QUEUED", "RUNNING", "ERROR"]
    log = girder_stack.log(job_id)
    assert log.startswith("Traceback (most recent call last):\n")
    assert log.endswith("ValueError: no coins here\n")
    assert re.findall(r"in (\w+)\n", log) == ["fails", "_raise"]
    assert "runner.py" not in log


@pytest.mark.parametrize(
    ("name", "said"), [("exits", "sys.exit(3)"), ("interrupts", "KeyboardInterrupt")]
)
def test_leaving_the_task_by_force_is_an_error(girder_stack, girder_user, name, said):
    workers = girder_stack.call(_worker_addresses)
    job_id = start(girder_stack, girder_user.client, name)
    job = girder_stack.wait(job_id)
    assert states(job) == ["QUEUED", "RUNNING", "ERROR"]
    log = girder_stack.log(job_id)
    assert log.startswith("about to ")
    assert said in log
    assert girder_stack.call(_worker_addresses) == workers


def _worker_addresses() -> list[str]:
    from distributed import Client
    from girder.models.setting import Setting

    with Client(Setting().get("dask.scheduler_address"), set_as_default=False) as client:
        return sorted(client.scheduler_info(n_workers=-1)["workers"])


def test_package_missing_on_the_worker(girder_stack, girder_user):
    """The package is there in Girder alone, as when an operator forgot the workers."""

    def start_unknown() -> str:
        import sys
        import types

        from girder_dask import task

        module = types.ModuleType("only_in_girder")
        sys.modules["only_in_girder"] = module

        def count() -> int:
            return 1

        count.__module__ = "only_in_girder"
        count.__qualname__ = "count"
        module.count = task(count)
        try:
            return str(module.count.delay().id)
        finally:
            del sys.modules["only_in_girder"]

    workers = girder_stack.call(_worker_addresses)
    job_id = girder_stack.call(start_unknown, user=girder_user)
    assert girder_stack.wait(job_id)["status"] == JobStatus.ERROR
    log = girder_stack.log(job_id)
    assert "only_in_girder" in log
    assert any(worker in log for worker in workers)
    assert "pip install 'only_in_girder'" in log
    assert girder_stack.call(_worker_addresses) == workers


def test_task_missing_in_its_package(girder_stack, girder_user):
    def start_removed() -> str:
        import my_worker_tasks

        from girder_dask import task

        def removed() -> None: ...

        removed.__module__ = my_worker_tasks.__name__
        removed.__qualname__ = "removed"
        my_worker_tasks.removed = task(removed)  # which Girder has, and the workers do not
        try:
            return str(my_worker_tasks.removed.delay().id)
        finally:
            del my_worker_tasks.removed

    job_id = girder_stack.call(start_removed, user=girder_user)
    assert girder_stack.wait(job_id)["status"] == JobStatus.ERROR
    assert "has no task 'removed'" in girder_stack.log(job_id)


def test_argument_that_cannot_be_pickled_makes_no_job(girder_stack, girder_user):
    def start_wrong() -> tuple[str, int]:
        import threading

        from girder_jobs.models.job import Job
        from my_worker_tasks import my_task

        from girder_dask.errors import ArgumentError

        before = Job().collection.count_documents({})
        try:
            my_task.delay(1, lock=threading.Lock())
        except ArgumentError as e:
            return str(e), Job().collection.count_documents({}) - before
        return "not raised", 0

    message, made = girder_stack.call(start_wrong, user=girder_user)
    assert "Argument 'lock'" in message
    assert made == 0


def test_file_that_does_not_exist(girder_stack, girder_user):
    def start_missing() -> str:
        from my_worker_tasks import file_size

        from girder_dask.transforms import GirderFileId

        return str(file_size.delay(GirderFileId("5f5f5f5f5f5f5f5f5f5f5f5f")).id)

    job_id = girder_stack.call(start_missing, user=girder_user)
    job = girder_stack.wait(job_id)
    assert states(job) == ["QUEUED", "FETCHING_INPUT", "ERROR"]
    log = girder_stack.log(job_id)
    assert "GirderFileId('5f5f5f5f5f5f5f5f5f5f5f5f')" in log
    assert "no such file" in log
    assert "Traceback" not in log


def test_file_that_the_owner_may_not_read(girder_stack, girder_admin, girder_user):
    folder = girder_admin.get(
        "folder", parameters={"parentType": "user", "parentId": _me(girder_admin)}
    )
    private = next(f for f in folder if f["name"] == "Private")
    file = girder_admin.uploadStreamToFolder(private["_id"], _stream(), "secret.bin", len(IMAGE))
    shown = girder_user.client.post(f"my_plugin/process_file/{file['_id']}")
    job = girder_stack.wait(shown["id"])
    assert states(job) == ["QUEUED", "FETCHING_INPUT", "ERROR"]
    assert "may not do this" in girder_stack.log(shown["id"])


def _me(client: Any) -> str:
    return str(client.get("user/me")["_id"])


# -- the end --------------------------------------------------------------------------------------


def test_cancel_of_a_running_job(girder_stack, girder_user):
    job_id = start(girder_stack, girder_user.client, "slow", 60, 600)
    girder_stack.wait(job_id, status=JobStatus.RUNNING)
    girder_user.client.put(f"job/{job_id}/cancel")
    job = girder_stack.wait(job_id)
    assert states(job) == ["QUEUED", "RUNNING", "CANCELING", "CANCELED"]
    assert "stopped after" in girder_stack.log(job_id)


def test_times_are_when_it_happened(girder_stack, girder_user):
    """And not when Girder has heard of it, which is later."""
    code = "import time; print(time.time()); time.sleep(1); print(time.time())"
    job_id = start(girder_stack, girder_user.client, "does", code)
    job = girder_stack.wait(job_id)
    stamps = girder_stack.call(_document, job_id)["timestamps"]
    times = [stamp["time"].timestamp() for stamp in stamps]
    assert times == sorted(times)
    assert states(job) == ["QUEUED", "RUNNING", "SUCCESS"]
    began, ended = map(float, girder_stack.log(job_id).split())
    assert times[-2] <= began
    assert ended - 0.001 <= times[-1], "the database keeps whole milliseconds"


# -- one job does not stop another -----------------------------------------------------------------


def test_odd_values_of_one_job_stop_no_other(girder_stack, girder_user):
    """What a task says may be anything; updates of other jobs must get through."""

    def start_odd() -> dict[str, str]:
        from my_worker_tasks import fails, my_task

        return {
            "surrogate": fails.delay("a lone surrogate: \udcff").id,
            "printed": my_task.delay("\udcff").id,
            "huge": my_task.delay(2**70).id,
        }

    ids = girder_stack.call(start_odd, user=girder_user)
    after = start(girder_stack, girder_user.client, "noop")
    assert girder_stack.wait(after)["status"] == JobStatus.SUCCESS
    assert girder_stack.wait(ids["surrogate"])["status"] == JobStatus.ERROR
    assert "a lone surrogate: \\udcff" in girder_stack.log(ids["surrogate"])
    assert girder_stack.wait(ids["printed"])["status"] == JobStatus.SUCCESS
    assert girder_stack.wait(ids["huge"])["status"] == JobStatus.SUCCESS


def test_a_stranger_neither_reads_nor_cancels_a_private_job(girder_stack, girder_user):
    import girder_client

    job_id = start(girder_stack, girder_user.client, "slow", 20, 20)
    girder_stack.wait(job_id, status=JobStatus.RUNNING)

    def try_both(job_id: str) -> list[str]:
        from girder_dask import GirderDaskError, JobResult

        refused = []
        for attempt in (lambda: JobResult(job_id).job, lambda: JobResult(job_id).cancel()):
            try:
                attempt()
            except GirderDaskError as e:
                refused.append(str(e))
        return refused

    stranger = girder_client.GirderClient(apiUrl=girder_stack.api)
    refused = girder_stack.call(try_both, job_id, user=stranger)
    assert len(refused) == 2
    assert (
        refused
        == [f"This request is not signed in and has no access to job {job_id}. Log in first."] * 2
    )
    assert girder_stack.job(job_id)["status"] == JobStatus.RUNNING
    girder_user.client.put(f"job/{job_id}/cancel")
    girder_stack.wait(job_id)
