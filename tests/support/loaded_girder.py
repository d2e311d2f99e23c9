"""A Girder in the process of pytest, so that tests call the functions of the store directly."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest

from girder_dask.client.backend import get_backend, set_backend
from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import Submission
from girder_dask.protocol.payload import pack_call
from tests.support.girder_services import Services, free_port


def store_functions() -> SimpleNamespace:
    """Return the functions of the store that most tests call."""
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


class LoadedGirder:
    """The models of a Girder that this process loads, with our plugin and that of girder_worker.

    A process can load Girder's plugins once, so create one instance only. What it changes in the
    process holds within :meth:`active` alone: the environment, the backend, the log records.
    """

    def __init__(self, services: Services) -> None:
        self._environment = {
            "GIRDER_MONGO_URI": services.mongo,
            "GIRDER_NOTIFICATION_REDIS_URL": services.redis,
            # No scheduler: what is sent goes nowhere, and must not be missed.
            "GIRDER_SETTING_DASK_SCHEDULER_ADDRESS": f"tcp://127.0.0.1:{free_port()}",
        }
        with self._changed_process():
            self._load()

    def _load(self) -> None:
        from girder import plugin
        from girder.utility import config
        from girder.utility.server import create_app

        config.loadConfig()
        plugin._loadPlugins(create_app("testing"), ["dask", "worker"])
        self._backend = get_backend()
        set_backend(None)

        from girder.models.api_key import ApiKey
        from girder.models.setting import Setting
        from girder.models.token import Token
        from girder.models.user import User
        from girder_jobs.models.job import Job

        from girder_dask.plugin.store import models

        self.store = store_functions()
        self.job, self.token, self.user_model = Job(), Token(), User()
        self.dask_job, self.payload = models.DaskJob(), models.DaskPayload()
        self._emptied = (
            *(self.job, self.dask_job, self.payload, models.DaskLog()),
            *(self.token, ApiKey()),
        )
        self._setting = Setting()
        self._setting.set("worker.api_url", "http://girder.test/api/v1")
        self.admin = self._make_user("boss", admin=True)
        self.user = self._make_user("carla", admin=False)

    def _make_user(self, login: str, *, admin: bool) -> dict[str, Any]:
        # Without a password, which takes a quarter of a second to hash.
        return self.user_model.createUser(
            login, None, "First", "Last", f"{login}@example.org", admin=admin
        )

    def make_token(self, login: str) -> str:
        """Return a token of a user, as a login does."""
        user = self.user_model.findOne({"login": login})
        return str(self.token.createToken(user)["_id"])

    @contextlib.contextmanager
    def _changed_process(self) -> Iterator[None]:
        from girder_dask.plugin import scheduler_rpc
        from girder_dask.plugin.store.unreachable import UnreachableReporter

        factory = logging.getLogRecordFactory()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self._environment.items():
                patch.setenv(name, value)
            # Closing the link waits for its attempt to connect, which is in vain.
            patch.setattr(scheduler_rpc, "_CONNECT_TIMEOUT_S", 0.1)
            # It would write into the jobs of a test at any moment that there is no scheduler, also
            # from a thread that an earlier backend has started.
            patch.setattr(UnreachableReporter, "set_reason", lambda *_: None)
            patch.setattr(UnreachableReporter, "_write_reason", lambda *_: 0)
            try:
                yield
            finally:
                logging.setLogRecordFactory(factory)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make this the Girder of the process, and undo that afterwards."""
        from girder_dask.plugin import girder_log

        with self._changed_process():
            girder_log.install()
            set_backend(self._backend)
            self._backend.connect()
            try:
                yield
            finally:
                self._backend.close()
                set_backend(None)

    def clear(self) -> None:
        """Delete all jobs, tokens, API keys and settings of our plugin."""
        from girder_dask.plugin import settings
        from girder_dask.plugin.store import tokens

        tokens.pending.take(list(tokens.pending._documents))
        for model in self._emptied:
            model.collection.delete_many({})
        self._setting.collection.delete_many({"key": {"$regex": r"^dask\."}})
        settings.clear_cache()

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
        """Return the document of a job."""
        return self.job.collection.find_one({"_id": self.object_id(job_id)})

    def status(self, job_id: Any) -> JobStatus:
        """Return the state of a job."""
        return JobStatus(self.load(job_id)["status"])

    def log(self, job_id: Any) -> str:
        """Return the log that is in the document of a job."""
        return "".join(self.load(job_id)["log"])

    def left(self, job_id: Any) -> dict[str, Any]:
        """Return what is left of a job besides its job document."""
        record = self.dask_job.collection.find_one({"_id": self.object_id(job_id)})
        return {
            "record": record is not None,
            "payload": self.payload.collection.count_documents({"job": self.object_id(job_id)})
            + bool((record or {}).get("payload")),
            "tokens": self.token.collection.count_documents({}),
        }

    @staticmethod
    def object_id(job_id: Any) -> Any:
        """Return the id that a text spells."""
        from bson import ObjectId

        return ObjectId(job_id)
