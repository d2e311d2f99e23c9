"""The deletion of old jobs, and of their logs, artifacts and results."""

from __future__ import annotations

import io
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import StoredResult
from tests.support.store_jobs import count_chunks, update, whole_log

# All jobs of a test are a hundred days old.
NOW = datetime.now(timezone.utc) + timedelta(days=100)


def rule(delete: str, **fields: Any) -> Any:
    from girder_dask.plugin.retention_rules import read_rules

    (found,) = read_rules([{"delete": delete, "days": 90, **fields}])
    return found


def delete(given: Any, **options: Any) -> int:
    """Apply a rule to all jobs; return how many it was applied to."""
    from girder_dask.plugin import retention

    deleted, after = 0, None
    while True:
        step = retention.delete_step(given, after, NOW, **options)
        deleted, after = deleted + step.deleted, step.after
        if after is None:
            return deleted


def end(girder: Any, recorded: Any, status: JobStatus = JobStatus.SUCCESS, **fields: Any) -> str:
    updates = [update(recorded.spec.id, 1, JobStatus.RUNNING, status, **fields)]
    girder.store.apply("s", updates)
    return str(recorded.spec.id)


def exists(girder: Any, job_id: str) -> bool:
    return girder.load(job_id) is not None


def test_delete_step_deletes_whole_jobs_that_have_ended(girder):
    ended, waiting = girder.record(2)
    end(girder, ended, log="said\n" * 2_000_000, result=b"v" * 10_000)
    assert count_chunks(ended.spec.id) > 0
    assert delete(rule("jobs")) == 1
    assert not exists(girder, ended.spec.id)
    left = girder.left(ended.spec.id)
    assert (left["record"], left["payload"], count_chunks(ended.spec.id)) == (False, 0, 0)
    assert girder.status(waiting.spec.id) == JobStatus.QUEUED
    assert delete(rule("jobs")) == 0


def test_delete_step_keeps_what_is_younger(girder):
    (recorded,) = girder.record()
    job_id = end(girder, recorded)
    assert delete(rule("jobs", days=101)) == 0
    recent = {"$set": {"updated": NOW - timedelta(days=1)}}
    girder.job.collection.update_one({"_id": girder.object_id(job_id)}, recent)
    assert delete(rule("jobs")) == 0
    assert exists(girder, job_id)


@pytest.mark.parametrize(
    ("fields", "deleted"),
    [
        ({"states": ["ERROR"]}, [1]),
        ({"states": ["SUCCESS", "CANCELED"]}, [0, 2]),
        ({"types": ["other"]}, [2]),
        ({"owners": ["carla"]}, [0, 1]),
        ({"owners": ["Boss", "nobody"]}, [2]),
        ({"owners": ["nobody"]}, []),
        ({"types": ["other"], "owners": ["carla"]}, []),
    ],
)
def test_delete_step_chooses_by_state_type_and_owner(girder, fields, deleted):
    first, second = girder.record(2)
    (third,) = girder.record(user=girder.admin, type="other")
    ids = [end(girder, first), end(girder, second, JobStatus.ERROR), end(girder, third)]
    assert delete(rule("jobs", **fields), is_dry=True) == len(deleted)
    assert all(exists(girder, job_id) for job_id in ids)
    assert delete(rule("jobs", **fields)) == len(deleted)
    assert [n for n, job_id in enumerate(ids) if not exists(girder, job_id)] == deleted


def test_delete_step_leaves_jobs_of_other_handlers_alone(girder):
    job = girder.job.createJob(title="by others", type="t", user=girder.user)
    done = {"$set": {"status": int(JobStatus.SUCCESS)}}
    girder.job.collection.update_one({"_id": job["_id"]}, done)
    assert delete(rule("jobs")) == 0
    assert exists(girder, job["_id"])


def test_delete_step_keeps_results_that_unfinished_jobs_need(girder):
    (first,) = girder.record()
    end(girder, first, result=b"value")
    (dependent,) = girder.record(dependencies=[first.spec.id])
    assert delete(rule("jobs")) == delete(rule("results")) == 0
    assert girder.store.result(first.spec.id).value == b"value"
    end(girder, dependent)
    assert delete(rule("results")) == 2


def test_delete_step_deletes_logs_and_says_so(girder):
    short, long = girder.record(2)
    end(girder, short, log="short\n")
    end(girder, long, log="long\n" * 3_000_000)
    assert delete(rule("logs")) == 2
    deleted = "[The log was deleted, since the job ended long ago.]\n"
    for recorded in (short, long):
        assert whole_log(recorded.spec.id) == girder.log(recorded.spec.id) == deleted
        assert count_chunks(recorded.spec.id) == 0
        assert girder.status(recorded.spec.id) == JobStatus.SUCCESS
    assert delete(rule("logs")) == 0, "they are not deleted again"


def test_delete_step_deletes_results_and_keeps_errors(girder):
    small, large, failed = girder.record(3)
    end(girder, small, result=b"small")
    end(girder, large, result=b"v" * 10_000)
    end(girder, failed, JobStatus.ERROR, error="ValueError: no", exception=b"e" * 10)
    assert delete(rule("results")) == 3
    gone = StoredResult(error="it was deleted, since the job ended long ago")
    assert girder.store.result(small.spec.id) == girder.store.result(large.spec.id) == gone
    assert girder.store.result(failed.spec.id) == StoredResult(error="ValueError: no")
    assert delete(rule("results")) == 0


def test_delete_step_deletes_artifacts(girder, tmp_path):
    from girder.models.assetstore import Assetstore

    from girder_dask.plugin.store import artifacts

    store = Assetstore().createFilesystemAssetstore("retention", str(tmp_path))
    try:
        first, second = girder.record(2)
        for recorded in (first, second):
            job = girder.load(end(girder, recorded))
            artifacts.add(job, "plot.png", 3, io.BytesIO(b"png"), user=girder.user)
        done = {"$set": {"status": int(JobStatus.RUNNING)}}
        girder.job.collection.update_one({"_id": second.job["_id"]}, done)
        assert delete(rule("artifacts")) == 1
        assert artifacts.list_of(first.job["_id"]) == []
        assert len(artifacts.list_of(second.job["_id"])) == 1
        assert exists(girder, first.spec.id)
    finally:
        artifacts.remove_all(second.job["_id"])
        Assetstore().remove(store)


def test_delete_step_is_small(girder):
    from girder_dask.plugin import retention

    ids = [end(girder, recorded) for recorded in girder.record(5)]
    first = retention.delete_step(rule("jobs"), None, NOW, limit=2)
    assert first.deleted == 2
    assert [exists(girder, job_id) for job_id in ids] == [False, False, True, True, True]
    second = retention.delete_step(rule("jobs"), first.after, NOW, limit=10)
    assert (second.deleted, second.after) == (3, None)


def test_sweep_applies_the_setting(girder, monkeypatch):
    from girder.models.setting import Setting

    from girder_dask.plugin import retention, retention_sweeper, settings

    monkeypatch.setattr(retention, "MAX_STEP_JOBS", 2)
    ids = [end(girder, recorded) for recorded in girder.record(3)]
    Setting().set(settings.RETENTION, [{"delete": "jobs", "days": 0}])
    settings.clear_cache()
    old = {"$set": {"updated": datetime.now(timezone.utc) - timedelta(days=1)}}
    girder.job.collection.update_many({}, old)
    (found,) = settings.retention()
    # The ids of jobs are made of whole seconds.
    monkeypatch.setattr(retention_sweeper, "datetime", Later)
    assert retention_sweeper.sweep(found, pause_s=0.0) == 3
    assert not any(exists(girder, job_id) for job_id in ids)


class Later(datetime):
    """A clock that is two seconds ahead."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.now(tz) + timedelta(seconds=2)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("logs", "Expected `array`, got `str`"),
        ([{"delete": "users", "days": 1}], "Invalid enum value 'users' - at `$[0].delete`"),
        ([{"delete": "logs"}], "Object missing required field `days` - at `$[0]`"),
        ([{"delete": "logs", "days": -1}], "Expected `float` >= 0.0 - at `$[0].days`"),
        (
            [{"delete": "logs", "days": 1, "state": "ERROR"}],
            "Object contains unknown field `state` - at `$[0]`",
        ),
    ],
)
def test_setting_refuses_malformed_rules(girder, value, problem):
    from girder.exceptions import ValidationException
    from girder.models.setting import Setting

    from girder_dask.plugin import settings

    with pytest.raises(ValidationException) as caught:
        Setting().set(settings.RETENTION, value)
    assert str(caught.value) == (
        f"The retention of jobs cannot be read: {problem}. It is a list of rules such as "
        '{"delete": "logs", "days": 90, "states": ["SUCCESS"]}.'
    )
