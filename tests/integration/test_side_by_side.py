"""One package of tasks on girder_dask and, with other imports, on girder_worker.

Every way to start a task (``ported_tasks.starts``) is taken in both Girders, each by a new
user with the same files, and then the jobs and what is in Girder are compared. Where
girder_worker differs, DIFFERENCES says so and why.
"""

from __future__ import annotations

import importlib.util
import io
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from girder_dask.jobs import FINAL, JobStatus
from girder_dask.testing.stack import TestStack
from tests.support.ported_source import rewrite, rewrite_package, without_imports
from tests.support.worker_site import WorkerSite

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
    "to_item_and_deleted": ["Deletion"],
    "tree": ["Tree"],
    "both": ["Both"],
    "artifact": ["Artifact"],
    "own_transforms": ["Echo"],
    "fails": ["Fails"],
    "missing": ["Missing"],
    "hook_fails": ["Hook fails"],
    "waits": ["Waits"],
    "parent": ["Parent", "Child"],
    "described": ["Scale"],
    "describes": ["Describes"],
    "a_chain": ["First", "Second", "Third"],
    "a_group": ["Member 0", "Member 1", "Member 2"],
}

_UNHEARD = r"Hook fails returned .*\nthere is nothing to announce\nnothing was announced\n"
_SAID = r"about to fail\nthere is nothing to announce\n"
_FRAME = r'  File "\S+/tasks\.py", line \d+, in fails\n    raise ValueError\(message\)\n'

#: For the title of a job and something of it that differs: what it is here and there, as
#: regular expressions, and why.
DIFFERENCES = {
    ("Deletion", "status"): (
        "SUCCESS",
        "ERROR",
        "girder_worker removes the temporary directory, then fails to delete the file in it",
    ),
    ("Deletion", "log"): ("", "FileNotFoundError: .*", "as above"),
    ("Artifact", "status"): (
        "SUCCESS",
        "ERROR",
        "girder_worker posts artifacts to a route that Girder does not have",
    ),
    ("Artifact", "log"): ("", "HTTPError: HTTP error 400: POST .*artifact.*", "as above"),
    ("Fails", "log"): (
        f"{_SAID}Traceback.*:\\n{_FRAME}ValueError: no such luck\\n",
        f"{_SAID}ValueError: no such luck\\n.*{_FRAME}",
        "girder_worker puts the error first, and shows Celery's own frames",
    ),
    ("Missing", "log"): (
        r"there is nothing to announce\nGirderFileId\(\S+\): .* There is no such file .*",
        r"there is nothing to announce\nHTTPError: HTTP error 400: GET \S+\n.*",
        "girder_worker shows the traceback of the request, with Girder's address",
    ),
    ("Hook fails", "log"): (
        f"{_UNHEARD}Traceback.*ValueError: nobody listens\\nthe stage is empty\\n",
        f"{_UNHEARD}the stage is empty\\nValueError: nobody listens\\n.*",
        "girder_worker tells the error last",
    ),
    ("Waits", "log"): (
        "waiting\nstopped\nThe job was canceled\\.\n",
        "waiting\nstopped\n",
        "here the log says how the job ended",
    ),
    ("Second", "args"): (
        r".*JobResult.*, 'c'\]",
        r"\['ab', 'c'\]",
        "here all jobs of a chain are made at once, when there is no value yet",
    ),
    ("Third", "args"): (r".*JobResult.*, 'd'\]", r"\['abc', 'd'\]", "as above"),
    ("Second", "parent"): (r"\[\]", "\\['First'\\]", "girder_worker's first job makes the second"),
    ("Third", "parent"): (r"\[\]", "\\['Second'\\]", "as above"),
}

#: Seconds until all jobs have ended on both sides, where a busy machine runs both.
DEADLINE = 200.0

# The first test starts a second site, and runs all jobs on both.
pytestmark = pytest.mark.timeout(500)


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
        running = waits["status"] == JobStatus.RUNNING
        if running and not self._canceled and "waiting" in self.site.log(waits["_id"]):
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


def described(side: Side) -> Any:
    return side.client.get("ported/described")


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
    while [title for side in both for title in side.unfinished()]:
        if time.monotonic() > deadline:
            left = {type(side.site).__name__: side.unfinished() for side in both}
            logs = [side.site.recent_logs(60) for side in both]
            raise AssertionError("\n".join([f"These have not ended: {left}.", *logs]))
        time.sleep(0.2)
    return both


MODULES = sorted(PACKAGE.glob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_only_lines_that_import_differ(module: Path) -> None:
    ours = module.read_text()
    theirs = rewrite(ours)
    assert without_imports(theirs) == without_imports(ours)
    assert not re.search(r"^ *(from|import) girder_dask", theirs, re.MULTILINE)
    compile(theirs, module.name, "exec")


def test_the_package_for_girder_worker_imports_it_in_each_module_that_imported_ours():
    theirs = {module.name: rewrite(module.read_text()) for module in MODULES}
    assert "from girder_worker.app import app\n" in theirs["tasks.py"]
    assert "from celery import chain\n" in theirs["starts.py"]
    assert (
        "from girder_worker.utils.transforms.girder_io import GirderFileId\n" in theirs["starts.py"]
    )
    assert "girder_dask" not in theirs["plugin.py"] + theirs["starts.py"] + theirs["extension.py"]


def test_every_way_to_start_and_every_task_is_tried():
    from ported_tasks import starts, tasks

    from girder_dask import Task

    assert starts.STARTS.keys() == TITLES.keys()
    source = (PACKAGE / "starts.py").read_text()
    names = [name for name, value in vars(tasks).items() if isinstance(value, Task)]
    assert len(names) >= 10
    assert [name for name in names if f"tasks.{name}." not in source] == []


@pytest.mark.parametrize("name", TITLES)
def test_the_jobs_are_the_same(sides: tuple[Side, Side], name: str) -> None:
    ours, theirs = (side.look(name) for side in sides)
    assert ours.files == theirs.files
    assert ours.metadata == theirs.metadata
    assert ours.jobs.keys() == theirs.jobs.keys() == set(TITLES[name])
    for title in TITLES[name]:
        here, there = ours.jobs[title], theirs.jobs[title]
        if there["progress"] == [None] * 3:
            # Where the task says nothing of its progress, ours tells how much was transferred.
            here["progress"] = there["progress"]
        for key in here:
            if (title, key) in DIFFERENCES:
                patterns = DIFFERENCES[title, key][:2]
                for pattern, value in zip(patterns, (here[key], there[key]), strict=True):
                    assert re.fullmatch(pattern, str(value), re.DOTALL), (title, key, value)
                assert here[key] != there[key], f"{title}, {key}: they are the same by now"
            else:
                assert here[key] == there[key], (title, key)


def test_each_known_difference_was_looked_at():
    titles = {title for titles in TITLES.values() for title in titles}
    assert {title for title, _ in DIFFERENCES} <= titles
    assert all(reason for _, _, reason in DIFFERENCES.values())


def test_the_descriptions_are_the_same(sides: tuple[Side, Side]) -> None:
    ours, theirs = map(described, sides)
    assert ours == theirs
    assert list(ours) == ["ported_tasks.tasks.scale"]


def test_the_outputs_are_there(sides: tuple[Side, Side]) -> None:
    """What both sides agree on above is not that there is nothing."""
    for side in sides:
        assert side.look("to_folder").files["/report.txt/report.txt"] == "the report report.txt\n"
        assert side.look("to_item").files["/pair/added.txt"] == "the report added.txt\n"
        assert side.look("tree").files["/inner/b.txt/b.txt"] == "inner/b.txt"
        assert side.look("both").metadata == {"pair": {"both": True}}
        assert side.look("steps").jobs["Steps"]["progress"] == [3, 3, "step 3"]
        assert side.look("parent").jobs["Child"]["parent"] == ["Parent"]
        assert side.look("a_chain").jobs["Third"]["log"] == "abc + d = abcd\n"


def test_the_artifact_is_there(sides: tuple[Side, Side]) -> None:
    job = sides[0].jobs()["Artifact"]
    (artifact,) = sides[0].client.get(f"job/{job['_id']}/artifact")
    assert artifact["name"] == "artifact.txt"
