"""Attacks of an ordinary user over REST on the pages and the memory of others.

A document that no list of jobs can be answered with, text that is no name, and what tells where
the cluster is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from girder_dask.plugin.rest import option_limits
from girder_dask.plugin.store import documents
from tests.integration.test_permissions import configure, make_group
from tests.support.rest_site import ask, call, count_jobs, start_waiting, submit

TASK = "my_worker_tasks:noop"
NOWHERE = {"nowhere": 1}


@pytest.fixture(scope="module", autouse=True)
def allowed(girder_admin: Any) -> Iterator[None]:
    configure(girder_admin, "dask.allow_tasks", ["my_worker_tasks:*"])
    yield
    girder_admin.delete("system/setting", parameters={"key": "dask.allow_tasks"})


@pytest.fixture(scope="module")
def attacker(girder_stack: Any) -> Any:
    """Return a user whose jobs only this test starts."""
    return girder_stack.create_user()


def pages_answer(stack: Any, user: Any) -> None:
    for path in ("job/all", f"job?userId={user.id}", "job/typeandstatus/all"):
        answer = ask(stack, "GET", path, by=stack.admin)
        assert answer.status_code == 200, (path, answer.text)


def delete(stack: Any, job_id: str) -> None:
    def remove(job_id: str) -> None:
        from bson import ObjectId
        from girder_jobs.models.job import Job

        Job().collection.delete_one({"_id": ObjectId(job_id)})

    stack.call(remove, job_id)


@pytest.fixture
def job(girder_stack: Any, attacker: Any) -> Iterator[str]:
    job_id = girder_stack.call(start_waiting, user=attacker)["id"]
    yield job_id
    delete(girder_stack, job_id)


# -- pages of administrators --------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [
        {"$numberDouble": "NaN"},
        {"$numberDouble": "-Infinity"},
        {"$code": "x"},
        {"$oid": "0" * 24},
        {"$oid": "5"},
        {"$date": {"$numberLong": "99999999999999999"}},
        {"$ref": "user", "$id": 1},
        {"inner": {"$numberDouble": "NaN"}},
    ],
    ids=json.dumps,
)
def test_arguments_that_stand_for_something_else(girder_stack, attacker, kwargs):
    """The job shows its arguments, and Girder reads them as MongoDB's extended JSON."""
    answer = submit(girder_stack, call(TASK, kwargs=kwargs, resources=NOWHERE), by=attacker)
    assert answer.status_code == 200, answer.text
    (made,) = answer.json()["jobs"]
    try:
        pages_answer(girder_stack, attacker)
        shown = girder_stack.job(made["_id"])["kwargs"]
        assert isinstance(shown, dict), shown
    finally:
        delete(girder_stack, made["_id"])


def test_names_with_a_dollar_are_shown(girder_stack, attacker):
    kwargs = {"$price": 5, "coin": 2}
    answer = submit(girder_stack, call(TASK, kwargs=kwargs, resources=NOWHERE), by=attacker)
    (made,) = answer.json()["jobs"]
    assert girder_stack.job(made["_id"])["kwargs"] == kwargs
    delete(girder_stack, made["_id"])


@pytest.mark.parametrize("name", ["progressTotal", "progressCurrent"])
@pytest.mark.parametrize("value", ["nan", "inf", "-Infinity", "1e999"])
def test_progress_that_is_no_number_of_json(girder_stack, attacker, job, name, value):
    answer = ask(girder_stack, "PUT", f"job/{job}?{name}={value}", by=attacker)
    assert answer.status_code == 400, answer.text
    assert name in answer.json()["message"]
    pages_answer(girder_stack, attacker)
    assert girder_stack.job(job)["progress"] is None, "nothing is written of what is refused"


def test_neither_is_it_in_a_job_that_others_run(girder_stack, attacker):
    def update() -> tuple[str, str]:
        from girder.api.rest import getCurrentUser
        from girder.exceptions import ValidationException
        from girder_jobs.models.job import Job

        job = Job().createJob(title="Another's", type="x", user=getCurrentUser(), handler="other")
        Job().updateJob(job, progressTotal=10, progressCurrent=2.5)
        try:
            Job().updateJob(job, progressTotal=float("inf"))
        except ValidationException as e:
            return str(job["_id"]), str(e)
        return str(job["_id"]), ""

    job_id, message = girder_stack.call(update, user=attacker)
    assert "progressTotal" in message
    pages_answer(girder_stack, attacker)
    assert girder_stack.job(job_id)["progress"]["current"] == 2.5
    delete(girder_stack, job_id)


def test_a_message_of_megabytes_is_in_no_list_of_jobs(girder_stack, attacker, job):
    form = {"progressMessage": "x" * 2_000_000}
    answer = ask(girder_stack, "PUT", f"job/{job}", by=attacker, data=form)
    assert answer.status_code == 400, answer.text[:200]
    assert "progressMessage" in answer.json()["message"]
    fits = ask(girder_stack, "PUT", f"job/{job}", by=attacker, data={"progressMessage": "1/2"})
    assert fits.status_code == 200, fits.text
    assert girder_stack.job(job)["progress"]["message"] == "1/2"


def test_arguments_of_megabytes_are_not_either(girder_stack, attacker):
    large = ["x" * 100_000] * 30
    answer = submit(girder_stack, call(TASK, args=large, resources=NOWHERE), by=attacker)
    (made,) = answer.json()["jobs"]
    assert len(json.dumps(girder_stack.job(made["_id"]))) < documents.MAX_SHOWN_BYTES
    delete(girder_stack, made["_id"])


def test_nor_are_fields_of_users(girder_stack, attacker):
    before = girder_stack.call(count_jobs, attacker.id)
    fields = {"meta": {"note": "x" * option_limits.MAX_OTHER_FIELDS_CHARS}}
    made = call(TASK, other_fields=fields, resources=NOWHERE)
    for sent in ({}, {"group": {"version": made["version"], "title": "g", "other_fields": fields}}):
        calls = [call(TASK, resources=NOWHERE)] if sent else [made]
        answer = submit(girder_stack, *calls, by=attacker, **sent)
        assert answer.status_code == 403, answer.text[:300]
        assert "its other_fields take" in answer.json()["message"]
    assert girder_stack.call(count_jobs, attacker.id) == before


# -- what logs, keys of Dask and claims have ----------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", "my_worker_tasks:noop\nERROR forged"),
        ("task", "my_worker_tasks:<script>alert(1)</script>"),
        ("task", "my_worker_tasks:a/../../b"),
        ("task", "my_worker_tasks:a b"),
        ("task", "my_worker_tasks::noop"),
        ("package", "coins 1.0\nERROR forged"),
        ("package", "x" * 10_000),
        ("token", "x" * 1_000_000),
        ("token", "a\r\nX-Header: b"),
    ],
    ids=lambda value: str(value)[:40].strip(),
)
def test_names_that_are_none(girder_stack, attacker, girder_admin, field, value):
    """A claim contains the names and tokens of thousands of jobs."""
    made = {**call(TASK, resources=NOWHERE), field: value}
    for who in (attacker, girder_admin):
        answer = submit(girder_stack, made, by=who)
        assert answer.status_code == 400, answer.text
        assert f"`$.{field}`" in answer.json()["message"]


@pytest.mark.parametrize("name", ["lower.<locals>.inner", "Größe.<lambda>", "Class.method"])
def test_names_of_functions_are_some(girder_stack, attacker, name):
    made = call(f"my_worker_tasks:{name}", resources=NOWHERE)
    answer = submit(girder_stack, made, by=attacker)
    assert answer.status_code == 200, answer.text
    delete(girder_stack, answer.json()["jobs"][0]["_id"])


def test_a_long_name_makes_no_long_key():
    from girder_dask.protocol.messages import JobSpec

    assert len(JobSpec("5f3c", 1, "a:" + "x" * 900).key) < 150
    assert JobSpec("5f3c", 2, "a:Class.method").key == "Class_method-5f3c-2"


# -- bodies of anybody --------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["dask/job/states", "dask/job/results"])
def test_anonymous_sends_no_body_of_many_megabytes(girder_stack, path):
    body = b'{"ids": [' + b"[]," * 2_000_000 + b"[]]}"
    answer = ask(girder_stack, "POST", path, data=body)
    assert answer.status_code == 413, answer.text
    most = {"ids": ["0" * 24] * 100_000}
    assert ask(girder_stack, "POST", path, json=most).status_code == 200


# -- where the cluster is -----------------------------------------------------------------------


def test_a_user_is_not_told_where_the_scheduler_is(girder_stack, attacker, girder_admin):
    """Everyone who reaches the scheduler can run code on the cluster."""
    told = ask(girder_stack, "GET", "dask/status", by=attacker)
    assert "tcp://" not in told.text
    assert told.json()["scheduler"]["address"] is None
    assert told.json()["scheduler"]["reachable"] in (True, None)
    of_admin = ask(girder_stack, "GET", "dask/status", by=girder_admin).json()["scheduler"]
    assert of_admin["address"].startswith("tcp://")
    submitter = girder_stack.create_user()
    group = make_group(girder_admin, submitter)
    configure(girder_admin, "dask.submitters", group["_id"])
    try:
        of_submitter = ask(girder_stack, "GET", "dask/status", by=submitter).json()["scheduler"]
    finally:
        girder_admin.delete("system/setting", parameters={"key": "dask.submitters"})
    assert of_submitter["address"] == of_admin["address"]


# -- artifacts through Girder's own routes ------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        *({"name": name} for name in ("../../etc/passwd", "a\r\nb", "/", "a//b", "x" * 2_000)),
        *({"mimeType": kind} for kind in ("text/html\r\nX: y", "x", "text/plain\r\n\r\n;a")),
    ],
    ids=lambda params: str(params)[:40],
)
def test_an_artifact_gets_no_name_or_type_that_is_none(girder_stack, attacker, job, params):
    add = {"params": {"name": "a.txt", "mimeType": "text/plain"}, "data": b"24 coins"}
    made = ask(girder_stack, "POST", f"job/{job}/artifact", by=attacker, **add).json()
    for path, more in ((made["_id"], {}), ("0" * 24, {"id": made["_id"]})):
        # Girder takes an id of the query for that of the path.
        answer = ask(girder_stack, "PUT", f"file/{path}", by=attacker, params=params | more)
        assert answer.status_code == 400, answer.text
    (after,) = ask(girder_stack, "GET", f"job/{job}/artifact", by=attacker).json()
    assert after == made | {"created": after["created"]}
    renamed = {"name": "plots/b.txt", "mimeType": "text/csv"}
    answer = ask(girder_stack, "PUT", f"file/{made['_id']}", by=attacker, params=renamed)
    assert answer.status_code == 200, answer.text
    got = ask(girder_stack, "GET", f"job/{job}/artifact/plots/b.txt", by=attacker)
    assert got.text == "24 coins"


@pytest.mark.parametrize("kind", ["text/plain\r\n;x", "text/plain\n\n;<script>", "text/plain\v;x"])
def test_a_media_type_is_one_line(girder_stack, attacker, job, kind):
    params = {"name": "a.txt", "mimeType": kind}
    path = f"job/{job}/artifact"
    answer = ask(girder_stack, "POST", path, by=attacker, params=params, data=b"x")
    assert answer.status_code == 400, answer.text
    assert ask(girder_stack, "GET", path, by=attacker).json() == []
