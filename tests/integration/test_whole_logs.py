"""The whole log of a job, as users download it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.rest_site import ask, start_waiting

FIRST = "Zeile ä\n" * 3
LARGE = "".join(f"line {n}\n" for n in range(1_200_000))  # more than a job document holds


@pytest.fixture
def job(girder_stack, girder_user) -> dict[str, str]:
    made = girder_stack.call(start_waiting, user=girder_user)
    girder_stack.call(keep_from_schedulers, made["id"])
    return made


def keep_from_schedulers(job_id: str) -> None:
    """Have no scheduler claim the job, which would write into its log. Run it in Girder.

    A job that runs elsewhere is claimed at once, since its scheduler is taken for lost.
    """
    from girder_dask.plugin.store import recording

    recording.Job().collection.update_one(
        {"_id": recording.ObjectId(job_id)}, {"$unset": {"dask.open": True}}
    )


def write(job_id: str, *texts: str) -> None:
    """Apply updates with text. Run it in Girder."""
    from girder_dask.plugin.store import models, recording, updates
    from girder_dask.protocol.messages import JobUpdate

    job = models.collection(recording.Job()).find_one({"_id": recording.ObjectId(job_id)})
    begin = job["dask"]["sequence"] + 1
    for sequence, text in enumerate(texts, begin):
        updates.apply("test", [JobUpdate(job_id, job["dask"]["attempt"], sequence, log=text)])


def get(stack: Any, job: dict[str, str], by: Any = None, **options: Any) -> Any:
    return ask(stack, "GET", f"dask/job/{job['id']}/log", by=by, **options)


def test_a_log_is_text_that_a_browser_may_show(girder_stack, girder_user, job):
    girder_stack.call(write, job["id"], FIRST)
    answer = get(girder_stack, job, girder_user)
    assert answer.status_code == 200
    assert answer.content.decode() == FIRST
    headers = answer.headers
    assert headers["Content-Type"] == "text/plain;charset=utf-8"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Disposition"].startswith("inline")
    stored = get(girder_stack, job, girder_user, params={"contentDisposition": "attachment"})
    assert f"{job['id']}.log" in stored.headers["Content-Disposition"]


def test_a_large_log_is_whole(girder_stack, girder_user, job):
    girder_stack.call(write, job["id"], FIRST, LARGE, "end\n")
    whole = FIRST + LARGE + "end\n"
    assert get(girder_stack, job, girder_user).content.decode() == whole
    shown = "".join(girder_stack.job(job["id"])["log"])
    assert whole.startswith(shown[:8_000_000])
    assert f"GET dask/job/{job['id']}/log" in shown
    assert "dask_log" not in girder_stack.job(job["id"])

    def read(job_id: str) -> str:
        from girder_dask import JobResult

        return JobResult(job_id).log()

    assert girder_stack.call(read, job["id"], user=girder_user) == whole


def test_a_part_of_a_log(girder_stack, girder_user, job):
    girder_stack.call(write, job["id"], FIRST, LARGE)
    whole = (FIRST + LARGE).encode()
    for offset in (0, 5, len(FIRST.encode()), 9_000_000, len(whole) - 1, len(whole)):
        answer = get(girder_stack, job, girder_user, params={"offset": offset})
        assert answer.content == whole[offset:]
    for first, last in ((0, 0), (10, 4_000_000), (8_388_000, 8_389_000), (12_000_000, 12_000_010)):
        answer = get(girder_stack, job, girder_user, headers={"Range": f"bytes={first}-{last}"})
        assert answer.status_code == 206
        assert answer.content == whole[first : last + 1]
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(whole)}"
    answer = get(girder_stack, job, girder_user, headers={"Range": "bytes=-7"})
    assert answer.content == whole[-7:]


def test_an_offset_that_is_none_is_refused(girder_stack, girder_user, job):
    girder_stack.call(write, job["id"], "1234")
    for offset in (5, -1):
        answer = get(girder_stack, job, girder_user, params={"offset": offset})
        assert answer.status_code == 400
        assert "has 4 bytes" in answer.json()["message"]


def test_an_empty_log_is_empty(girder_stack, girder_user, job):
    assert get(girder_stack, job, girder_user).content == b""


def test_only_who_may_read_the_job_may_read_its_log(girder_stack, girder_user, job):
    girder_stack.call(write, job["id"], FIRST)
    other = girder_stack.create_user()
    for who in ({}, {"by": other}):
        answer = get(girder_stack, job, **who)
        assert answer.status_code in (401, 403)
        assert FIRST not in answer.text
    assert get(girder_stack, job, girder_stack.admin).content.decode() == FIRST
    assert get(girder_stack, job, token=job["token"]).content.decode() == FIRST
    girder_stack.admin.delete(f"job/{job['id']}")
    assert get(girder_stack, job, girder_user).status_code == 400


def test_a_notebook_reads_the_whole_log(girder_stack, girder_user, job):
    from girder_dask.client.rest_backend import RestBackend

    girder_stack.call(write, job["id"], FIRST, LARGE)
    backend = RestBackend(girder_stack.api, token=girder_user.client.token)
    try:
        assert backend.load_log(job["id"]) == FIRST + LARGE
    finally:
        backend.close()
