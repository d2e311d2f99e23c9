"""One package of tasks on girder_dask and, with other imports, on girder_worker.

Every way to start a task (``ported_tasks.starts``) is taken in both Girders, each by a new
user with the same files, and then the jobs and what is in Girder are compared. Where
girder_worker differs, DIFFERENCES says so and why.
"""

from __future__ import annotations

import importlib.util
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from girder_dask.jobs import FINAL, JobStatus
from girder_dask.testing.stack import TestStack, User

from ported_source import rewrite, rewrite_package, without_imports
from worker_site import WorkerSite

spec = importlib.util.find_spec("ported_tasks")
assert spec is not None
assert spec.origin is not None
PACKAGE = Path(spec.origin).parent

#: The titles of the jobs of each start.
TITLES = {
    "add": ["Add"],
    "fields": ["Another title"],
    "options": ["By apply_async"],
    "plain": ["Plain"],
    "steps": ["Steps"],
    "states": ["States"],
    "surroundings": ["Surroundings"],
    "file_size": ["Size"],
    "direct": ["Direct"],
    "item_contents": ["Contents"],
    "nested": ["Total"],
    "metadata": ["Measure"],
    "to_folder": ["Report"],
    "to_item": ["Addition"],
    "tree": ["Tree"],
    "both": ["Both"],
    "artifact": ["Artifact"],
    "own_transforms": ["Echo"],
    "fails": ["Fails"],
    "missing": ["Missing"],
    "waits": ["Waits"],
    "parent": ["Parent", "Child"],
    "described": ["Scale"],
    "describes": ["Describes"],
    "a_chain": ["First", "Second", "Third"],
    "a_group": ["Member 0", "Member 1", "Member 2"],
}

#: Seconds until all jobs have ended on both sides.
DEADLINE = 40.0


@dataclass
class Seen:
    """What one start has left in one Girder."""

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


class Side:
    """All starts in one Girder, by one user, each with a folder of its own."""

    def __init__(self, site: TestStack) -> None:
        self.site = site
        self.user = site.create_user()
        self.client = self.user.client
        self.ids: dict[str, dict[str, str]] = {}
        self._canceled = False

    def start(self, name: str) -> None:
        folder = self.client.createFolder(self.user.folder["_id"], name)
        item = self.client.createItem(folder["_id"], "pair")
        for file in ("one.txt", "two.txt"):
            data = f"content of {file}".encode()
            self.client.uploadFile(
                item["_id"], io.BytesIO(data), file, len(data), parentType="item"
            )
        self.ids[name] = {
            "fileId": self.site.upload(b"three words here", "words.txt", client=self.client)["_id"],
            "itemId": item["_id"],
            "folderId": folder["_id"],
        }
        self.client.post(f"ported/start/{name}", parameters=self.ids[name])

    def jobs(self) -> dict[str, dict[str, Any]]:
        """Return the jobs by their titles."""
        jobs = self.client.get("job", parameters={"limit": 0})
        found = {job["title"]: job for job in jobs}
        assert len(found) == len(jobs)
        return found

    def unfinished(self) -> list[str]:
        """Return the titles of jobs that have not ended. The one that waits is canceled."""
        jobs = self.jobs()
        waits = jobs["Waits"]
        if waits["status"] == JobStatus.RUNNING and not self._canceled:
            if "waiting" in self.site.log(waits["_id"]):
                self.client.put(f"job/{waits['_id']}/cancel")
                self._canceled = True
        wanted = {title for titles in TITLES.values() for title in titles}
        return sorted(wanted - {t for t, job in jobs.items() if job["status"] in FINAL})

    def look(self, name: str) -> Seen:
        """Return what a start has left, without what differs from Girder to Girder."""
        jobs = self.jobs()
        seen = Seen({title: self.shown(jobs, title, name) for title in TITLES[name]})
        for item in self.items(self.ids[name]["folderId"]):
            if item["meta"]:
                seen.metadata[item["name"]] = item["meta"]
            for file in self.client.listFile(item["_id"]):
                seen.files[f"{item['path']}/{file['name']}"] = content(self.client, file["_id"])
        return seen

    def shown(self, jobs: dict[str, dict[str, Any]], title: str, name: str) -> dict[str, Any]:
        job = self.site.job(jobs[title]["_id"])
        parents = [t for t, other in jobs.items() if other["_id"] == job.get("parentId")]
        progress = job.get("progress") or {}
        return {
            "type": job["type"],
            "public": job["public"],
            "status": JobStatus(job["status"]).name,
            "ported": job.get("ported"),
            "progress": [progress.get(key) for key in ("total", "current", "message")],
            "args": self.named(job["args"], name),
            "kwargs": self.named(job["kwargs"], name),
            "parent": parents,
            "mine": job["userId"] == self.user.id,
            "log": "".join(job.get("log") or []),
        }

    def items(self, folder: str, path: str = "") -> Iterator[dict[str, Any]]:
        for item in self.client.listItem(folder):
            yield {**item, "path": f"{path}/{item['name']}"}
        for inner in self.client.listFolder(folder):
            yield from self.items(inner["_id"], f"{path}/{inner['name']}")

    def named(self, value: Any, start: str) -> str:
        """Return arguments with names in place of the ids of this Girder."""
        text = repr(value)
        for name, identity in self.ids[start].items():
            text = text.replace(identity, name)
        return text


def content(client: Any, file_id: str) -> str:
    stream = io.BytesIO()
    client.downloadFile(file_id, stream)
    return stream.getvalue().decode()


@pytest.fixture(scope="module")
def worker_site(
    girder_stack: TestStack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerSite]:
    directory = tmp_path_factory.mktemp("worker_site")
    packages = directory / "packages"
    packages.mkdir()
    rewrite_package(PACKAGE, packages)
    site = WorkerSite(directory / "site", girder_stack, packages, ("ported_tasks",))
    try:
        yield site.start()
    finally:
        site.stop()


@pytest.fixture(scope="module")
def sides(girder_stack: TestStack, worker_site: WorkerSite) -> tuple[Side, Side]:
    """Take every way to start on both sides, and return when all jobs have ended."""
    both = Side(girder_stack), Side(worker_site)
    for name in TITLES:
        for side in both:
            side.start(name)
    deadline = time.monotonic() + DEADLINE
    while any(side.unfinished() for side in both):
        if time.monotonic() > deadline:
            left = {type(side.site).__name__: side.unfinished() for side in both}
            logs = [side.site.recent_logs(60) for side in both]
            raise AssertionError("\n".join([f"These have not ended: {left}.", *logs]))
        time.sleep(0.2)
    return both


def test_show(sides):
    for name in TITLES:
        ours, theirs = [side.look(name) for side in sides]
        if ours != theirs:
            for title in ours.jobs:
                a, b= ours.jobs[title], theirs.jobs[title]
                for k in a:
                    if a[k] != b[k]:
                        print(name, title, k, "OURS", repr(a[k]), "THEIRS", repr(b[k]))
            if ours.files != theirs.files: print(name, ours.files, theirs.files)
            if ours.metadata != theirs.metadata: print(name, ours.metadata, theirs.metadata)
    assert 0
