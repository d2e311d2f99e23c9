"""The pytest plugin, used as authors of tasks use it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import girder_client
import pytest

from girder_dask.jobs import JobStatus

if TYPE_CHECKING:
    from girder_dask.testing.stack import TestStack, User


def _who_and_where(greeting: str, *, mark: str) -> dict[str, Any]:
    import os

    from girder.api.rest import getCurrentUser

    return {"login": getCurrentUser()["login"], "text": greeting + mark, "pid": os.getpid()}


def _raise() -> None:
    raise LookupError("not here")


def _create_job(title: str, status: int, *lines: str) -> dict[str, Any]:
    from girder.api.rest import getCurrentUser
    from girder_jobs.models.job import Job

    model = Job()
    job = model.createJob(title=title, type="test", user=getCurrentUser())
    for line in lines:
        model.updateJob(job, log=line)
    for step in (JobStatus.QUEUED, JobStatus.RUNNING, status):
        if job["status"] != step:
            model.updateJob(job, status=int(step))
    return {"_id": str(job["_id"])}


def test_call_runs_in_girder_as_the_user(girder_stack: TestStack, girder_user: User) -> None:
    answer = girder_stack.call(_who_and_where, "hello", mark="!", user=girder_user)
    assert answer == {
        "login": girder_user.login,
        "text": "hello!",
        "pid": girder_stack.pids["girder"],
    }
    as_admin = girder_stack.call(_who_and_where, "", mark="")
    assert as_admin["login"] == girder_stack.login


def test_call_raises_what_was_raised_in_girder(girder_stack: TestStack) -> None:
    with pytest.raises(LookupError, match="not here") as caught:
        girder_stack.call(_raise)
    assert "in _raise" in str(caught.value.__cause__)


@pytest.mark.parametrize("route", ["call", "user"])
def test_call_needs_the_secret(girder_stack: TestStack, girder_admin: Any, route: str) -> None:
    with pytest.raises(girder_client.HttpError) as caught:
        girder_admin.post(f"dask/testing/{route}", json={"secret": "guess", "call": ""})
    assert caught.value.status == 403


def test_a_user_is_ordinary_and_new(girder_stack: TestStack, girder_user: User) -> None:
    me = girder_user.client.get("user/me")
    assert me["_id"] == girder_user.id
    assert not me["admin"]
    assert not girder_user.folder["public"]
    assert girder_stack.create_user().id != girder_user.id


def test_upload(girder_stack: TestStack, girder_user: User, tmp_path: Path) -> None:
    path = tmp_path / "values.csv"
    path.write_text("1,2\n")
    file = girder_stack.upload(path, client=girder_user.client)
    assert file["name"] == "values.csv"
    item = girder_user.client.getItem(file["itemId"])
    assert item["folderId"] == girder_user.folder["_id"]
    assert girder_stack.upload(b"abc", "raw.bin")["size"] == 3


def test_wait_and_log(girder_stack: TestStack) -> None:
    job = girder_stack.call(_create_job, "well", JobStatus.SUCCESS, "one\n", "two\n")
    assert girder_stack.wait(job["_id"])["status"] == JobStatus.SUCCESS
    assert girder_stack.log(job["_id"]) == "one\ntwo\n"


def test_wait_tells_why(girder_stack: TestStack) -> None:
    failed = girder_stack.call(_create_job, "ill", JobStatus.ERROR, "it broke\n")
    with pytest.raises(AssertionError, match=r"'ill'\) is ERROR, not SUCCESS(?s:.*)it broke\n"):
        girder_stack.wait(failed["_id"], status=JobStatus.SUCCESS)
    running = girder_stack.call(_create_job, "slow", JobStatus.RUNNING, "still at it\n")
    with pytest.raises(TimeoutError, match=r"'slow'\) is RUNNING after 0.1 s(?s:.*)still at it\n"):
        girder_stack.wait(running["_id"], timeout=0.1)


@pytest.mark.timeout(400)
def test_failing_test_shows_the_logs(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\ngirder_dask_workers = 1\n")
    (tmp_path / "test_it.py").write_text(
        "def test_fails(girder_stack):\n"
        "    assert girder_stack.workers == 1\n"
        "    assert [n for n in girder_stack.pids if 'worker' in n] == ['worker-0']\n"
        "    assert False, 'on purpose'\n"
        "def start(*words):\n"
        "    from my_worker_tasks.endings import fails\n"
        "    return fails.delay(' '.join(words)).id\n"
        "def test_job_fails(girder_stack):\n"
        "    girder_stack.wait(girder_stack.call(start, 'too', 'cold'), status=3)\n"
        "def hang():\n"
        "    from my_worker_tasks.endings import slow\n"
        "    return slow.delay(60.0, 1).id\n"
        "left = []\n"
        "def test_job_takes_too_long(girder_stack):\n"
        "    left.append(girder_stack.call(hang))\n"
        "    girder_stack.wait(left[0], status=2)\n"
        "    girder_stack.wait(left[0], timeout=0.1)\n"
        "def test_job_of_a_failed_test_is_canceled(girder_stack):\n"
        "    girder_stack.wait(left[0], status=5)\n"
    )
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:randomly",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        # In CI, pytest repeats each whole message in its summary.
        env={k: v for k, v in os.environ.items() if k not in {"CI", "BUILD_NUMBER"}},
    )
    assert run.returncode == 1
    assert "3 failed, 1 passed" in run.stdout, run.stdout
    assert "AssertionError: on purpose" in run.stdout
    assert "--- worker-0" in run.stdout
    assert "Starting Worker plugin" in run.stdout
    assert "cherrypy.access" not in run.stdout, "a test knows its requests"
    assert "Girder server running" in run.stdout
    assert run.stdout.count(": too cold") == 1, "the log of the job tells it"
    assert run.stdout.count("is ERROR, not SUCCESS. Its log:") == 1
    assert run.stdout.count("is RUNNING after 0.1 s. Its log:") == 1
    assert run.stdout.count("--- scheduler") == 3, "each report has it once"
    assert "def wait" not in run.stdout


def test_plugin_costs_nothing_when_unused(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_lean():\n"
        "    heavy = {'girder', 'distributed', 'pymongo', 'psutil', 'girder_dask.standalone'}\n"
        "    assert not heavy & set(sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
    )
    assert run.returncode == 0, run.stdout
