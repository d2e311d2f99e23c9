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
from girder_dask.protocol.names import SCHEDULER_SCOPE

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
    new = credential.create(client, name="old", revoke_others=True)
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
