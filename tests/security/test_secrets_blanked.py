"""Redaction of the secrets of a run, however its code leaks them by mistake."""

from __future__ import annotations

import base64
import gzip
import pickle
import secrets
from pathlib import Path
from typing import Any

import pytest
import requests
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st
from my_worker_tasks.leaks import WAYS

from girder_dask.http.exception_requests import strip_headers
from girder_dask.jobs import JobStatus
from girder_dask.protocol.redaction import Secrets, clean_data, clean_text, clean_urls

TOKEN = secrets.token_hex(32)

IN_A_PROCESS = ["prints", "tells progress", "returns text", "raises text", "raises with response"]


def codes(secret: str) -> list[bytes]:
    """Return the forms of a secret: plain, and in base64 after 0, 1 and 2 other bytes."""
    coded = [base64.b64encode(b"?" * n + secret.encode())[4:-4] for n in range(3)]
    return [secret.encode(), *coded]


# -- on a stack -------------------------------------------------------------------------------


def start_all(ways: list[str], isolation: str) -> dict[str, tuple[str, str]]:
    """Start a job for each way, each with a valid token of the administrator."""
    from girder.api.rest import getCurrentUser
    from girder.models.token import Token
    from my_worker_tasks.leaks import leaks

    started = {}
    for way in ways:
        token = Token().createToken(getCurrentUser(), days=1)
        job = leaks.apply_async(
            [way], girder_client_token=token, isolation=isolation, girder_job_public=True
        )
        started[way] = (str(job.id), token["_id"])
    return started


def all_of(job_id: str) -> bytes:
    """Return all documents of a job and its child jobs, except tokens."""
    import bson
    from bson import ObjectId
    from girder_jobs.models.job import Job

    from girder_dask.plugin.store import models
    from girder_dask.plugin.store.logs import chunks

    ids = [ObjectId(job_id)]
    # A given token is no job's, so that its child has no parent.
    ids += [job["_id"] for job in Job().collection.find({"title": f"child of {job_id}"})]
    found = b""
    for document in Job().collection.find({"_id": {"$in": ids}}):
        found += bson.encode(document)
    for document in models.DaskJob().collection.find({"_id": {"$in": ids}}):
        if document["_id"] == ids[0]:
            found += bson.encode(document)
    for each in ids:
        found += b"".join(chunks.load(each).read())
    return found


def state_of_cluster(stack: Any, directory: Path) -> bytes:
    path = directory / "state"
    with Client(stack.scheduler, set_as_default=False) as client:
        client.dump_cluster_state(str(path))
    return gzip.decompress(path.with_suffix(".msgpack.gz").read_bytes())


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_no_token_leaves_a_run(girder_stack, tmp_path, isolation):
    ways = list(WAYS) if isolation == "thread" else IN_A_PROCESS
    started = girder_stack.call(start_all, ways, isolation)
    for way, (job_id, token) in started.items():
        job = girder_stack.wait(job_id)
        ends = JobStatus.ERROR if way.startswith("raises") else JobStatus.SUCCESS
        assert job["status"] == ends, (way, girder_stack.log(job_id))
        answer = requests.get(f"{girder_stack.api}/dask/job/{job_id}/result", timeout=10)
        assert answer.ok, way
        found = girder_stack.call(all_of, job_id) + answer.content
        found += base64.b64decode(base64.b64encode(found))
        for code in codes(token):
            assert code not in found, (way, isolation)
        assert len(found) > 300
    dumped = state_of_cluster(girder_stack, tmp_path)
    assert b"girder-dask" in dumped
    for way, (_, token) in started.items():
        assert token.encode() not in dumped, (way, isolation)
    for part in girder_stack.parts:
        text = part.log.read_bytes()
        for way, (_, token) in started.items():
            assert token.encode() not in text, (way, part.name)


def fetch(job_id: str) -> Any:
    from girder_dask import JobResult

    return JobResult(job_id).get(timeout=10)


def test_what_is_left_is_of_use(girder_stack):
    ways = ["prints", "prints in parts", "returns text", "returns bytes", "raises HTTP error"]
    started = girder_stack.call(start_all, ways, "thread")
    ids = {way: job_id for way, (job_id, _) in started.items()}
    for job_id in ids.values():
        girder_stack.wait(job_id)
    assert girder_stack.log(ids["prints"]) == f"signed in with {'*' * 64}\n"
    in_parts = girder_stack.log(ids["prints in parts"])
    assert in_parts.startswith("token ")
    assert in_parts.endswith("** was used\n")
    assert len(in_parts) == len("token  was used\n") + 64
    assert girder_stack.call(fetch, ids["returns text"]) == {"used": "*" * 64, "count": 7}
    assert girder_stack.call(fetch, ids["returns bytes"])["count"] == 7
    assert "no/such/route" in girder_stack.log(ids["raises HTTP error"])


# -- the parts --------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 80), max_size=12),
    st.text("0123456789abcdef \n", max_size=20),
    st.text("0123456789abcdef \n", max_size=20),
)
def test_a_token_in_a_log_that_comes_in_any_pieces(cuts, before, after):
    text = f"{before}{TOKEN}{after}"
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    with Secrets(TOKEN) as known:
        pieces = [
            known.clean_log(text[a:b]) for a, b in zip(places, places[1:] or [0], strict=False)
        ]
    cleaned = "".join(pieces)
    assert len(cleaned) == len(text)
    assert all(TOKEN[n : n + 32] not in cleaned for n in range(33))
    assert cleaned.startswith(before[:-1] if len(before) > 1 else "")


@given(st.integers(0, 33), st.integers(31, 64))
def test_a_part_of_a_token_that_was_cut(start, length):
    part = TOKEN[start : start + length]
    with Secrets(TOKEN):
        cleaned = clean_text(f"…{part}…")
    if len(part) >= 31:
        assert part[:31] not in cleaned
        assert part[-31:] not in cleaned


@given(st.binary(max_size=6), st.binary(max_size=6))
def test_base64_stays_what_it_is(before, after):
    with Secrets(TOKEN) as known:
        cleaned = known.clean_text(base64.b64encode(before + TOKEN.encode() + after).decode())
    data = base64.b64decode(cleaned)
    assert len(data) == len(before) + 64 + len(after)
    assert (data[: len(before)], data[64 + len(before) :]) == (before, after)
    assert data.count(b"\0") >= 60


def test_a_pickle_stays_what_it_is():
    value = {"token": TOKEN, "url": f"http://girder/x?token={'q' * 9}&limit=1", "n": [1, 2.5]}
    with Secrets(TOKEN):
        found = pickle.loads(clean_data(pickle.dumps(value)))
    url = f"http://girder/x?token={'*' * 9}&limit=1"
    assert found == {"token": "*" * 64, "url": url, "n": [1, 2.5]}


def test_secrets_of_other_runs_in_the_process_are_blanked_until_they_end():
    other = secrets.token_hex(32)
    with Secrets(TOKEN) as known:
        with Secrets(other):
            assert known.clean_log(f"{other}\n") == f"{'*' * 64}\n"
        assert other in known.clean_log(f"{other}\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET /x?token=abc HTTP/1.1", "GET /x?token=*** HTTP/1.1"),
        ("POST /api_key/token?duration=1&key=abc", "POST /api_key/token?duration=1&key=***"),
        ("ftp://me:secret@host/x", "ftp://me:******@host/x"),
        ("http://localhost:8080/a?b=c", "http://localhost:8080/a?b=c"),
        ("GET /system/setting?key=core.route", "GET /system/setting?key=core.route"),
        ("https://s3/x?X-Amz-Signature=00ff", "https://s3/x?X-Amz-Signature=****"),
    ],
)
def test_addresses(text, expected):
    assert clean_urls(text) == expected


def test_exceptions_of_requests_lose_what_signs_their_requests():
    session = requests.Session()
    signed = {"Girder-Token": TOKEN, "Cookie": "a=1"}
    request = session.prepare_request(requests.Request("GET", "http://girder/", headers=signed))
    response = requests.Response()
    response.request, response.status_code = request, 500
    response.headers["Set-Cookie"] = TOKEN
    response.cookies.set("session", TOKEN)
    error = requests.HTTPError("500", response=response)
    outer = ValueError("no coins", [response])
    outer.__context__ = error
    strip_headers(outer)
    assert TOKEN.encode() not in pickle.dumps((error, vars(error), outer))
    assert (error.response.status_code, error.request.url) == (500, "http://girder/")
