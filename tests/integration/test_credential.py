"""``girder-dask credential`` against a real Girder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import girder_client
import pytest

from girder_dask import credential
from girder_dask.credential import NAME
from girder_dask.jobs import JobStatus
from girder_dask.protocol.names import SCHEDULER_SCOPE
from girder_dask.protocol.payload import pack_call
from tests.support.deadline import until
from tests.support.rest_site import ask, call, submit

if TYPE_CHECKING:
    from girder_dask.testing.stack import TestStack, User


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "girder_dask.cli", "credential", *args],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **env},
    )


def scopes(stack: TestStack, key: str) -> list[str]:
    client = girder_client.GirderClient(apiUrl=stack.api)
    answer = client.post("api_key/token", parameters={"key": key})
    return list(answer["authToken"]["scope"])


def test_key_that_is_printed_may_update_jobs_alone(girder_stack: TestStack) -> None:
    made = run("--api-url", girder_stack.api, GIRDER_API_KEY=girder_stack.api_key)
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert scopes(girder_stack, key) == [SCHEDULER_SCOPE]
    client = girder_client.GirderClient(apiUrl=girder_stack.api)
    client.authenticate(apiKey=key)
    with pytest.raises(girder_client.HttpError):
        client.get("user")


def test_key_in_a_file(girder_stack: TestStack, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("an older one")
    path.chmod(0o644)
    made = run(
        *("--api-url", girder_stack.api, "--login", girder_stack.login, "--output", str(path)),
        GIRDER_PASSWORD=girder_stack.password,
    )
    assert made.returncode == 0, made.stderr
    assert f"DASK_GIRDER__CREDENTIAL_FILE={path}" in made.stdout
    key = path.read_text().strip()
    assert key not in made.stdout
    assert path.stat().st_mode & 0o777 == 0o600
    assert scopes(girder_stack, key) == [SCHEDULER_SCOPE]


def test_others_are_revoked_on_demand(girder_stack: TestStack) -> None:
    client = girder_stack.client()
    old = credential.create(client, name="old")
    kept = credential.create(client, name="kept")
    new = credential.create(client, name="old")
    assert scopes(girder_stack, old) == [SCHEDULER_SCOPE]
    credential.revoke_others(client, new, name="old")
    with pytest.raises(girder_client.HttpError):
        scopes(girder_stack, old)
    assert scopes(girder_stack, kept) == scopes(girder_stack, new) == [SCHEDULER_SCOPE]


def _fails(*args: str, **env: str) -> str:
    made = run(*args, **env)
    assert made.returncode == 1
    assert made.stdout == ""
    assert "Traceback" not in made.stderr
    return made.stderr


def test_errors_say_what_to_do(girder_stack: TestStack, girder_user: User) -> None:
    api = girder_stack.api
    user_key = girder_user.client.post("api_key", parameters={"name": "mine"})["key"]
    message = _fails("--api-url", api, GIRDER_API_KEY=user_key)
    assert f"{girder_user.login} is not an administrator" in message

    assert "refuses the API key" in _fails("--api-url", api, GIRDER_API_KEY="wrong")
    wrong = _fails("--api-url", api, "--login", "admin", GIRDER_PASSWORD="no")
    assert "refuses the login 'admin'" in wrong

    nowhere = _fails("--api-url", "http://127.0.0.1:1/api/v1", GIRDER_API_KEY="x")
    assert "cannot be reached" in nowhere
    assert "refused" in nowhere

    page = _fails("--api-url", girder_stack.girder, GIRDER_API_KEY="x")
    assert "is not Girder's REST API" in page
    assert "/api/v1" in page


def test_a_key_and_a_login_exclude_each_other(girder_stack: TestStack) -> None:
    both = run("--api-url", girder_stack.api, "--login", "y", GIRDER_API_KEY="x")
    assert both.returncode == 2
    assert "either" in both.stderr


_RUN = """
import pathlib, time
with open(f"{directory}/runs", "a") as runs:
    runs.write(f"{number}\\n")
deadline = time.monotonic() + 60
while not pathlib.Path(directory, "go").exists() and time.monotonic() < deadline:
    time.sleep(0.02)
"""


def test_replacement_while_jobs_run_costs_none_of_them(
    girder_stack: TestStack, tmp_path: Path
) -> None:
    """The scheduler, which is not restarted, reads the new key when the old one is refused."""
    old = girder_stack.credential_file.read_text().strip()
    payloads = (
        pack_call((_RUN,), {"number": number, "directory": str(tmp_path)}) for number in range(25)
    )
    calls = [call("my_worker_tasks.steady:does", payload=payload) for payload in payloads]
    answer = submit(girder_stack, *calls, by=girder_stack.admin)
    jobs = [job["_id"] for job in answer.json()["jobs"]]
    runs = tmp_path / "runs"
    try:
        until(lambda: runs.exists() and len(runs.read_text().split()) >= 4)
        made = run(
            *("--api-url", girder_stack.api, "--output", str(girder_stack.credential_file)),
            "--revoke-others",
            GIRDER_API_KEY=girder_stack.api_key,
        )
        assert made.returncode == 0, made.stderr
        with pytest.raises(girder_client.HttpError):
            scopes(girder_stack, old)
    finally:  # otherwise the jobs would block the workers for the tests that follow
        (tmp_path / "go").touch()

    ended = [girder_stack.wait(job, status=JobStatus.SUCCESS) for job in jobs]
    assert sorted(map(int, runs.read_text().split())) == list(range(25))
    assert {job["dask"]["attempt"] for job in ended} == {1}
    keys = girder_stack.admin.listResource("api_key")
    (key,) = [key for key in keys if key["scope"] == [SCHEDULER_SCOPE] and key["name"] == NAME]
    assert key["key"] == girder_stack.credential_file.read_text().strip()
    assert key["lastUse"] is not None


def start_dependent(job_id: str) -> str:
    from my_worker_tasks import add_one

    from girder_dask import JobResult

    return str(add_one.delay(JobResult(job_id)).id)


def test_replacement_ends_no_job_that_waits_for_another(girder_stack: TestStack) -> None:
    """The scheduler asks about a job that it no longer has, with the token of the old key."""
    first = girder_stack.wait(girder_stack.call(_start_add_one), status=JobStatus.SUCCESS)["_id"]
    girder_stack.wait(girder_stack.call(start_dependent, first), status=JobStatus.SUCCESS)
    for _ in range(3):  # it has two connections, and asks for other reasons as well
        made = run(
            *("--api-url", girder_stack.api, "--output", str(girder_stack.credential_file)),
            "--revoke-others",
            GIRDER_API_KEY=girder_stack.api_key,
        )
        assert made.returncode == 0, made.stderr
        second = girder_stack.call(start_dependent, first)
        girder_stack.wait(second, status=JobStatus.SUCCESS)


def _start_add_one() -> str:
    from my_worker_tasks import add_one

    return str(add_one.delay(1).id)


@pytest.mark.parametrize("route", ["states", "results"])
def test_revoked_key_is_refused_where_answers_leave_jobs_out(
    girder_stack: TestStack, route: str
) -> None:
    key = credential.create(girder_stack.admin, name="revoked soon")
    client = girder_client.GirderClient(apiUrl=girder_stack.api)
    token = client.post("api_key/token", parameters={"key": key})["authToken"]["token"]
    body = {"ids": ["0" * 24]}
    assert ask(girder_stack, "POST", f"dask/job/{route}", token=token, json=body).status_code == 200
    other = credential.create(girder_stack.admin, name="revoked soon")
    credential.revoke_others(girder_stack.admin, other, name="revoked soon")
    refused = ask(girder_stack, "POST", f"dask/job/{route}", token=token, json=body)
    assert refused.status_code == 401
    assert "was revoked" in refused.json()["message"]
    assert ask(girder_stack, "POST", f"dask/job/{route}", json=body).status_code == 200
