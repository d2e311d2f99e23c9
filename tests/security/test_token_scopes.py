"""Rights of each scope of a job's token, and fields that no request sets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from bson import ObjectId
from girder.constants import TokenScope
from girder_jobs.constants import REST_CREATE_JOB_TOKEN_SCOPE, REST_LIST_JOB_TOKEN_SCOPE

from girder_dask.plugin.rest.reserved_fields import CORE_FIELDS, RESERVED_FIELDS, find_reserved
from girder_dask.plugin.store import tokens
from girder_dask.protocol.messages import MapParent
from girder_dask.protocol.names import SCHEDULER_SCOPE, SUBMIT_SCOPE
from girder_dask.protocol.wire_json import to_json
from tests.integration.test_permissions import configure
from tests.support.rest_site import ask, call, count_jobs, read, start_waiting, submit
from tests.support.security_site import settle

#: What is tried: method and path, with a folder and a job that are one's own or somebody else's.
TRIED = {
    "read a folder": ("GET", "folder/{folder}"),
    "make a folder": ("POST", "folder?parentId={folder}&name={name}"),
    "delete a folder": ("DELETE", "folder/{made}"),
    "give a folder to all": ("PUT", "folder/{folder}/access?access={{}}&public=true"),
    "read a job": ("GET", "job/{job}"),
    "read a log": ("GET", "dask/job/{job}/log"),
    "cancel a job": ("PUT", "dask/job/{job}/cancel"),
    "change a job": ("PUT", "job/{job}?log=x&status=3"),
    "delete a job": ("DELETE", "job/{job}"),
    "write over a job": (
        "POST",
        'job?title=x&type=x&otherFields={{"_id":{{"$oid":"{job}"}}}}',
    ),
    "make a job": ("POST", "job?title=x&type=x"),
    "change a user": ("PUT", "user/{user}?firstName=x&lastName=x&email=x@example.org"),
    "make an API key": ("POST", "api_key?name=x"),
    "read the settings": ("GET", "system/setting?key=dask.api_url"),
    "claim jobs": ("POST", "dask/job/claim"),
}
#: What each scope lets its owner do with own data. None of it is allowed on data of others.
LETS = {
    TokenScope.DATA_READ: {"read a folder", "read a log"},
    TokenScope.DATA_WRITE: {"make a folder"},
    SUBMIT_SCOPE: {"cancel a job"},
    REST_LIST_JOB_TOKEN_SCOPE: {"read a job"},
}


@pytest.fixture(autouse=True)
def defaults(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "girder_admin" in request.fixturenames:
        admin = request.getfixturevalue("girder_admin")
        admin.delete("system/setting", parameters={"key": "dask.allow_tasks"})


def make_token(scopes: list[str], user_id: str) -> str:
    """Return a token of a user with scopes that API keys cannot have. Run it in Girder."""
    from bson import ObjectId
    from girder.models.token import Token
    from girder.models.user import User

    user = User().load(ObjectId(user_id), force=True)
    return str(Token().createToken(user=user, scope=scopes, days=1)["_id"])


def done(stack: Any, token: str, whose: Any) -> set[str]:
    """Return what a token can do with a user's data."""
    client = whose.client
    made = client.createFolder(whose.folder["_id"], f"made {ObjectId()}")
    job = stack.call(start_waiting, user=whose)
    names = {
        "folder": whose.folder["_id"],
        "made": made["_id"],
        "job": job["id"],
        "user": whose.id,
        "name": f"new {ObjectId()}",
    }
    found = set()
    for what, (method, path) in TRIED.items():
        # Girder may fail to forward the body of a request that is answered without reading it.
        body = {} if method == "GET" else {"json": {}}
        answer = ask(stack, method, path.format(**names), token=token, **body)
        assert answer.status_code < 500, (what, answer.text)
        if answer.status_code < 400:
            found.add(what)
    return found


def test_the_scopes_of_a_job_are_these_and_no_more():
    assert set(tokens.SCOPES) == set(LETS)
    assert REST_CREATE_JOB_TOKEN_SCOPE not in tokens.SCOPES


@pytest.mark.parametrize("scope", LETS)
def test_a_scope_lets_its_owner_do_this_and_nothing_to_others(girder_stack, girder_user, scope):
    token = girder_stack.call(make_token, [scope], girder_user.id)
    assert done(girder_stack, token, girder_user) == LETS[scope]
    assert done(girder_stack, token, girder_stack.create_user()) == set()


def test_the_token_of_a_job_does_all_of_these_and_nothing_else(girder_stack, girder_user):
    job = girder_stack.call(start_waiting, user=girder_user)
    # A job cancels what it has started, which the job here is not.
    allowed = set().union(*LETS.values()) - {"cancel a job"}
    assert done(girder_stack, job["token"], girder_user) == allowed
    assert done(girder_stack, job["token"], girder_stack.create_user()) == set()


def test_the_scope_for_submissions_starts_what_the_user_may(
    girder_stack, girder_user, girder_admin
):
    token = girder_stack.call(make_token, [SUBMIT_SCOPE], girder_user.id)
    waits = call("my_worker_tasks:noop", resources={"nowhere": 1})
    assert submit(girder_stack, waits, token=token).status_code == 403
    configure(girder_admin, "dask.allow_tasks", value=True)
    (job,) = submit(girder_stack, waits, token=token).json()["jobs"]
    assert girder_stack.call(read, "job", job["_id"])["userId"] == ObjectId(girder_user.id)


@pytest.mark.parametrize("scope", [REST_CREATE_JOB_TOKEN_SCOPE, SCHEDULER_SCOPE])
def test_users_make_no_keys_with_the_scopes_of_services(girder_stack, girder_user, scope):
    parameters = {"name": "x", "scope": json.dumps([scope])}
    answer = ask(girder_stack, "POST", "api_key", by=girder_user, params=parameters)
    assert answer.status_code == 400
    assert "Invalid scopes" in answer.json()["message"]


# -- fields that nobody sets from outside -------------------------------------------------------

FORGED = [
    *({name: value} for name in sorted(CORE_FIELDS - {"_id"}) for value in ("x", 1)),
    {"_id": "5f3c5f3c5f3c5f3c5f3c5f3c"},
    {"dask": {"open": True, "group": {"open": True}}},
    {"dask_log": {}},
    {"dask_outcome": {}},
    {"dask_request": "x"},
    {"dask.open": True},
    {"access.users": []},
    {"$set": {"status": 3}},
    {"": 1},
]


def test_a_token_that_makes_jobs_does_not_write_over_one(girder_stack, girder_user):
    victim = girder_stack.call(start_waiting)
    girder_stack.call(settle, victim["id"], public=False)  # no scheduler changes it meanwhile
    before = girder_stack.call(read, "job", victim["id"])
    token = girder_stack.call(make_token, [REST_CREATE_JOB_TOKEN_SCOPE], girder_user.id)
    forged = [{"_id": {"$oid": victim["id"]}}, {"_id": victim["id"]}, *FORGED]
    for fields in forged:
        parameters = {"title": "x", "type": "x", "otherFields": json.dumps(fields)}
        answer = ask(girder_stack, "POST", "job", token=token, params=parameters)
        assert answer.status_code == 400, (fields, answer.text)
        assert next(iter(fields)) in answer.json()["message"]
    assert girder_stack.call(read, "job", victim["id"]) == before
    assert girder_stack.call(count_jobs, girder_user.id) == 0


@pytest.mark.parametrize("text", ['{"a": {"$oid": "5"}}', "{", "[" * 2000, "5", "[]", "null"])
def test_other_fields_that_cannot_be_read_are_refused(girder_stack, girder_user, text):
    token = girder_stack.call(make_token, [REST_CREATE_JOB_TOKEN_SCOPE], girder_user.id)
    parameters = {"title": "x", "type": "x", "otherFields": text}
    answer = ask(girder_stack, "POST", "job", token=token, params=parameters)
    assert answer.status_code == 400
    assert girder_stack.call(count_jobs, girder_user.id) == 0


@pytest.mark.parametrize("name", ["args", "kwargs", "otherFields"])
@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400", '{"$numberDouble": "NaN"}'])
def test_a_new_job_holds_no_number_that_json_has_not(girder_stack, girder_user, name, number):
    token = girder_stack.call(make_token, [REST_CREATE_JOB_TOKEN_SCOPE], girder_user.id)
    value = f"[{number}]" if name == "args" else f'{{"meta": [{number}]}}'
    parameters = {"title": "x", "type": "x", name: value}
    answer = ask(girder_stack, "POST", "job", token=token, params=parameters)
    assert answer.status_code == 400, answer.text
    assert "is not a finite number" in answer.json()["message"]
    assert girder_stack.call(count_jobs, girder_user.id) == 0


def test_what_girder_worker_posts_goes_on_to_work(girder_stack, girder_user):
    """girder_worker creates the jobs of child tasks with such requests."""
    token = girder_stack.call(make_token, [REST_CREATE_JOB_TOKEN_SCOPE], girder_user.id)
    fields = {"celeryTaskId": "5", "colour": "blue"}
    parameters = {
        "title": "x",
        "type": "celery",
        "handler": "celery_handler",
        "args": "[1]",
        "otherFields": json.dumps(fields),
    }
    answer = ask(girder_stack, "POST", "job", token=token, params=parameters)
    assert answer.status_code == 200, answer.text
    made = girder_stack.call(read, "job", answer.json()["_id"])
    assert {name: made[name] for name in fields} == fields
    assert str(made["userId"]) == girder_user.id


@pytest.mark.parametrize("where", ["a call", "the parent of a map"])
def test_dask_job_takes_no_reserved_field_of_anybody(girder_stack, girder_admin, where):
    forged = [*FORGED, *({name: "x"} for name in sorted(RESERVED_FIELDS - {"parentId"}))]
    admin = girder_admin.get("user/me")["_id"]
    before = girder_stack.call(count_jobs, admin)
    for fields in forged:
        made = call("my_worker_tasks:noop")
        group = to_json(MapParent("Many").to_wire())
        (made if where == "a call" else group)["other_fields"] = fields
        body = {"submissions": [made], "group": None if where == "a call" else group}
        answer = ask(girder_stack, "POST", "dask/job", by=girder_admin, json=body)
        assert answer.status_code == 400, (fields, answer.text)
        assert "must not set" in answer.json()["message"]
    assert girder_stack.call(count_jobs, admin) == before


def test_names_of_fields_that_look_alike_are_free():
    assert find_reserved(["meta", "status2", "Dask", "colour", "_identity"]) == []
    assert find_reserved([5, None, "a\0b", "daskboard"]) == ["5", "None", "a\0b", "daskboard"]


def test_who_may_change_a_job_changes_its_log_state_and_progress_alone(girder_stack, girder_user):
    job = girder_stack.call(start_waiting, user=girder_user)
    girder_stack.call(settle, job["id"], public=False)
    before = girder_stack.call(read, "job", job["id"])
    parameters = {
        "log": "a line",
        "progressTotal": 5,
        "otherFields": '{"dask": {"open": false}, "access": {}}',
        "dask": "{}",
        "handler": "x",
        "userId": "x",
        "access": "{}",
        "title": "x",
    }
    answer = ask(girder_stack, "PUT", f"job/{job['id']}", by=girder_user, params=parameters)
    assert answer.status_code < 500
    after = girder_stack.call(read, "job", job["id"])
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert changed <= {"log", "progress", "updated"}
    assert after["dask"] == before["dask"]
    assert after["status"] == before["status"]
