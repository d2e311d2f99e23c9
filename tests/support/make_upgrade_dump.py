"""The database of a site with jobs in its queue, as the first release recorded them.

Run it with the release that records, from a checkout of that::

    PYTHONPATH=CHECKOUT python tests/support/make_upgrade_dump.py tests/data/upgrade_dump.json.gz

It starts a stack, lets some jobs end and one map run half way, kills the scheduler and the worker,
records jobs of every kind, and dumps all collections, the files, and the expected result of each
job. Only the public names of the release are used. The secrets in the dump are of that stack.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from bson import json_util
from my_worker_tasks import add_one, file_size, make_files, my_task, sizes
from my_worker_tasks.files import read_tree
from pymongo import MongoClient

from girder_dask import JobResult, Task, chain, chord, connect, current_job, group, progress, task
from girder_dask.errors import JobFailed
from girder_dask.jobs import JobStatus
from girder_dask.testing.stack import TestStack
from girder_dask.transforms import (
    GirderFileId,
    GirderFileIdAllowDirect,
    GirderFolderId,
    GirderItemId,
    GirderItemMetadata,
    GirderUploadJobArtifact,
    GirderUploadToFolder,
    GirderUploadToItem,
    ResultTransform,
    TemporaryDirectory,
    Transform,
)

_PARTS, _DONE_PARTS = 8, 3


class Doubled(Transform):
    """A transform of a notebook."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def transform(self) -> int:
        return 2 * self.number


class Told(ResultTransform):
    """A result hook of a notebook."""

    def transform(self, data: Any) -> Any:
        return ["told", data]


class NoCoins(JobFailed):
    """An exception of a notebook."""


@task
def double(n: Any) -> Any:
    """Return twice as much."""
    return 2 * n


@task
def listed(path: str) -> list[str]:
    """Return the names of what is in a directory."""
    return sorted(found.name for found in Path(path).iterdir())


@task
def raised() -> None:
    """Raise an exception of the notebook."""
    raise NoCoins("no coins", job_id=current_job().id)


@task
def kept() -> Any:
    """Return a value that is pickled and contains objects of the package."""
    return [JobStatus.SUCCESS, JobResult("5f3c"), np.arange(3), add_one, Doubled, GirderFileId]


class Recorder:
    """Records jobs with their expected results."""

    def __init__(self, stack: TestStack) -> None:
        self.stack = stack
        self.jobs: dict[str, dict[str, Any]] = {}
        admin = stack.admin
        private = admin.listFolder(admin.get("user/me")["_id"], "user", "Private")
        above = next(iter(private))["_id"]
        self.folder = admin.createFolder(above, "inputs")["_id"]
        self.item = stack.upload(b"seven", "seven.txt", folder=self.folder)["itemId"]
        (file,) = admin.listFile(self.item)
        self.file = file["_id"]
        self.places = {"folder": admin.createFolder(above, "outputs")["_id"]}
        self.places["item"] = admin.createItem(self.folder_of_items(above), "target")["_id"]

    def folder_of_items(self, above: str) -> str:
        """Create the folder of the item to which hooks upload."""
        return str(self.stack.admin.createFolder(above, "items")["_id"])

    def add(self, name: str, result: JobResult, expected: Any) -> JobResult:
        """Add a job with its expected result."""
        self.jobs[name] = {"id": result.id, "expected": repr(expected)}
        return result

    def in_girder(self, name: str, start: Callable[..., str], *args: Any, expected: Any) -> None:
        """Record a job with a function that is called in Girder."""
        self.add(name, JobResult(self.stack.call(start, *args)), expected)


def record_plain(site: Recorder) -> None:
    """Record calls of plain values, from Girder and from a notebook."""

    def start_plain() -> str:
        return str(my_task.delay(1, "two", third=[3.5, None, True], pair=(1, {"b": b"x"})).id)

    def start_total(file: str) -> str:
        return str(my_task.delay(input_file=GirderFileId(file), girder_job_title="File").id)

    def start_fetched(file: str) -> str:
        return str(file_size.delay(GirderFileIdAllowDirect(file, "seven.txt")).id)

    def start_folder(folder: str) -> str:
        return str(read_tree.delay(GirderFolderId(folder)).id)

    def start_item(item: str) -> str:
        return str(read_tree.delay(GirderItemId(item)).id)

    def start_directory() -> str:
        return str(read_tree.delay(TemporaryDirectory()).id)

    values = {"third": [3.5, None, True], "pair": (1, {"b": b"x"})}
    site.in_girder("plain", start_plain, expected={"args": [1, "two"], "kwargs": values})
    described = {"size": 5, "sha256": hashlib.sha256(b"seven").hexdigest()}
    site.in_girder(
        "file", start_total, site.file, expected={"args": [], "kwargs": {"input_file": described}}
    )
    site.in_girder("file in place", start_fetched, site.file, expected=5)
    site.in_girder("folder", start_folder, site.folder, expected={"seven.txt": "seven"})
    site.in_girder("item", start_item, site.item, expected={"seven.txt": "seven"})
    site.in_girder("directory", start_directory, expected={})
    site.add("plain of a notebook", sizes.delay(b"123", named=4), [3, {"named": 4}])
    site.add("large", sizes.delay(bytes(range(256)) * 100), [25_600, {}])


def record_pickled(site: Recorder) -> None:
    """Record calls that are pickled: of functions of a notebook, and with its objects."""
    known = JobResult(site.jobs["kept"]["id"])
    wanted: Task[Any, Any] = add_one

    @task
    def closing(n: int) -> Any:
        job = current_job()
        return [known.id, wanted(n), double(n), job.title, list(progress(range(n)))]

    @task(bind=True, retries=1, title="Bound")
    def bound(self: Any, how: Any) -> Any:
        return how(self.job_manager.status == JobStatus.RUNNING)

    site.add("numpy", double.delay(np.float64(3.5)), 7.0)
    site.add("installed with numpy", add_one.delay(np.int64(41)), 42)
    site.add("closure", closing.delay(2), [known.id, 3, 4, "closing", [0, 1]])
    site.add("bound", bound.delay(lambda value: value), True)
    site.add("own transform", double.delay(Doubled(5)), 20)
    site.add("pickled item", listed.delay(GirderItemId(site.item)), ["seven.txt"])
    site.add("pickled folder", listed.delay(GirderFolderId(site.folder)), ["seven.txt"])
    site.add("pickled directory", listed.delay(TemporaryDirectory()), [])
    paths = task(lambda path, n: n * Path(path).read_text())
    site.add("pickled file", paths.delay(GirderFileId(site.file), np.int64(2)), "sevenseven")
    noise = np.random.default_rng(0).integers(0, 255, 30_000, dtype=np.uint8)
    site.add("pickled and large", task(lambda a: int(a.sum())).delay(noise), int(noise.sum()))
    options = {"isolation": "process", "at_most_once": True, "priority": 3, "timeout": 60}
    site.add("options", add_one.options(**options).delay(np.int64(1)), 2)
    with_session = task(lambda: 1).delay(girder_client_session_kwargs={"trust_env": False})
    site.add("session", with_session, 1)


def record_hooks(site: Recorder) -> None:
    """Record calls with each result hook, plain and pickled."""
    folder = [GirderUploadToFolder(site.places["folder"])]
    item = [GirderUploadToItem(site.places["item"])]
    metadata = [GirderItemMetadata(site.places["item"])]
    artifact = [GirderUploadJobArtifact()]
    number = np.int64(2)
    site.add("hook folder", make_files.delay(2, girder_result_hooks=folder), "hook folder")
    site.add("hook item", make_files.delay(number, girder_result_hooks=item), "hook item")
    site.add(
        "hook metadata",
        task(lambda: {"coins": 24}).delay(girder_result_hooks=metadata),
        {"coins": 24},
    )
    site.add("own hook", add_one.delay(1, girder_result_hooks=[Told()]), ["told", 2])
    site.add("hook artifact", make_files.delay(1, girder_result_hooks=artifact), "hook artifact")


def record_compositions(site: Recorder) -> None:
    """Record jobs that wait for others, chains and groups."""
    first = site.add("first", add_one.delay(1), 2)
    site.add("of a result", sizes.delay([first], other={"n": first}), [[2], {"other": {"n": 2}}])
    site.add("pickled of a result", double.delay([first, np.int64(1)]), [2, 1, 2, 1])
    known = JobResult(site.jobs["kept"]["id"])
    looked_at = task(lambda values: (int(values[0]), values[1].id, values[2].sum()))
    site.add("of a pickled value", looked_at.delay(known), (3, "5f3c", 3))
    last = chain(add_one.s(10), double.s(), add_one.s()).delay()
    site.add("chain", last, 23)
    both = group(add_one.s(1), add_one.s(2)).delay()
    site.add("of a group", sizes.delay(both), [[2, 3], {}])
    site.add("chord", chord([add_one.s(1), double.s(4)])(sizes.s()), [[2, 8], {}])
    site.add("map", double.map(range(3)), [0, 2, 4])


def record_as_user(site: Recorder) -> None:
    """Record a call that Girder makes for a user who may not run code of their own."""
    user = site.stack.create_user()

    def start() -> str:
        return str(add_one.delay(6).id)

    site.add("of a user", JobResult(site.stack.call(start, user=user)), 7)


def start_half_a_map(site: Recorder, directory: Path) -> None:
    """Run half of a map, and leave one of its jobs running."""

    @task
    def part(n: int) -> int:
        gate = Path(directory)
        while n >= _DONE_PARTS and gate.exists():
            time.sleep(0.02)
        return 10 * n

    half = site.add("half a map", part.map(range(_PARTS)), [10 * n for n in range(_PARTS)])
    deadline = time.monotonic() + 60
    while True:
        states = [JobResult(each.id).status for each in half.results]  # type: ignore[attr-defined]
        if states.count(JobStatus.SUCCESS) == _DONE_PARTS and JobStatus.RUNNING in states:
            return
        assert time.monotonic() < deadline, states
        time.sleep(0.2)


def dump(stack: TestStack, jobs: dict[str, Any], places: dict[str, str]) -> dict[str, Any]:
    """Return the database and the files of a stack as JSON values."""
    client: Any = MongoClient(stack.mongo, tz_aware=True)
    database = client.get_default_database()
    store = stack.directory / "assetstore"
    return {
        "recorded": datetime.now(timezone.utc).isoformat(),
        "assetstore": str(store),
        "state": json.loads((stack.directory / "state.json").read_text()),
        "jobs": jobs,
        "places": places,
        "collections": {
            name: json.loads(json_util.dumps(list(database[name].find())))
            for name in sorted(database.list_collection_names())
        },
        "files": {
            str(path.relative_to(store)): base64.b64encode(path.read_bytes()).decode()
            for path in sorted(store.rglob("*"))
            if path.is_file()
        },
    }


def main(output: str) -> None:
    """Record, and write the dump."""
    with tempfile.TemporaryDirectory() as temporary:
        gate = Path(temporary, "gate")
        gate.touch()
        stack = TestStack(Path(temporary, "stack"), workers=1, threads=1)
        with stack, connect(stack.api, api_key=stack.api_key):
            site = Recorder(stack)
            site.add("kept", kept.delay(), "kept").wait(60)
            site.add("raised", raised.delay(), "raised").wait(60)
            start_half_a_map(site, gate)
            for name in ("scheduler", "worker-0"):
                stack.part(name).kill()
            record_plain(site)
            record_pickled(site)
            record_hooks(site)
            record_compositions(site)
            record_as_user(site)
            written = dump(stack, site.jobs, site.places)
    Path(output).write_bytes(gzip.compress(json.dumps(written).encode(), mtime=0))
    print(f"{len(site.jobs)} results, {Path(output).stat().st_size:,} bytes: {output}")


if __name__ == "__main__":
    main(sys.argv[1])
