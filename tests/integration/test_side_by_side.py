"""One package of tasks on girder_dask and, with other imports, on girder_worker.

Every way to start a task (``ported_tasks.starts``) is taken in both Girders, each by a new
user with the same files, and then the jobs and what is in Girder are compared. Where
girder_worker differs, DIFFERENCES says so and why.
"""

from __future__ import annotations

import importlib.util
import re
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
STARTS = re.findall(r"^        ([a-z_]+),$", (PACKAGE / "starts.py").read_text(), re.MULTILINE)

#: How many jobs a start makes, if not one.
JOBS = {"a_chain": 3, "a_group": 3, "parent": 2}
DEADLINE = 45.0


@dataclass
class Seen:
    """What one start has left in one Girder."""

    jobs: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """One start in one Girder, by a user of its own."""

    site: TestStack
    name: str
    user: User = field(init=False)
    ids: dict[str, str] = field(init=False)

    def start(self) -> None:
        self.user = self.site.create_user()
        client = self.user.client
        folder = client.createFolder(self.user.folder["_id"], "data")
        file = self.site.upload(b"three words here", "words.txt", client=client)
        item = client.createItem(folder["_id"], "pair")
        for name in ("one.txt", "two.txt"):
            self.upload_to(item["_id"], name)
        self.ids = {"fileId": file["_id"], "itemId": item["_id"], "folderId": folder["_id"]}
        client.post(f"ported/start/{self.name}", parameters=self.ids)

    def upload_to(self, item_id: str, name: str) -> None:
        import io

        data = f"content of {name}".encode()
        self.user.client.uploadFile(
            item_id, io.BytesIO(data), name, len(data), parentType="item"
        )

    def ended(self) -> bool:
        """Say whether all jobs have ended. A job that waits for it is canceled."""
        jobs = self.jobs()
        for job in jobs:
            if self.name == "waits" and job["status"] == JobStatus.RUNNING:
                if "waiting" in self.log(job):
                    self.user.client.put(f"job/{job['_id']}/cancel")
        ended = [job for job in jobs if job["status"] in FINAL]
        return len(ended) == JOBS.get(self.name, 1)

    def jobs(self) -> list[dict[str, Any]]:
        return list(self.user.client.get("job", parameters={"limit": 0}))

    def log(self, job: dict[str, Any]) -> str:
        log = self.user.client.get(f"job/{job['_id']}").get("log") or []
        return log if isinstance(log, str) else "".join(log)

    def look(self) -> Seen:
        """Return what is there, without what differs from Girder to Girder."""
        client = self.user.client
        seen = Seen()
        titles = {job["_id"]: job["title"] for job in self.jobs()}
        for job in sorted(self.jobs(), key=lambda job: str(job["title"])):
            seen.jobs.append(
                {
                    "title": job["title"],
                    "type": job["type"],
                    "public": job["public"],
                    "status": JobStatus(job["status"]).name,
                    "ported": job.get("ported"),
                    "progress": progress(job),
                    "args": self.named(job["args"]),
                    "kwargs": self.named(job["kwargs"]),
                    "parent": titles.get(job.get("parentId")),
                    "mine": job["userId"] == self.user.id,
                    "log": self.log(job),
                }
            )
        for item in self.items(self.ids["folderId"]):
            seen.metadata[item["name"]] = item["meta"]
            for file in client.listFile(item["_id"]):
                seen.files[f"{item['path']}/{file['name']}"] = content(client, file["_id"])
        return seen

    def items(self, folder: str, path: str = "") -> Iterator[dict[str, Any]]:
        for item in self.user.client.listItem(folder):
            yield {**item, "path": f"{path}/{item['name']}"}
        for inner in self.user.client.listFolder(folder):
            yield from self.items(inner["_id"], f"{path}/{inner['name']}")

    def named(self, value: Any) -> str:
        """Return arguments with the names of what they stand for in place of ids."""
        text = repr(value)
        for name, identity in self.ids.items():
            text = text.replace(identity, name)
        return text


def progress(job: dict[str, Any]) -> Any:
    now = job.get("progress") or {}
    return now.get("total"), now.get("current"), now.get("message")


def content(client: Any, file_id: str) -> str:
    import io

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
def seen(girder_stack: TestStack, worker_site: WorkerSite) -> dict[str, tuple[Seen, Seen]]:
    """Take every way to start on both sides, all at once, and look at what came of it."""
    pairs = {name: (Run(girder_stack, name), Run(worker_site, name)) for name in STARTS}
    pending = [run for pair in pairs.values() for run in pair]
    for run in pending:
        run.start()
    deadline = time.monotonic() + DEADLINE
    while pending and time.monotonic() < deadline:
        pending = [run for run in pending if not run.ended()]
        time.sleep(0.1)
    for run in pending:
        shown = [(job["title"], job["status"], run.log(job)) for job in run.jobs()]
        raise AssertionError(
            f"{run.name} has not ended on {type(run.site).__name__}: {shown}\n"
            f"{run.site.recent_logs(60)}"
        )
    return {name: (ours.look(), theirs.look()) for name, (ours, theirs) in pairs.items()}


def test_show(seen):
    for name, (ours, theirs) in seen.items():
        if ours != theirs:
            for a, b in zip(ours.jobs, theirs.jobs):
                for k in a:
                    if a[k] != b[k]:
                        print(name, k, "OURS", repr(a[k]), "THEIRS", repr(b[k]))
            if ours.files != theirs.files: print(name, ours.files, theirs.files)
            if ours.metadata != theirs.metadata: print(name, ours.metadata, theirs.metadata)
    assert 0
