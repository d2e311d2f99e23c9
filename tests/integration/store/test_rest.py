"""The routes of schedulers and users, over HTTP."""

from __future__ import annotations

import os
import sys
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import requests

from girder_dask._version import __version__
from girder_dask.jobs import JobStatus
from girder_dask.protocol.wire_json import to_json
from tests.support.girder_services import free_port, process, wait_until
from tests.support.loaded_girder import LoadedGirder
from tests.support.store_jobs import update

SERVE = "import sys; from girder.cli.serve import main; sys.exit(main())"


class Web:
    def __init__(self, api: str, loaded: LoadedGirder) -> None:
        self.api = api
        self._loaded = loaded

    def __call__(self, method: str, path: str, token: str | None = None, **options: Any):
        headers = {"Girder-Token": token} if token else {}
        return requests.request(
            method, f"{self.api}/{path}", headers=headers, timeout=30, **options
        )

    def log_in(self, login: str) -> str:
        return self._loaded.make_token(login)

    def sign_in(self, key: str) -> str:
        answer = self("POST", "api_key/token", data={"key": key})
        return answer.json()["authToken"]["token"]


@pytest.fixture(scope="module")
def web(loaded, services):
    port = free_port()
    command = [sys.executable, "-c", SERVE, "--mode", "production", "-p", str(port)]
    environment = {**os.environ, "GIRDER_DASK_TESTING_SECRET": "open sesame"}
    with process(command, port, services.directory / "girder.log", environment):
        web = Web(f"http://127.0.0.1:{port}/api/v1", loaded)
        wait_until(lambda: web("GET", "dask/ping").ok, "Girder", 60)
        yield web


@pytest.fixture
def credential(girder, web):
    """A token of a scheduler's API key, as it is made over HTTP."""
    admin = web.log_in("boss")
    made = web(
        "POST", "api_key", admin, params={"name": "s", "scope": '["dask.jobs.update"]'}
    ).json()
    return web.sign_in(made["key"])


def test_scheduler_claims_and_updates_over_http(girder, web, credential):
    (recorded,) = girder.record()
    claim = {"scheduler": "s", "limit": 10}
    answer = web("POST", "dask/job/claim", credential, json=claim).json()
    wire = to_json(recorded.spec.to_wire())
    assert answer.pop("site")
    assert (answer.pop("celery"), answer.pop("statuses")) == (False, [])
    assert answer == {"specs": [wire], "cancel": [], "held": None}
    news = update(
        recorded.spec.id, 1, JobStatus.RUNNING, JobStatus.SUCCESS, log="done\n", result=b"\0r"
    )
    body = {
        "scheduler": "s",
        "updates": [to_json(news.to_wire()), {"version": 99, "id": recorded.spec.id}],
        "received": [["5c0ffee5c0ffee5c0ffee5c0", 1]],
    }
    answer = web("POST", "dask/job/updates", credential, json=body).json()
    gone = ["5c0ffee5c0ffee5c0ffee5c0"]
    assert answer == {"stale": [recorded.spec.id], "gone": gone, "cancel": [], "superseded": []}
    assert girder.status(recorded.spec.id) == JobStatus.SUCCESS
    assert girder.store.result(recorded.spec.id).value == b"\0r"
    told = web("GET", "dask/credential", credential).json()
    assert told["versions"]["girder_dask"] == __version__

    def is_known_to_be_away() -> bool:  # None until the first attempt to connect is over
        told = web("GET", "dask/credential", credential).json()
        return told["scheduler"]["reachable"] is False

    wait_until(is_known_to_be_away, "the scheduler that is not there", 60)


@pytest.mark.parametrize("path", ["job/updates", "job/claim"])
def test_only_a_scheduler_may_update_and_claim(girder, web, path):
    (recorded,) = girder.record()
    body = {"scheduler": "s", "limit": 1, "updates": []}
    assert web("POST", f"dask/{path}", json=body).status_code == 401
    for login in ("carla", "boss"):
        answer = web("POST", f"dask/{path}", web.log_in(login), json=body)
        assert answer.status_code == 403, login
    # The token of a job is for data.
    answer = web("POST", f"dask/{path}", recorded.spec.token, json=body)
    assert answer.status_code in (401, 403)


def test_only_an_administrator_can_make_the_key_and_losing_that_ends_it(girder, web, credential):
    scope = {"name": "s", "scope": '["dask.jobs.update"]'}
    answer = web("POST", "api_key", web.log_in("carla"), params=scope)
    assert answer.status_code == 400
    assert "Invalid scopes" in answer.text
    girder.user_model.update({"_id": girder.admin["_id"]}, {"$set": {"admin": False}})
    try:
        assert web("GET", "dask/credential", credential).status_code == 403
    finally:
        girder.user_model.update({"_id": girder.admin["_id"]}, {"$set": {"admin": True}})
    girder.token.collection.update_many(
        {}, {"$set": {"expires": datetime.now(timezone.utc) - timedelta(seconds=1)}}
    )
    assert web("GET", "dask/credential", credential).status_code == 401


def test_credential_allows_nothing_else(girder, web, credential):
    assert web("GET", "user/me", credential).json() is None
    assert web("GET", "user", credential, params={"text": "x"}).status_code == 401
    assert web("GET", "system/setting", credential, params={"key": "x"}).status_code == 401


@pytest.mark.parametrize("body", ["", "no json", "[]", '{"scheduler": "s"}', '{"updates": []}'])
def test_body_that_cannot_be_read_is_refused(web, credential, body):
    answer = web("POST", "dask/job/updates", credential, data=body.encode())
    assert answer.status_code == 400
    assert answer.json()["message"]


def test_another_wire_version_is_refused_with_what_to_do(web, credential):
    body = {"scheduler": "s", "updates": [{"version": 99}]}
    answer = web("POST", "dask/job/updates", credential, json=body)
    assert answer.status_code == 400
    assert "girder-dask doctor" in answer.json()["message"]


def test_body_that_is_too_large_is_refused(web, credential):
    from girder_dask.plugin.rest.body_parser import MAX_BODY_BYTES

    answer = web("POST", "dask/job/updates", credential, data=b" " * (MAX_BODY_BYTES + 10))
    assert answer.status_code == 413


def test_status_and_documentation(girder, web, credential):
    assert web("GET", "dask/ping").json().keys() == {"plugin", "site"}
    assert web("GET", "dask/status").status_code == 401
    status = web("GET", "dask/status", web.log_in("carla")).json()
    assert status["scheduler"].keys() == {"address", "reachable", "error", "since"}
    assert status["credential"]["keys"] >= 1
    assert status["credential"]["lastUse"]
    described = web("GET", "describe").json()["paths"]
    assert {"/dask/job/updates", "/dask/job/claim", "/dask/status"} <= described.keys()
    assert "/dask/testing/call" not in described


def test_user_sees_the_attempt_and_no_secret_over_http(girder, web):
    (recorded,) = girder.record()
    for login in ("carla", "boss"):
        token = web.log_in(login)
        job = web("GET", f"job/{recorded.spec.id}", token)
        assert job.json()["dask"]["attempt"] == 1
        assert recorded.spec.token not in job.text
    canceled = web("PUT", f"job/{recorded.spec.id}/cancel", web.log_in("carla")).json()
    assert canceled["status"] == JobStatus.CANCELED


def test_testing_route_opens_to_the_secret_alone(girder, web):
    import base64

    from girder_dask.testing.remote import pack, unpack

    def whoami():
        from girder.api.rest import getCurrentUser

        return getCurrentUser()["login"]

    call = base64.b64encode(pack(whoami, (), {})).decode()
    token = web.log_in("carla")
    answer = web("POST", "dask/testing/call", token, json={"secret": "open sesame", "call": call})
    assert unpack(base64.b64decode(answer.json()["outcome"])) == "carla"
    for body in ({"secret": "wrong", "call": call}, {"call": call}, {"secret": 5}, []):
        for route in ("call", "user"):
            assert web("POST", f"dask/testing/{route}", token, json=body).status_code == 403


def test_testing_route_is_absent_without_the_variable(girder):
    from girder.exceptions import RestException

    from girder_dask.plugin.backend import GirderBackend
    from girder_dask.plugin.rest.scheduler import DaskResource
    from girder_dask.plugin.rest.testing import ENVIRONMENT_VARIABLE, mount

    assert ENVIRONMENT_VARIABLE not in os.environ
    resource = DaskResource(GirderBackend())
    mount(resource)
    with pytest.raises(RestException):
        resource._matchRoute("post", ("testing", "call"))
