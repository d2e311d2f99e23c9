"""The tokens of jobs: scopes, storing, renewal and deletion."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import Submission
from tests.support.store_jobs import update


def walk(value: Any):
    if isinstance(value, dict):
        for k, v in value.items():
            yield k
            yield from walk(v)
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from walk(v)
    else:
        yield value


def test_no_token_in_the_job_document_even_with_the_plugin_of_girder_worker(girder):
    (recorded,) = girder.record()
    job = girder.load(recorded.spec.id)
    tokens = {t["_id"] for t in girder.token.collection.find()}
    assert tokens == {recorded.spec.token}  # the plugin has made none for Celery
    assert not tokens & {v for v in walk(job) if isinstance(v, str)}
    assert recorded.spec.token not in repr(recorded) + repr(recorded.job)
    assert "jobInfoSpec" not in job

    # The same plugin still gives its own jobs what they need.
    other = girder.job.createJob("Other", "celery", user=girder.user, handler="celery_handler")
    assert "jobInfoSpec" in girder.load(other["_id"])


def test_token_is_of_the_owner_and_scoped(girder):
    (recorded,) = girder.record()
    token = girder.token.load(recorded.spec.token, force=True, objectId=False)
    assert token["userId"] == girder.user["_id"]
    assert set(token["scope"]) == {
        *("core.data.read", "core.data.write", "dask.jobs.submit"),
        "jobs.rest.list_job",
    }
    assert timedelta(days=6) < token["expires"] - datetime.now(timezone.utc) < timedelta(days=8)


def test_given_token_is_used_and_outlives_the_job(girder):
    given = girder.token.createToken(girder.user, days=1)
    (recorded,) = girder.record(token=given)
    assert recorded.spec.token == given["_id"]
    girder.store.apply("s", [update(recorded.spec.id, 1, JobStatus.RUNNING, JobStatus.SUCCESS)])
    assert [t["_id"] for t in girder.token.collection.find()] == [given["_id"]]


def test_token_is_stored_when_its_job_is_sent(girder):
    from girder_dask.plugin.store import tokens

    call = Submission("pkg.mod:work", b"x", user=girder.user)
    sent, claimed, ended = girder.store.record([call] * 3, tokens_later=True)

    def is_stored(recorded) -> bool:
        return girder.token.collection.find_one({"_id": recorded.spec.token}) is not None

    def age(**by: int) -> None:
        created = datetime.now(timezone.utc) - timedelta(**by)
        girder.job.collection.update_many({}, {"$set": {"created": created}})

    assert not any(is_stored(recorded) for recorded in (sent, claimed, ended))
    age(seconds=10)
    assert girder.store.claim("s", 10).specs == [], "they are about to be sent"
    tokens.store(tokens.pending.take([sent.spec.id]))
    assert girder.store.claim("s", 10).specs == [sent.spec]
    girder.store.cancel(ended.job["_id"])
    age(seconds=60)  # the scheduler is not reached from here, and asks
    assert girder.store.claim("s", 10).specs == [claimed.spec]
    assert is_stored(sent)
    assert is_stored(claimed)
    assert tokens.pending.take(recorded.spec.id for recorded in (sent, claimed, ended)) == []
    assert not is_stored(ended)


def test_token_that_has_expired_is_made_again(girder):
    (recorded,) = girder.record()
    girder.token.collection.delete_many({})
    (spec,) = girder.store.claim("s", 10).specs
    assert spec.token != recorded.spec.token
    token = girder.token.load(spec.token, force=True, objectId=False)
    assert token["userId"] == girder.user["_id"]
    girder.store.apply("s", [update(spec.id, 1, JobStatus.RUNNING, JobStatus.SUCCESS)])
    assert girder.token.collection.count_documents({}) == 0


def test_token_that_expires_soon_is_renewed(girder):
    (recorded,) = girder.record()
    soon = datetime.now(timezone.utc) + timedelta(hours=1)
    girder.token.collection.update_many({}, {"$set": {"expires": soon}})
    (spec,) = girder.store.claim("s", 10).specs
    assert spec.token == recorded.spec.token
    (token,) = girder.token.collection.find()
    assert token["expires"] > datetime.now(timezone.utc) + timedelta(days=6)
