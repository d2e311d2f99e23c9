"""Helpers for attacks on the routes: the attackers, and the jobs that they attack."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import requests

from tests.support.rest_site import ask, start_waiting


@dataclass(frozen=True)
class Victim:
    """A user's job with an artifact and a log, which no scheduler touches."""

    id: str
    token: str
    artifact: str = "report.txt"


class Attack:
    """Actors, and jobs of two users.

    Parameters
    ----------
    stack
        The Girder, with its scheduler.
    """

    def __init__(self, stack: Any) -> None:
        self.stack = stack
        self.attacker, self.victim = stack.create_user(), stack.create_user()
        self.stranger = stack.create_user()
        self.own, self.theirs = self.make_job(self.attacker), self.make_job(self.victim)
        self.public = self.make_job(self.victim, public=True)
        key = stack.credential_file.read_text().strip()
        answer = requests.post(f"{stack.api}/api_key/token", params={"key": key}, timeout=30)
        self.credential = str(answer.json()["authToken"]["token"])

    def make_job(self, user: Any, *, public: bool = False) -> Victim:
        """Record a running job with an artifact and a log."""
        made = self.stack.call(start_waiting, user=user)
        path = f"job/{made['id']}/artifact"
        params = {"name": "report.txt"}
        ask(self.stack, "POST", path, token=made["token"], params=params, data=b"24 coins")
        self.stack.call(settle, made["id"], public=public)
        return Victim(made["id"], made["token"])

    def token_of(self, actor: str) -> str | None:
        """Return the token of an actor's requests."""
        return {
            "anonymous": None,
            "user": self.stranger.client.token,
            "owner": self.attacker.client.token,
            "job": self.own.token,
            "scheduler": self.credential,
            "administrator": self.stack.admin.token,
        }[actor]

    def state(self) -> dict[str, Any]:
        """Return all documents that belong to the victim."""
        return dict(self.stack.call(documents_of, self.victim.id, [self.theirs.id, self.public.id]))


def settle(job_id: str, *, public: bool) -> None:
    """Keep schedulers from claiming a job, and give it a log and a result. Run it in Girder."""
    from bson import ObjectId
    from girder_jobs.models.job import Job

    from girder_dask.plugin.store.models import DaskJob

    # INACTIVE, so that no scheduler claims it, while its token stays that of a running job.
    change = {"log": ["counted\n"], "public": public}
    Job().collection.update_one(
        {"_id": ObjectId(job_id)},
        {"$set": {**change, "status": 0}, "$unset": {"dask.claimed": 1, "dask.waits": 1}},
    )
    DaskJob().collection.update_one({"_id": ObjectId(job_id)}, {"$set": {"result": b"j24"}})


def documents_of(user_id: str, job_ids: list[str]) -> dict[str, Any]:
    """Return all documents of a user and of jobs. Run it in Girder."""
    from bson import ObjectId
    from bson.json_util import dumps
    from girder.models.file import File
    from girder.models.folder import Folder
    from girder.models.item import Item
    from girder.models.token import Token
    from girder.models.user import User
    from girder_jobs.models.job import Job

    from girder_dask.plugin.store.models import DaskJob

    user, ids = ObjectId(user_id), [ObjectId(job_id) for job_id in job_ids]
    queries = {
        "jobs": (Job, {"$or": [{"userId": user}, {"_id": {"$in": ids}}]}),
        "records": (DaskJob, {"_id": {"$in": ids}}),
        "files": (File, {"$or": [{"creatorId": user}, {"attachedToId": {"$in": ids}}]}),
        "folders": (Folder, {"creatorId": user}),
        "items": (Item, {"creatorId": user}),
        "tokens": (Token, {"userId": user}),
        "user": (User, {"_id": user}),
    }
    return {
        name: [json.loads(dumps(found)) for found in model().collection.find(query).sort("_id")]
        for name, (model, query) in queries.items()
    }
