"""A Girder with girder_worker: a second Girder, a broker and a Celery worker.

The Girder does not load our plugin. Its database is on the server of ``girder_stack``, whose Redis
is the broker.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
import urllib.parse
from pathlib import Path
from typing import Any

from girder_dask.http.girder_client import GirderClient
from girder_dask.standalone import accounts, checks, ports
from girder_dask.standalone.stack_part import Part, tail
from girder_dask.testing.stack import TestStack, User

__all__ = ["WorkerSite"]

_SERVE = """
import sys
import girder.plugin
found = girder.plugin._listPluginEntryPoints
girder.plugin._listPluginEntryPoints = lambda: [p for p in found() if p.name in %r]
from girder.cli.serve import main
sys.exit(main())
"""
_POLL = 0.05


class WorkerSite(TestStack):
    """A stack like ``girder_stack``, with girder_worker in place of girder_dask.

    Parameters
    ----------
    directory
        The directory of data and logs.
    beside
        The stack whose database server and Redis are used.
    packages
        A directory with packages that precede the installed ones.
    plugins
        The Girder plugins that are loaded.
    """

    def __init__(
        self, directory: Path, beside: TestStack, packages: Path, plugins: tuple[str, ...]
    ) -> None:
        super().__init__(directory)
        self._packages = packages
        self._plugins = plugins
        mongo = urllib.parse.urlsplit(beside.mongo)
        self._mongo = mongo._replace(path="/girder_worker_site").geturl()
        self._redis = beside.redis.rstrip("/")
        self._port = ports.choose(None)
        self._home = f"http://127.0.0.1:{self._port}"

    @property
    def api(self) -> str:
        return f"{self._home}/api/v1"

    def start(self) -> WorkerSite:  # type: ignore[override]
        self.directory.mkdir(parents=True, exist_ok=True)
        env = {
            **os.environ,
            "PYTHONPATH": str(self._packages),
            "PYTHONUNBUFFERED": "1",
            "GIRDER_MONGO_URI": self._mongo,
            "GIRDER_NOTIFICATION_REDIS_URL": self._redis,
            "GIRDER_SETTING_WORKER_API_URL": self.api,
            "GIRDER_WORKER_BROKER": f"{self._redis}/7",
            "GIRDER_WORKER_BACKEND": f"{self._redis}/7",
            "C_FORCE_ROOT": "1",
        }
        serve = [sys.executable, "-c", _SERVE % (("jobs", "worker", *self._plugins),)]
        serve += ["--mode", "production", "-H", "127.0.0.1", "-p", str(self._port)]
        celery = [sys.executable, "-m", "celery", "-A", "girder_worker.app", "worker"]
        celery += ["--concurrency", "6", "--loglevel", "info"]
        self.parts = [
            self._part("girder", serve, env, self._girder_answers),
            self._part("celery", celery, env, self._celery_is_ready),
        ]
        for part in self.parts:
            part.start()
        for part in self.parts:
            while not part.is_ready():
                time.sleep(_POLL)
        client = accounts.ensure_administrator(self.api, self._state)
        accounts.ensure_api_key(self.api, client, self._state)
        accounts.ensure_assetstore(client, self._directory.part("assetstore"))
        return self

    def create_user(self) -> User:
        """Create an ordinary user over Girder's own routes: our plugin is not there."""
        login, password = f"user{secrets.token_hex(5)}", secrets.token_urlsafe(12)
        fields = {"login": login, "password": password, "email": f"{login}@example.org"}
        user = self.admin.post("user", data={**fields, "firstName": "Test", "lastName": "User"})
        client = GirderClient(self.api)
        client.authenticate(login, password)
        folders = client.listFolder(user["_id"], parentFolderType="user", name="Private")
        return User(client, str(user["_id"]), login, next(iter(folders)))

    def stop(self) -> None:
        for part in reversed(self.parts):
            part.terminate()
        for part in reversed(self.parts):
            deadline = time.monotonic() + part.grace
            while part.running and time.monotonic() < deadline:
                time.sleep(_POLL)
            part.kill()
        import pymongo

        with contextlib.closing(pymongo.MongoClient(self._mongo)) as client:
            client.drop_database("girder_worker_site")

    def _part(self, name: str, command: list[str], env: dict[str, str], check: Any) -> Part:
        log = self._directory.log(f"worker-site-{name}")
        directory = self._directory.part("scratch")
        return Part(
            f"{name} of the girder_worker site",
            command,
            env=env,
            directory=directory,
            log=log,
            check=check,
        )

    def _girder_answers(self) -> bool:
        return checks.get_json(f"{self.api}/system/version") is not None

    def _celery_is_ready(self) -> bool:
        return any(" ready." in line for line in tail(self._directory.log("worker-site-celery")))
