"""Notifications to users' browsers about their jobs."""

from __future__ import annotations

import json

from girder_dask.jobs import JobStatus
from tests.support.girder_services import free_port
from tests.support.notices import listening
from tests.support.store_jobs import update


def test_notices_are_those_of_girder(girder, services):
    with listening(services, girder.user) as received:
        (recorded,) = girder.record()
        running = update(
            recorded.spec.id,
            1,
            JobStatus.RUNNING,
            log="line\n",
            progress={"total": 5, "current": 1},
        )
        girder.store.apply("s", [running])
        girder.store.apply("s", [update(recorded.spec.id, 2, JobStatus.SUCCESS)])
        told = received(5, recorded.spec.id)
    kinds = [notice["type"] for notice in told]
    assert kinds == ["job_created", "job_log", "progress", "job_status", "job_status"]
    created, log, progress, status, ended = told
    assert created["data"]["_id"] == recorded.spec.id
    sizes = log["data"].pop("sizes")
    assert log["data"] == {"_id": recorded.spec.id, "overwrite": False, "text": "line\n"}
    assert sizes == [0, girder.load(recorded.spec.id)["dask"]["log_bytes"]]
    assert progress["_id"] == recorded.spec.id
    assert progress["data"]["resourceName"] == "job"
    assert (progress["data"]["current"], progress["data"]["state"]) == (1.0, "active")
    assert status["data"]["status"] == JobStatus.RUNNING
    assert ended["data"]["status"] == JobStatus.SUCCESS
    assert len(ended["data"]["timestamps"]) == 3
    assert not {"log", "kwargs", "access"} & status["data"].keys()
    assert recorded.spec.token not in json.dumps(told)


def test_listener_to_all_users_hears_of_each(girder, services):
    with listening(services, pattern="user_*") as received:
        (recorded,) = girder.record()
        (created,) = received(1, recorded.spec.id)
    assert created["data"]["_id"] == recorded.spec.id


def test_without_redis_jobs_are_recorded_and_updated(girder, monkeypatch):
    import redis

    from girder_dask.plugin.notify import notifications
    from girder_dask.plugin.notify.redis_publisher import RedisPublisher

    nobody = redis.Redis(port=free_port())
    monkeypatch.setattr(notifications, "_publisher", RedisPublisher(lambda: nobody))
    (recorded,) = girder.record()
    girder.store.apply("s", [update(recorded.spec.id, 1, JobStatus.RUNNING)])
    assert girder.status(recorded.spec.id) == JobStatus.RUNNING
