"""Outages of Girder, its services and the scheduler, and jobs that run meanwhile."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from girder_dask.jobs import JobStatus
from girder_dask.standalone.stack_part import Part
from girder_dask.transforms import GirderFileId, GirderUploadToFolder
from tests.support.fault_site import FaultStack, check_history, states, until

__all__ = ["JournaledStack", "Leaders", "Outage", "Witnesses", "killed", "misbehaving", "stopped"]

S = JobStatus
Call = tuple[dict[str, Any], dict[str, Any]]

#: Seconds between an action of a task and its report, on a busy machine.
LAG = 5.0


class JournaledStack(FaultStack):
    """A stack whose database answers after it has journaled a write, so that it loses nothing.

    During an outage of the database, Girder reports it after a few seconds.
    """

    __test__ = False

    def _launch(self, parts: Sequence[Part]) -> None:
        for part in parts:
            if part.name == "girder":
                part.env["GIRDER_MONGO_URI"] += "?journal=true&serverSelectionTimeoutMS=3000"
        super()._launch(parts)


# -- how parts go away, and come back ----------------------------------------------------------


@contextlib.contextmanager
def killed(stack: FaultStack, name: str) -> Iterator[None]:
    """Kill a part, and restart it at the end of the block."""
    stack.kill(name)
    try:
        yield
    finally:
        stack.restart(name)


@contextlib.contextmanager
def stopped(stack: FaultStack, name: str) -> Iterator[None]:
    """Suspend a part: it accepts connections and does not answer."""
    pid = stack.part(name).pid or 0
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def misbehaving(stack: FaultStack, pause: float | None) -> Iterator[None]:
    """Have Girder answer 500 to all requests except this test's, or delay each by ``pause``.

    At the end, check that the scheduler has made a request and was treated like that.
    """

    def begin(pause: float | None) -> None:
        import time

        import cherrypy

        def misbehave() -> None:
            path = cherrypy.request.path_info
            if path.endswith("/dask/testing/call"):
                return
            if pause is None:
                cherrypy.misbehaved.append(path)
                raise cherrypy.HTTPError(500, "as it was told to")
            time.sleep(pause)
            cherrypy.misbehaved.append(path)

        cherrypy.misbehaved = []
        cherrypy.tools.misbehave = cherrypy.Tool("before_handler", misbehave)
        cherrypy.config["tools.misbehave.on"] = True

    def end() -> list[str]:
        import cherrypy

        cherrypy.config["tools.misbehave.on"] = False
        return list(cherrypy.misbehaved)

    stack.call(begin, pause)
    paths: list[str] = []
    try:
        yield
    finally:
        paths += stack.call(end)
    assert any(path.endswith("/dask/job/updates") for path in paths), paths


@dataclass
class Outage:
    """A temporary outage.

    ``complaint`` is the scheduler's log message about it. If it is None, the check is that the
    scheduler logs no complaint about Girder. ``blocks`` tells whether Girder does nothing
    meanwhile; None if it may do something. The times are seconds since the epoch: when the outage
    began, when its end began, and when it was over.
    """

    happens: Callable[[FaultStack], AbstractContextManager[None]]
    complaint: str | None
    blocks: bool | None = True
    began: float = field(default=0.0, init=False)
    ending: float = field(default=0.0, init=False)
    over: float = field(default=0.0, init=False)

    @contextlib.contextmanager
    def of(self, stack: FaultStack) -> Iterator[None]:
        """Cause the outage on a stack, and check that it took effect."""
        log = stack.part("scheduler").log
        known = log.stat().st_size
        self.began = time.time()
        with self.happens(stack):
            yield
            self.ending = time.time()
        self.over = time.time()
        said = log.read_bytes()[known:].decode()
        if self.complaint is None:
            assert not re.search(r"does not answer| answered 5\d\d", said), said
        else:
            assert self.complaint in said


# -- jobs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Diary:
    """The notes of a witness. ``lines`` is None until it has ended."""

    began: float
    ended: float | None
    lines: int | None


class Witnesses:
    """Jobs of each kind that run during an outage.

    Some run when it begins, and occupy as many threads. The others begin during it: they print,
    end, raise, wait for their input, or wait to upload their output.

    Parameters
    ----------
    stack
        The stack. Nothing else runs there.
    directory
        The directory of the jobs' diaries.
    """

    def __init__(self, stack: FaultStack, directory: Path) -> None:
        self._stack = stack
        self._diaries = directory / "diaries"
        self._diaries.mkdir()
        self._gate, self._back = directory / "gate", directory / "back"
        self.user = stack.create_user()
        self.folder = str(self.user.folder["_id"])
        about = stack.upload(b"what it is about", "about.txt", client=self.user.client)
        slots = stack.workers * stack.threads
        assert slots >= 6, "two wait for their input, two for their upload, one goes on"

        self.at_work = self._start([self._call(until=self._gate)] * (slots - 1))
        self.throughout = self._start([self._call(until=self._back)])
        self._wait_for(self.at_work + self.throughout, S.RUNNING)
        self.ends = self._start([self._call(), self._call(), self._call(isolation="process")])
        self.raises = self._start([self._call(ends="raises")])
        self.fetches = self._start([self._call(about=GirderFileId(about["_id"]))] * 2)
        hooks = [GirderUploadToFolder(self.folder)]
        outputs = [self._call(ends=f"out-{n}", girder_result_hooks=hooks) for n in range(2)]
        self.uploads = self._start(outputs)
        self._wait_for(self._waiting, S.QUEUED)

    @property
    def _waiting(self) -> list[str]:
        return self.ends + self.raises + self.fetches + self.uploads

    @property
    def all(self) -> list[str]:
        """The ids of all jobs."""
        return self.at_work + self.throughout + self._waiting

    def _call(self, **given: Any) -> Call:
        names = ("until", "ends", "about")
        kwargs = {name: given.pop(name) for name in names if name in given}
        if "until" in kwargs:
            kwargs["until"] = str(kwargs["until"])
        return {"diary": str(self._diaries), **kwargs}, given

    def _start(self, calls: Sequence[Call]) -> list[str]:
        def start(calls: Sequence[Call]) -> list[str]:
            from my_worker_tasks import witness

            return [str(witness.apply_async((), kw, **options).id) for kw, options in calls]

        return list(self._stack.call(start, calls, user=self.user))

    def start_one(self) -> str:
        """Start one more job, which ends at once, and return its id."""
        (job_id,) = self._start([self._call()])
        self.ends.append(job_id)
        return job_id

    def _wait_for(self, ids: Sequence[str], status: JobStatus) -> None:
        def is_so() -> bool:
            # A job is marked with the scheduler's name before it is sent. The scheduler must then
            # report that it has the job.
            jobs = self._stack.all_jobs(ids)
            here = [j for j in jobs if j["dask"]["scheduler"] and "claimed" not in j["dask"]]
            return len(here) == len(jobs) and all(job["status"] == status for job in jobs)

        until(is_so)

    def diary(self, job_id: str) -> _Diary | None:
        """Return the diary of a job, None if its function has not begun."""
        path = self._diaries / job_id
        words = path.read_text().split() if path.exists() else []
        if not words:
            return None
        assert words[0] == "began"
        assert words.count("began") == 1, "it was called once"
        if words[2:3] != ["ended"] or len(words) < 5:
            return _Diary(float(words[1]), None, None)
        return _Diary(float(words[1]), float(words[3]), int(words[4]))

    # -- while something is away -----------------------------------------------------------------

    def go_on(self, seconds: float) -> None:
        """Let the running jobs end, and wait until each job has advanced as far as it can."""
        over = time.monotonic() + seconds
        self._gate.touch()
        ended = self.at_work + self.ends + self.raises + self.uploads
        try:
            until(lambda: all(map(self._has_ended, ended)), 60)
        except AssertionError:
            print("not ended:", [job_id for job_id in ended if not self._has_ended(job_id)])
            print(self._stack.what_dask_does())
            raise
        until(lambda: all(map(self._has_begun, self.fetches)))
        # The diary notes the end before the job ends.
        last = max(diary.ended or 0 for diary in map(self.diary, ended) if diary)
        until(lambda: time.time() > last + LAG, LAG + 1)
        until(lambda: time.monotonic() > over, seconds + 1)

    def _has_ended(self, job_id: str) -> bool:
        diary = self.diary(job_id)
        return diary is not None and diary.ended is not None

    def _has_begun(self, job_id: str) -> bool:
        """Return True if a run of a job has, or had, its directory."""
        directories = (self._stack.directory / "workers").rglob(f"job-{job_id}-*")
        return any(directories) or self._has_ended(job_id)

    def all_end(self) -> None:
        """Wait until all jobs have ended except the one that runs throughout."""
        self._stack.wait_all(self.at_work + self._waiting, 60)

    # -- afterwards ------------------------------------------------------------------------------

    def check(self, outage: Outage) -> None:
        """Wait until all jobs have ended, and check all that Girder has recorded of them."""
        self._back.touch()
        jobs = dict(zip(self.all, self._stack.wait_all(self.all, 90), strict=True))
        for job_id, job in jobs.items():
            self._check_job(job_id, job)
        during = (outage.began, outage.over)
        afterwards = (outage.ending, time.time())
        whenever = (outage.began, time.time())
        blocked = {True: afterwards, False: during, None: whenever}[outage.blocks]
        for ids, expected in (
            (self.at_work, [("RUNNING", (0.0, outage.began)), ("SUCCESS", during)]),
            (self.throughout, [("RUNNING", (0.0, outage.began)), ("SUCCESS", afterwards)]),
            (self.ends, [("RUNNING", during), ("SUCCESS", during)]),
            (self.raises, [("RUNNING", during), ("ERROR", during)]),
            (
                self.fetches,
                [("FETCHING_INPUT", during), ("RUNNING", blocked), ("SUCCESS", blocked)],
            ),
            (
                self.uploads,
                [("RUNNING", during), ("PUSHING_OUTPUT", during), ("SUCCESS", blocked)],
            ),
        ):
            for job_id in ids:
                _check_times(jobs[job_id], expected)
        outputs = {f"out-{n}": [f"out-{n} of attempt 1\n"] for n in range(len(self.uploads))}
        found = self._stack.outputs(self.folder)
        assert found.pop("about.txt")
        assert found == outputs

    def _check_job(self, job_id: str, job: dict[str, Any]) -> None:
        """Check the output of a job, and that its times match its diary."""
        diary = self.diary(job_id)
        assert diary is not None
        assert diary.ended is not None
        said = self._stack.numbered(job_id)
        assert said == list(range(diary.lines or 0)), self._stack.log(job_id)
        last = f"line {len(said) - 1}"
        assert job["progress"] == {"total": 20.0, "current": len(said), "message": last}
        assert job["dask"]["attempt"] == 1
        began = _times(job)["RUNNING"]
        ended = job["timestamps"][states(job).index("RUNNING") + 1]["time"].timestamp()
        assert -LAG < began - diary.began < 0.001
        assert -0.001 < ended - diary.ended < LAG


class Leaders:
    """Two tasks that each start a job and wait for its result: one before, one during an outage.

    Parameters
    ----------
    stack
        The stack. Nothing else runs there.
    directory
        The directory of the files that show the progress of the tasks.
    """

    def __init__(self, stack: FaultStack, directory: Path) -> None:
        self._stack, self._signs = stack, directory
        self.user = stack.create_user()
        self.ids = stack.start_tasks("leads", [(str(directory), n) for n in (1, 2)], self.user)
        (directory / "start-1").touch()
        until(lambda: [p for p in directory.iterdir() if p.name.startswith("began-1")])

    def go_on(self, seconds: float) -> None:
        """Have the second task start its job, and wait."""
        time.sleep(LAG)
        (self._signs / "start-2").touch()
        time.sleep(seconds)

    def check(self) -> None:
        """Wait until both tasks have ended, and check that each has started one job."""
        (self._signs / "end").touch()
        for job in self._stack.wait_all(self.ids, 90):
            assert job["status"] == S.SUCCESS, self._stack.log(str(job["_id"]))
            check_history(job, ["QUEUED", "RUNNING", "SUCCESS"])
        values = [line for job_id in self.ids for line in self._stack.log(job_id).splitlines()]
        assert [value for value in values if value.startswith("had")] == ["had 10", "had 20"]
        began = [path.name for path in self._signs.iterdir() if path.name.startswith("began-")]
        assert len(began) == 2, "each of the others ran once"
        assert len(self.user.client.get("job", {"limit": 0})) == 4


def _times(job: dict[str, Any]) -> dict[str, float]:
    return {S(stamp["status"]).name: stamp["time"].timestamp() for stamp in job["timestamps"]}


def _check_times(job: dict[str, Any], expected: Sequence[tuple[str, tuple[float, float]]]) -> None:
    check_history(job, ["QUEUED", *(name for name, _ in expected)])
    times = _times(job)
    for name, (first, last) in expected:
        # The database keeps whole milliseconds.
        assert first - 0.001 <= times[name] <= last, (name, times, first, last)
