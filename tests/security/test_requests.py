"""Requests are input: each bad one is answered with 400, 413 or 416 in our words, and does nothing.

What is served of users' files is shown by a browser where it is harmless, and never run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from tests.support.rest_site import ask, call, count_jobs, start_waiting, submit
from tests.support.security_site import settle

DEEP = '{"a":' * 900 + "1" + "}" * 900
DEEPER = {"a": json.loads('{"a":' * 120 + "1" + "}" * 120)}
THEIRS = ("girder.job", "BSON", "Mongo", "E11000", "Traceback", "utf-8' codec")


@pytest.fixture(scope="module")
def admin(girder_stack: Any) -> Any:
    """Return a user who may submit anything, and whose jobs only this test starts."""

    def promote(user_id: str) -> None:
        from bson import ObjectId
        from girder.models.user import User

        User().collection.update_one({"_id": ObjectId(user_id)}, {"$set": {"admin": True}})

    user = girder_stack.create_user()
    girder_stack.call(promote, user.id)
    return user


@pytest.fixture(scope="module")
def job(girder_stack: Any, admin: Any) -> dict[str, str]:
    return girder_stack.call(start_waiting, user=admin)


@pytest.fixture(scope="module")
def untouched_job(girder_stack: Any, admin: Any) -> dict[str, str]:
    """Return a job to whose log no scheduler writes why it waits."""
    made: dict[str, str] = girder_stack.call(start_waiting, user=admin)
    girder_stack.call(settle, made["id"], public=False)
    return made


def refuses(answer: requests.Response, *codes: int) -> str:
    assert answer.status_code in (codes or (400,)), answer.text
    message = str(answer.json()["message"])
    assert not [word for word in THEIRS if word in message], message
    return message


def post(stack: Any, user: Any, body: str | bytes) -> requests.Response:
    kind = {"Content-Type": "application/json"}
    return ask(stack, "POST", "dask/job", by=user, data=body, headers=kind)


# -- bodies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"5", b'"x"', b"null", b"\xff\xfe\x00", b'{"submissions": NaN}'),
        *(DEEP.encode(), b"[" * 100_000, b'{"submissions": [' + b"9" * 5000 + b"]}"),
        *(b'{"submissions": 5}', b'{"submissions": [5]}', b'{"submissions": [{}]}'),
    ],
)
def test_bodies_that_are_none(girder_stack: Any, admin: Any, body: bytes) -> None:
    before = girder_stack.call(count_jobs, admin.id)
    refuses(post(girder_stack, admin, body))
    assert girder_stack.call(count_jobs, admin.id) == before


def test_a_deep_body_says_how_deep_it_may_be(girder_stack: Any, admin: Any) -> None:
    assert "150 levels" in refuses(post(girder_stack, admin, DEEP))


@pytest.mark.parametrize(
    "fields",
    [
        {"title": "\ud800"},
        {"type": "x\ud800"},
        {"task": "a\ud800:b"},
        {"other_fields": {"dask_request": "0:1"}},
        {"other_fields": {"a\0b": 1}},
        {"priority": 2**70},
        {"retries": -1},
        {"timeout": 10**400},
        {"resources": {"n": 10**400}},
        {"dependencies": ["\ud800" * 24]},
        {"token": "\ud800"},
        {"payload": {"b64": "%%%"}},
        {"version": 10**30},
        {"package": "\ud800"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_fields_that_cannot_be_stored(girder_stack: Any, admin: Any, fields: Any) -> None:
    before = girder_stack.call(count_jobs, admin.id)
    wire = {**call("my_worker_tasks:noop"), **fields}
    body = json.dumps({"submissions": [call("my_worker_tasks:noop"), wire]})
    refuses(post(girder_stack, admin, body))
    assert girder_stack.call(count_jobs, admin.id) == before, "all or nothing"


@pytest.mark.parametrize(
    "other_fields",
    [{"$set": 1}, {"a.b": {"$c.d": 1}}, {"meta": {"n": 2**70}}, {"meta": {"": "\ud800"}}, DEEPER],
    ids=lambda fields: next(iter(fields)),
)
def test_odd_fields_are_kept_or_refused(girder_stack: Any, admin: Any, other_fields: Any) -> None:
    before = girder_stack.call(count_jobs, admin.id)
    answer = submit(girder_stack, call("my_worker_tasks:noop", other_fields=other_fields), by=admin)
    made = girder_stack.call(count_jobs, admin.id) - before
    assert (answer.status_code, made) in ((200, 1), (400, 0)), answer.text


@pytest.mark.parametrize("key", ["x", 5, ["0" * 32], "0" * 33, "\ud800" * 32])
def test_keys_of_requests_that_are_none(girder_stack: Any, admin: Any, key: Any) -> None:
    body = json.dumps({"submissions": [call("my_worker_tasks:noop")], "key": key})
    refuses(post(girder_stack, admin, body))


def test_the_mark_of_a_request_is_not_used_twice(girder_stack: Any, admin: Any) -> None:
    """Nor by Girder's own code. The message of the database is not revealed."""

    def start() -> str:
        from my_worker_tasks import noop

        from girder_dask.errors import GirderDaskError

        fields = {"dask_request": "forged"}
        noop.delay(girder_job_other_fields=fields).cancel()
        try:
            noop.delay(girder_job_other_fields=fields).cancel()
        except GirderDaskError as e:
            return str(e)
        return ""

    assert "E11000" not in girder_stack.call(start, user=admin)


# -- ids and numbers in addresses ---------------------------------------------------------------


@pytest.mark.parametrize("job_id", ["x", "%00", "0" * 24, "0" * 23 + "g", "%ED%A0%80", "a" * 3000])
@pytest.mark.parametrize(
    "route",
    [
        *("GET dask/job/{}/log", "GET dask/job/{}/result", "PUT dask/job/{}/cancel"),
        *("GET dask/job/{}/uploads", "POST dask/job/{}/begin?attempt=1&run=r&worker=w"),
        *("POST dask/job/{}/upload?name=x", "GET job/{}/artifact", "GET job/{}/artifact/a/b"),
        *("POST job/{}/artifact?name=x&size=0", "DELETE job/{}/artifact/a"),
        "GET dask/file/{}/path",
    ],
)
def test_ids_that_are_none(girder_stack: Any, admin: Any, route: str, job_id: str) -> None:
    method, path = route.split()
    answer = ask(girder_stack, method, path.format(job_id), by=admin)
    # CherryPy itself answers 404 to a path that is not UTF-8.
    assert answer.status_code in (400, 404, 414), answer.text


@pytest.mark.parametrize("number", ["1e3", str(2**70), "9" * 5000, "-1", "", "NaN", "٣"])
def test_numbers_that_are_none(girder_stack: Any, job: Any, number: str) -> None:
    for route in (
        f"GET dask/job/{job['id']}/log?offset={number}",
        f"GET dask/job/{job['id']}/uploads?before={number}",
        f"POST dask/job/{job['id']}/begin?attempt={number}&run=r&worker=w",
        f"POST job/{job['id']}/artifact?name=numbered&size={number}",
        f"POST dask/job/{job['id']}/upload?name=x&uploadId={'0' * 24}&offset={number}",
    ):
        method, path = route.split()
        answer = ask(girder_stack, method, path, token=job["token"], data=b"x")
        assert answer.status_code < 500, (route, answer.text)
    assert "numbered" not in ask(girder_stack, "GET", f"job/{job['id']}/artifact", by=None).text


@pytest.mark.parametrize("attempt", ["9" * 5000, "٣", "-1", "x", "1" * 30])
def test_attempts_in_headers_that_are_none(girder_stack: Any, job: Any, attempt: str) -> None:
    headers = {"Girder-Dask-Attempt": attempt.encode(), "Girder-Dask-Job": job["id"]}
    path = f"job/{job['id']}/artifact?name=headed"
    answer = ask(girder_stack, "POST", path, token=job["token"], data=b"x", headers=headers)
    assert answer.status_code < 500, answer.text


# -- answers ------------------------------------------------------------------------------------


def forge_progress(job_id: str) -> None:
    import math

    from bson import ObjectId
    from girder_jobs.models.job import Job

    bad = {"total": math.nan, "current": math.inf, "message": b"x"}
    Job().collection.update_one({"_id": ObjectId(job_id)}, {"$set": {"progress": bad}})


def forget_job(job_id: str) -> None:
    """Remove a job that Girder's own routes cannot show, from all tests that list jobs."""
    from bson import ObjectId
    from girder_jobs.models.job import Job

    Job().collection.delete_one({"_id": ObjectId(job_id)})


@pytest.fixture
def job_with_forged_progress(girder_stack: Any, admin: Any) -> Iterator[dict[str, Any]]:
    made = girder_stack.call(start_waiting, user=admin)
    girder_stack.call(forge_progress, made["id"])
    yield made
    girder_stack.call(forget_job, made["id"])


def test_what_json_cannot_hold_is_answered_all_the_same(
    girder_stack: Any, admin: Any, job_with_forged_progress: dict[str, Any]
) -> None:
    made = job_with_forged_progress
    for accepted in ("application/json", "text/html"):
        answer = ask(
            girder_stack,
            "POST",
            "dask/job/states",
            by=admin,
            json={"ids": [made["id"]]},
            headers={"Accept": accepted},
        )
        assert answer.status_code == 200, answer.text
        assert accepted in answer.headers["Content-Type"]
    asked = {"ids": [made["id"]]}
    (state,) = ask(girder_stack, "POST", "dask/job/states", by=admin, json=asked).json()["jobs"]
    assert state["progress"] == {"total": None, "current": None, "message": "b'x'"}


def test_what_is_not_foreseen_is_logged_and_not_told(girder_stack: Any, admin: Any) -> None:
    def break_status() -> None:
        from girder.models.api_key import ApiKey

        def find(*_: Any, **__: Any) -> None:
            raise LookupError("a secret of the database")

        ApiKey().find = find

    def mend_status() -> None:
        from girder.models.api_key import ApiKey

        del ApiKey().find

    girder_stack.call(break_status)
    try:
        answer = ask(girder_stack, "GET", "dask/status", by=admin)
    finally:
        girder_stack.call(mend_status)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "at request" in answer.json()["message"]
    assert ask(girder_stack, "GET", "dask/status", by=admin).status_code == 200


def test_the_openapi_document_holds_for_our_routes(girder_stack: Any) -> None:
    document = ask(girder_stack, "GET", "describe").json()
    ours = {p: ops for p, ops in document["paths"].items() if "/dask" in p or "/artifact" in p}
    assert "/job/{id}/artifact/{name}" in ours
    assert not [path for path in ours if "part" in path or "testing" in path]
    for path, operations in ours.items():
        named = {part[1:-1] for part in path.split("/") if part.startswith("{")}
        for operation in operations.values():
            declared = [p for p in operation["parameters"] if p["in"] == "path"] if named else []
            assert {p["name"] for p in declared} == named, path
            assert all(p["required"] for p in declared), path


# -- artifacts and logs -------------------------------------------------------------------------


def add(stack: Any, job: Any, name: str, data: bytes = b"0123456789", **params: str) -> Any:
    params = {"name": name, **params}
    path = f"job/{job['id']}/artifact"
    return ask(stack, "POST", path, token=job["token"], params=params, data=data)


def get(stack: Any, job: Any, name: str, by: Any, **options: Any) -> requests.Response:
    return ask(stack, "GET", f"job/{job['id']}/artifact/{quote(name)}", by=by, **options)


@pytest.mark.parametrize(
    "name", ["/".join("abcdefghijklm"), "a\0b", "a\x7f", "a\u2028b", "a/" * 20 + "b"]
)
def test_names_of_artifacts_that_are_none(girder_stack: Any, job: Any, name: str) -> None:
    message = refuses(add(girder_stack, job, name))
    assert "12 parts" in message
    listed = ask(girder_stack, "GET", f"job/{job['id']}/artifact", token=job["token"]).json()
    assert name not in [artifact["name"] for artifact in listed]


def test_a_name_of_twelve_parts_is_read_and_deleted(girder_stack: Any, admin: Any, job: Any):
    name = "/".join("abcdefghijkl")
    assert add(girder_stack, job, name).status_code == 200
    assert get(girder_stack, job, name, admin).content == b"0123456789"
    path = f"job/{job['id']}/artifact/{name}"
    assert ask(girder_stack, "DELETE", path, by=admin).status_code == 200
    assert get(girder_stack, job, name, admin).status_code == 404


@pytest.mark.parametrize("what", ["artifact", "log"])
@pytest.mark.parametrize(
    ("header", "status", "body", "content_range"),
    [
        ("bytes=0-99999", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=3-4", 206, b"34", "bytes 3-4/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=abc-def", 200, b"0123456789", None),
        ("bytes=4-2", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
    ],
)
def test_ranges(
    girder_stack: Any,
    admin: Any,
    job: Any,
    untouched_job: Any,
    what: str,
    header: str,
    status: int,
    body: bytes | None,
    content_range: str | None,
) -> None:
    def write_log(job_id: str) -> None:
        from bson import ObjectId
        from girder_jobs.models.job import Job

        digits = {"log": ["01234", "56789"]}
        Job().collection.update_one({"_id": ObjectId(job_id)}, {"$set": digits})

    if what == "log":
        girder_stack.call(write_log, untouched_job["id"])
        path = f"dask/job/{untouched_job['id']}/log"
    else:
        add(girder_stack, job, "digits.txt")
        path = f"job/{job['id']}/artifact/digits.txt"
    answer = ask(girder_stack, "GET", path, by=admin, headers={"Range": header})
    assert answer.status_code == status
    assert answer.headers.get("Content-Range") == content_range
    if body is not None:
        assert answer.content == body
        assert answer.headers["Content-Length"] == str(len(body))
        assert answer.headers["Accept-Ranges"] == "bytes"
    else:
        assert "10 bytes" in answer.json()["message"]
    # Nothing here has a validator, so what a client has is another state.
    headers = {"Range": header, "If-Range": '"etag"'}
    assert ask(girder_stack, "GET", path, by=admin, headers=headers).status_code == 200


PAGE = b"<script>document.title = 'run'</script>"


@pytest.mark.parametrize(
    ("mime_type", "shown"),
    [
        ("text/html", "attachment"),
        ("image/svg+xml", "attachment"),
        ("application/xhtml+xml", "attachment"),
        ("text/xml", "attachment"),
        ("application/pdf", "attachment"),
        ("text/javascript", "attachment"),
        ("image/png", "inline"),
        ("IMAGE/PNG", "inline"),
        ("text/plain; charset=utf-8", "inline"),
        ("", "attachment"),
    ],
)
def test_only_harmless_types_are_shown(
    girder_stack: Any, admin: Any, job: Any, mime_type: str, shown: str
) -> None:
    assert add(girder_stack, job, "page", PAGE, mimeType=mime_type).status_code == 200
    inline = {"contentDisposition": "inline"}
    answer = get(girder_stack, job, "page", admin, params=inline)
    assert answer.headers["Content-Disposition"].startswith(f"{shown};")
    sandboxed(answer)
    assert answer.content == PAGE
    stored = get(girder_stack, job, "page", admin)
    assert stored.headers["Content-Disposition"].startswith("attachment;")
    # Girder's own route to the same file has one more way to show it, and runs nothing either.
    (listed,) = [
        a
        for a in ask(girder_stack, "GET", f"job/{job['id']}/artifact", by=admin).json()
        if a["name"] == "page"
    ]
    sandboxed(ask(girder_stack, "GET", f"file/{listed['_id']}/download", by=admin, params=inline))


def sandboxed(answer: requests.Response) -> None:
    assert answer.status_code == 200
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"


@pytest.mark.parametrize(
    "mime_type", ["text", "text/html\r\nSet-Cookie: a=b", "a/b\0", "ü/ü", "x" * 300 + "/x"]
)
def test_types_that_are_none(girder_stack: Any, job: Any, mime_type: str) -> None:
    refuses(add(girder_stack, job, "typed", mimeType=mime_type))


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ('a"b;c.txt', "attachment; filename=\"a_b;c.txt\"; filename*=UTF-8''a%22b%3Bc.txt"),
        ("dir/straße.txt", "attachment; filename=\"strae.txt\"; filename*=UTF-8''stra%C3%9Fe.txt"),
        ("数.txt", "attachment; filename=\".txt\"; filename*=UTF-8''%E6%95%B0.txt"),
        ("plain.txt", 'attachment; filename="plain.txt"'),
    ],
)
def test_names_in_headers(girder_stack: Any, admin: Any, job: Any, name: str, header: str) -> None:
    assert add(girder_stack, job, name).status_code == 200
    answer = get(girder_stack, job, name, admin)
    assert answer.headers["Content-Disposition"] == header
    assert answer.content == b"0123456789"


def test_logs_and_errors_run_nothing_either(girder_stack: Any, admin: Any, job: Any) -> None:
    log = ask(girder_stack, "GET", f"dask/job/{job['id']}/log", by=admin)
    assert log.headers["Content-Type"].startswith("text/plain")
    sandboxed(log)
    missing = get(girder_stack, job, "<script>", admin, headers={"Accept": "text/html"})
    assert missing.status_code == 404
    assert "<script>" not in missing.text
    assert missing.headers["X-Content-Type-Options"] == "nosniff"


def test_an_artifact_whose_content_is_gone(girder_stack: Any, admin: Any, job: Any) -> None:
    def lose(job_id: str) -> str:
        from bson import ObjectId
        from girder.models.file import File

        file = File().findOne({"attachedToId": ObjectId(job_id), "name": "lost.txt"})
        path = Path(File().getLocalFilePath(file))
        path.unlink()
        return str(path)

    add(girder_stack, job, "lost.txt", b"nobody has this content")
    path = girder_stack.call(lose, job["id"])
    answer = get(girder_stack, job, "lost.txt", admin)
    assert answer.status_code == 404
    assert path not in answer.text
