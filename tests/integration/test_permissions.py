"""Who may start what from outside Girder, with which token, and who may read what came of it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from girder_dask.jobs import JobStatus
from girder_dask.protocol.names import ATTEMPT_HEADER, JOB_HEADER, UPLOAD_HEADER
from girder_dask.protocol.payload import pack_call
from tests.support.rest_site import ask, call, count_jobs, start_waiting, submit

TASK = "my_worker_tasks:my_task"
PICKLED = pack_call((range(3),), {})
KEYS = ("dask.submitters", "dask.allow_tasks", "dask.direct_path")


@pytest.fixture(autouse=True)
def defaults(girder_admin) -> Iterator[None]:
    """Leave the settings as they were."""
    yield
    for key in KEYS:
        girder_admin.delete("system/setting", parameters={"key": key})


def configure(admin: Any, key: str, value: Any) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    admin.put("system/setting", parameters={"key": key, "value": text})


def make_group(admin: Any, *members: Any, public: bool = True) -> dict[str, Any]:
    name = f"dask {secrets.token_hex(3)}"
    group = admin.post("group", parameters={"name": name, "public": str(public).lower()})
    for member in members:
        admin.post(
            f"group/{group['_id']}/invitation", parameters={"userId": member.id, "force": "true"}
        )
    return dict(group)


def message(answer: requests.Response) -> str:
    assert answer.headers["Content-Type"].startswith("application/json"), answer.text
    return str(answer.json()["message"])


# -- who ----------------------------------------------------------------------------------------


def test_by_default_site_administrators_alone_start_jobs(girder_stack, girder_user, girder_admin):
    assert submit(girder_stack, call(payload=PICKLED), by=girder_admin).status_code == 200
    refused = submit(girder_stack, call(), by=girder_user)
    assert refused.status_code == 403
    assert f"User '{girder_user.login}' may not start {TASK} on Dask" in message(refused)
    assert "only site administrators may" in message(refused)
    assert "dask.submitters" in message(refused)
    assert girder_stack.call(count_jobs, girder_user.id) == 0


def test_who_is_not_logged_in_starts_nothing(girder_stack, girder_admin):
    configure(girder_admin, "dask.allow_tasks", value=True)
    for token in (None, "no token at all"):
        answer = submit(girder_stack, call(), token=token)
        assert answer.status_code == 401
        assert "logged in" in message(answer)


def test_members_of_the_group_start_what_they_like(girder_stack, girder_user, girder_admin):
    group = make_group(girder_admin, girder_user)
    configure(girder_admin, "dask.submitters", group["_id"])
    answer = submit(girder_stack, call(payload=PICKLED), by=girder_user)
    assert answer.status_code == 200, answer.text
    refused = submit(girder_stack, call(), by=girder_stack.create_user())
    assert refused.status_code == 403
    assert f"the group '{group['name']}'" in message(refused)
    girder_admin.delete(f"group/{group['_id']}/member", parameters={"userId": girder_user.id})
    assert submit(girder_stack, call(), by=girder_user).status_code == 403


def test_the_name_of_a_private_group_is_not_told(girder_stack, girder_user, girder_admin):
    group = make_group(girder_admin, public=False)
    configure(girder_admin, "dask.submitters", group["_id"])
    refused = submit(girder_stack, call(), by=girder_user)
    assert refused.status_code == 403
    assert group["name"] not in message(refused)


# -- what ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "lets_in"),
    [
        (True, True),
        (["my_worker_tasks:*"], True),
        (["other:*", TASK], True),
        (["my_worker_tasks:MY_TASK"], False),
        (["my_worker_tasks"], False),
        (False, False),
        ([], False),
    ],
)
def test_users_start_the_tasks_that_are_allowed(
    girder_stack, girder_user, girder_admin, allowed, lets_in
):
    configure(girder_admin, "dask.allow_tasks", allowed)
    answer = submit(girder_stack, call(TASK, 7), by=girder_user)
    assert answer.status_code == (200 if lets_in else 403), answer.text
    assert girder_stack.call(count_jobs, girder_user.id) == (1 if lets_in else 0)


def test_users_send_no_pickles(girder_stack, girder_user, girder_admin):
    configure(girder_admin, "dask.allow_tasks", value=True)
    refused = submit(girder_stack, call(), call(payload=PICKLED), by=girder_user)
    assert refused.status_code == 403
    assert "opening a pickle runs code" in message(refused)
    assert "Pass plain values" in message(refused)
    # All or nothing.
    assert girder_stack.call(count_jobs, girder_user.id) == 0


def test_nobody_names_an_owner_or_a_parent_of_others(girder_stack, girder_user, girder_admin):
    configure(girder_admin, "dask.allow_tasks", value=True)
    theirs = girder_stack.call(start_waiting)
    boss = girder_admin.get("user/me")
    forged = {**call(), "user": boss}
    (job,) = submit(girder_stack, forged, by=girder_user).json()["jobs"]
    assert girder_user.client.get(f"job/{job['_id']}")["_accessLevel"] == 2
    assert girder_stack.call(count_jobs, girder_user.id) == 1
    refused = submit(girder_stack, call(other_fields={"parentId": theirs["id"]}), by=girder_user)
    assert refused.status_code == 403
    assert "Write access denied" in message(refused)
    own = girder_stack.call(start_waiting, user=girder_user)
    (job,) = submit(
        girder_stack, call(other_fields={"parentId": own["id"]}), by=girder_user
    ).json()["jobs"]
    assert job["parentId"] == own["id"]


def test_who_may_not_read_a_job_cannot_depend_on_it(girder_stack, girder_user, girder_admin):
    configure(girder_admin, "dask.allow_tasks", value=True)
    theirs = girder_stack.call(start_waiting)
    refused = submit(girder_stack, call(TASK, 1), call(dependencies=[theirs["id"]]), by=girder_user)
    assert refused.status_code == 403
    assert f"{girder_user.login} may not read job {theirs['id']}" in message(refused)
    assert girder_stack.call(count_jobs, girder_user.id) == 0


def test_from_girder_who_may_not_read_a_job_cannot_depend_on_it(girder_stack, girder_user):
    def depend(job_id: str) -> str:
        from girder_dask.client.backend import get_backend
        from girder_dask.errors import SubmissionError
        from girder_dask.protocol.messages import Submission

        call = Submission(TASK, PICKLED, dependencies=[job_id])
        try:
            get_backend().submit([call])
        except SubmissionError as e:
            return str(e)
        return ""

    theirs = girder_stack.call(start_waiting)
    refused = girder_stack.call(depend, theirs["id"], user=girder_user)
    assert f"{girder_user.login} may not read job {theirs['id']}" in refused
    assert girder_stack.call(count_jobs, girder_user.id) == 0


# -- tokens -------------------------------------------------------------------------------------


def test_a_key_with_the_scope_starts_jobs_and_nothing_else(girder_stack, girder_user, girder_admin):
    configure(girder_admin, "dask.allow_tasks", value=True)
    scope = {"name": "notebook", "scope": '["dask.jobs.submit"]'}
    key = girder_user.client.post("api_key", parameters=scope)["key"]
    token = girder_admin.post("api_key/token", parameters={"key": key})["authToken"]["token"]
    assert submit(girder_stack, call(), token=token).status_code == 200
    folder = ask(girder_stack, "GET", f"folder/{girder_user.folder['_id']}", token=token)
    assert folder.status_code == 401


@pytest.mark.parametrize("scope", ["core.data.read", "core.data.write", "core.user_info.read"])
def test_other_scopes_start_no_jobs(girder_stack, girder_user, girder_admin, scope):
    configure(girder_admin, "dask.allow_tasks", value=True)
    made = girder_user.client.post("api_key", parameters={"name": "x", "scope": f'["{scope}"]'})
    token = girder_admin.post("api_key/token", parameters={"key": made["key"]})
    answer = submit(girder_stack, call(), token=token["authToken"]["token"])
    assert answer.status_code == 401


def test_an_expired_token_starts_nothing(girder_stack, girder_user):
    def expire(token: str) -> None:
        from datetime import datetime, timedelta, timezone

        from girder.models.token import Token

        past = datetime.now(timezone.utc) - timedelta(seconds=1)
        Token().collection.update_one({"_id": token}, {"$set": {"expires": past}})

    parent = girder_stack.call(start_waiting, user=girder_user)
    girder_stack.call(expire, parent["token"])
    assert submit(girder_stack, call(), token=parent["token"]).status_code == 401
    artifact = ask(
        girder_stack,
        "POST",
        f"job/{parent['id']}/artifact",
        token=parent["token"],
        params={"name": "x"},
        data=b"x",
    )
    assert artifact.status_code == 401


def test_the_token_of_a_job_reads_what_its_owner_reads_and_no_more(girder_stack, girder_user):
    job = girder_stack.call(start_waiting, user=girder_user)
    theirs = girder_stack.call(start_waiting)
    sees = {"token": job["token"]}
    assert ask(girder_stack, "GET", f"job/{job['id']}", **sees).status_code == 200
    assert ask(girder_stack, "GET", f"dask/job/{job['id']}/result", **sees).status_code == 200
    assert ask(girder_stack, "GET", f"job/{theirs['id']}", **sees).status_code == 403
    refused = ask(girder_stack, "GET", f"dask/job/{theirs['id']}/result", **sees)
    assert refused.status_code == 403
    assert f"job {theirs['id']}" in message(refused)
    # It is not a token of the user: nothing but data and jobs.
    assert ask(girder_stack, "GET", "user/me", **sees).json() is None
    assert ask(girder_stack, "PUT", f"job/{job['id']}/cancel", **sees).status_code == 401


def start_with_token_of(user_id: str) -> dict[str, str]:
    """Record a job with a token of a user, which is not made for it. Run it in Girder."""
    from girder.api.rest import getCurrentUser
    from girder.models.token import Token
    from girder.models.user import User

    from girder_dask.plugin.store import recording
    from girder_dask.protocol.messages import Submission

    token = str(Token().createToken(User().load(user_id, force=True), days=1)["_id"])
    waiting = Submission(
        TASK, pack_call((), {}), title="Waits", token=token, resources={"nowhere": 1}
    )
    (recorded,) = recording.record([waiting], getCurrentUser())
    return {"id": recorded.spec.id, "token": token}


def test_a_token_that_a_job_was_given_has_no_more_rights_than_before(
    girder_stack, girder_user, girder_admin
):
    """It may speak of the attempts of exactly that job, while it is at work."""

    def tried(job_id: str, token: str = "") -> dict[str, int]:
        routes = {
            "begin": ("POST", "dask/job/{}/begin?attempt=1&run=r&worker=w"),
            "settle": ("POST", "dask/job/{}/upload?name=none"),
            "uploads": ("GET", "dask/job/{}/uploads"),
            "artifact": ("POST", "job/{}/artifact?name=x&size=0"),
            "artifacts": ("GET", "job/{}/artifact"),
            "log": ("GET", "dask/job/{}/log"),
            "result": ("GET", "dask/job/{}/result"),
            "job": ("GET", "job/{}"),
            "cancel": ("PUT", "dask/job/{}/cancel"),
        }
        return {
            name: ask(
                girder_stack, method, path.format(job_id), token=token or job["token"]
            ).status_code
            for name, (method, path) in routes.items()
        }

    owner = girder_stack.create_user()
    job = girder_stack.call(start_with_token_of, girder_user.id, user=owner)
    theirs = girder_stack.call(start_waiting, user=owner)
    nothing = dict.fromkeys(tried(theirs["id"]), 403)
    assert tried(theirs["id"]) == nothing
    assert tried(job["id"]) == {**nothing, "begin": 200, "settle": 200, "uploads": 200}
    # Another token of the same user is not the one of the job.
    assert tried(job["id"], girder_user.client.token) == nothing
    ask(girder_stack, "PUT", f"dask/job/{job['id']}/cancel", by=owner)
    assert tried(job["id"]) == nothing


def test_a_token_that_a_job_was_given_lists_and_removes_what_its_user_may(
    girder_stack, girder_user, girder_admin
):
    def share(*users: str) -> None:
        rights = [{"id": user, "level": 1, "flags": []} for user in users]
        access = json.dumps({"users": rights, "groups": []})
        girder_admin.put(f"folder/{folder}/access", parameters={"access": access})

    def send(method: str, path: str) -> Any:
        headers = {ATTEMPT_HEADER: "1", JOB_HEADER: job["id"], UPLOAD_HEADER: "mine"}
        return ask(girder_stack, method, path, token=job["token"], headers=headers).json()

    job = girder_stack.call(start_with_token_of, girder_user.id, user=girder_stack.create_user())
    boss = girder_admin.get("user/me")["_id"]
    folder = girder_admin.createFolder(boss, job["id"], parentType="user", public=False)["_id"]
    share(girder_user.id)
    made = send("POST", f"file?parentType=folder&parentId={folder}&name=out&size=0")
    listed = f"dask/job/{job['id']}/uploads"
    assert [file["_id"] for file in send("GET", listed)] == [made["_id"]]
    share()
    assert send("GET", listed) == []

    girder_admin.delete(f"file/{made['_id']}")  # as if Girder had died before it was made
    settle = f"dask/job/{job['id']}/upload?name=mine&folderId={folder}"
    for users, items in (((), 1), ((girder_user.id,), 0)):
        share(*users)
        assert send("POST", settle) == {"state": "nothing"}
        assert len(list(girder_admin.listItem(folder))) == items


def test_a_job_cancels_what_it_has_started_and_nothing_else(girder_stack, girder_user):
    job = girder_stack.call(start_waiting, user=girder_user)
    other = girder_stack.call(start_waiting, user=girder_user)
    waits = call(resources={"nowhere": 1})
    (child,) = submit(girder_stack, waits, token=job["token"]).json()["jobs"]
    for wrong in (other["id"], job["id"]):
        refused = ask(girder_stack, "PUT", f"dask/job/{wrong}/cancel", token=job["token"])
        assert refused.status_code == 403
        assert f"has not started job {wrong}" in message(refused)
    canceled = ask(girder_stack, "PUT", f"dask/job/{child['_id']}/cancel", token=job["token"])
    assert canceled.json()["status"] == JobStatus.CANCELED
    stranger = girder_stack.create_user()
    assert ask(girder_stack, "PUT", f"dask/job/{job['id']}/cancel", by=stranger).status_code == 403
    canceled = ask(girder_stack, "PUT", f"dask/job/{job['id']}/cancel", by=girder_user)
    assert canceled.json()["status"] == JobStatus.CANCELED


def test_results_are_private(girder_stack, girder_user):
    theirs = girder_stack.call(start_waiting)
    assert ask(girder_stack, "GET", f"dask/job/{theirs['id']}/result").status_code == 401
    refused = ask(girder_stack, "GET", f"dask/job/{theirs['id']}/result", by=girder_user)
    assert refused.status_code == 403
    asked = {"ids": [theirs["id"]]}
    seen = ask(girder_stack, "POST", "dask/job/states", by=girder_user, json=asked)
    assert seen.json() == {"jobs": []}


# -- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("dask.submitters", "5f3c00000000000000000000", "There is no group with the id"),
        ("dask.submitters", "scientists", "There is no group with the id"),
        ("dask.allow_tasks", "perhaps", "a list of patterns"),
        ("dask.allow_tasks", [5], "a list of patterns"),
        ("dask.allow_tasks", {"a": 1}, "a list of patterns"),
        ("dask.max_priority", "high", "a whole number"),
        ("dask.max_priority", 0.5, "a whole number"),
        ("dask.max_priority", 10**10, "a whole number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(girder_stack, girder_admin, key, value, told):
    text = value if isinstance(value, str) else json.dumps(value)
    answer = ask(
        girder_stack,
        "PUT",
        "system/setting",
        by=girder_admin,
        params={"key": key, "value": text},
    )
    assert answer.status_code == 400
    assert told in message(answer)


# -- paths of files -----------------------------------------------------------------------------


def test_the_path_of_a_file_is_told_to_jobs_that_may_read_it(
    girder_stack, girder_user, girder_admin
):
    file = girder_stack.upload(b"coins", "coins.bin", client=girder_user.client)
    job = girder_stack.call(start_waiting, user=girder_user)
    route = f"dask/file/{file['_id']}/path"
    off = ask(girder_stack, "GET", route, token=job["token"]).json()
    assert (off["path"], off["size"]) == (None, 5)
    configure(girder_admin, "dask.direct_path", value=True)
    told = ask(girder_stack, "GET", route, token=job["token"]).json()
    assert Path(told["path"]).read_bytes() == b"coins"
    # Users are no jobs, and other jobs may not read it.
    assert ask(girder_stack, "GET", route, by=girder_user).json()["path"] is None
    assert ask(girder_stack, "GET", route).status_code == 401
    stranger = girder_stack.create_user()
    other = girder_stack.call(start_waiting, user=stranger)
    assert ask(girder_stack, "GET", route, token=other["token"]).status_code == 403


def test_a_link_has_no_path(girder_stack, girder_user, girder_admin):
    configure(girder_admin, "dask.direct_path", value=True)
    item = girder_user.client.createItem(girder_user.folder["_id"], "link")
    link = girder_user.client.post(
        "file",
        parameters={
            "parentType": "item",
            "parentId": item["_id"],
            "name": "link",
            "linkUrl": "https://example.org/x",
        },
    )
    job = girder_stack.call(start_waiting, user=girder_user)
    told = ask(girder_stack, "GET", f"dask/file/{link['_id']}/path", token=job["token"])
    assert told.json()["path"] is None


def test_the_jobs_of_others_end_as_they_are(girder_stack, girder_user, girder_admin):
    """A user who may start tasks may not cancel the jobs of others by naming them."""
    configure(girder_admin, "dask.allow_tasks", value=True)
    theirs = girder_stack.call(start_waiting)
    refused = ask(girder_stack, "PUT", f"job/{theirs['id']}/cancel", by=girder_user)
    assert refused.status_code == 403
    assert girder_stack.job(theirs["id"])["status"] == JobStatus.QUEUED
