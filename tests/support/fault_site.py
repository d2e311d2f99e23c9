"""A stack whose parts are killed, stopped and disconnected."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import psutil
from distributed import Client, Security

from girder_dask.jobs import FINAL, JobStatus, can_follow
from girder_dask.standalone import ports
from girder_dask.testing.stack import TestStack

__all__ = ["FaultStack", "check_history", "states", "until"]


def until(condition: Callable[[], Any], seconds: float = 60, pause: float = 0.02) -> Any:
    """Wait until a condition holds, and return what it returned.

    It is looked at less and less often, since most conditions ask Girder.
    """
    deadline, longest = time.monotonic() + seconds, max(pause, 0.2)
    while not (found := condition()):
        assert time.monotonic() < deadline, f"this did not come true within {seconds} s"
        time.sleep(pause)
        pause = min(pause * 1.2, longest)
    return found


def states(job: dict[str, Any]) -> list[str]:
    """Return the names of the states that a job went through."""
    return [JobStatus(stamp["status"]).name for stamp in job["timestamps"]]


def check_history(job: dict[str, Any], expected: list[str]) -> None:
    """Check the states that an ended job went through, and their times."""
    stamps = job["timestamps"]
    assert states(job) == expected
    assert all(can_follow(a["status"], b["status"]) for a, b in pairwise(stamps))
    assert all(a["time"] <= b["time"] for a, b in pairwise(stamps))
    assert [JobStatus(stamp["status"]) in FINAL for stamp in stamps].count(True) == 1
    assert job["status"] == stamps[-1]["status"]


def _family(pid: int | None) -> list[psutil.Process]:
    return list(psutil.Process(pid).children(recursive=True))


def _is_spawned(process: psutil.Process) -> bool:
    """Return True if a nanny has started the process as its worker."""
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


class FaultStack(TestStack):
    """A separate stack for a test that breaks it."""

    __test__ = False

    def wait(
        self, job_id: str, timeout: float = 90, status: JobStatus | int | None = None
    ) -> dict[str, Any]:
        """Wait for the end of a job, also while parts start on a slow machine."""
        __tracebackhide__ = True
        return super().wait(job_id, timeout, status)

    def kill(self, name: str) -> None:
        """Kill a part with all of its processes at the same time."""
        self.part(name).kill()

    def remove_worker(self, name: str) -> None:
        """Kill a worker that has no job, and return when the scheduler gives it none."""
        self.kill(name)
        until(lambda: name not in self.registered_workers())

    def registered_workers(self) -> list[str]:
        """Return the names of the workers that the scheduler knows, sorted."""

        def names(dask_scheduler: Any) -> list[str]:  # in here, so that it travels by its code
            return [str(worker.name) for worker in dask_scheduler.workers.values()]

        # Dask cannot write its own page about them while a heartbeat has figures of tasks.
        with self._dask_client(set_as_default=False) as client:
            return sorted(client.run_on_scheduler(names))

    def add_scheduler(self) -> str:
        """Start a second scheduler with a worker of its own, and return its address.

        The parts are ``second-scheduler`` and ``second-worker-0``.
        """
        plan = copy.copy(self._planned)
        plan.ports = dict(plan.ports)
        for name in ("scheduler", "dashboard"):
            plan.ports[name] = ports.choose(None, taken=plan.ports.values())
        plan.scheduler = f"tcp://127.0.0.1:{plan.ports['scheduler']}"
        plan.dashboard = f"http://127.0.0.1:{plan.ports['dashboard']}"
        for part in (plan.scheduler_part(), *plan.worker_parts(1, 1)):
            part.name = f"second-{part.name}"
            part.log = part.log.with_name(f"second-{part.log.name}")
            self._launch([part])
        return plan.scheduler

    def restart(self, *names: str) -> None:
        """Restart killed parts, and return when they work.

        Each part appends to its log, so a test reads the output of all its processes there.
        """
        parts = [self.part(name) for name in names]
        for part in parts:
            part.start(self._reaper, again=True)
        until(lambda: all(part.is_ready() for part in parts), 60)
        self._ended -= set(names)

    def recent_logs(self, lines: int = 15) -> str:
        """Return the last log lines of each part, without the tracebacks that Dask repeats.

        Dask repeats the traceback of each task that raises. Any other traceback is of a crash.
        """
        said = super().recent_logs(lines).splitlines()
        return "\n".join(line for line in said if not line.startswith("Traceback: '"))

    def what_dask_does(self) -> str:
        """Return the keys that the workers have, and the call stacks of the running ones."""
        with self._dask_client(timeout=5) as client:
            return f"placed: {dict(client.processing())}\nat work: {client.call_stack()}"

    def _dask_client(self, **options: Any) -> Client:
        files, security = self.tls_files, None
        if files is not None:
            security = Security(
                tls_ca_file=files["ca"],
                tls_client_cert=files["cert"],
                tls_client_key=files["key"],
                require_encryption=True,
            )
        return Client(self.scheduler, security=security, **options)

    def restart_with(self, name: str, *options: str) -> None:
        """Restart a part with more options on its command line."""
        self.kill(name)
        self.part(name).command += options
        self.restart(name)

    def worker_process(self, name: str) -> psutil.Process:
        """Return the process in which a worker runs its jobs: the child of its nanny."""
        pid = self.part(name).pid
        return until(lambda: next(filter(_is_spawned, psutil.Process(pid).children()), None))

    def has_nanny(self, name: str, pid: int) -> bool:
        """Return True if the process that runs a worker's jobs is the child of a nanny.

        Otherwise it is the process that was started as the worker.
        """
        first = self.part(name).pid
        if pid == first:
            assert not any(map(_is_spawned, _family(first)))
            return False
        assert psutil.Process(pid).ppid() == first
        assert pid == self.worker_process(name).pid
        return True

    def home_of(self, pid: int) -> str:
        """Return the name of the worker to which a process belongs."""
        workers = [part for part in self.parts if part.is_worker and part.running]
        (name,) = [
            part.name
            for part in workers
            if part.pid == pid or pid in {child.pid for child in _family(part.pid)}
        ]
        return name

    def processes(self) -> dict[str, psutil.Process]:
        """Return the processes of Girder, of the scheduler, and of each worker."""
        found = {n: psutil.Process(self.part(n).pid) for n in ("girder", "scheduler")}
        workers = [part.name for part in self.parts if part.is_worker]
        return {**found, **{name: self.worker_process(name) for name in workers}}

    def count_requests(self, ending: str) -> Callable[[], int]:
        """Count Girder's requests for paths with an ending, and return the counter."""

        def begin(ending: str) -> None:
            import cherrypy

            def count() -> None:
                if cherrypy.request.path_info.endswith(ending):
                    cherrypy.counted_requests.append(ending)

            cherrypy.counted_requests = []
            cherrypy.tools.counted = cherrypy.Tool("before_handler", count)
            cherrypy.config["tools.counted.on"] = True

        def counted() -> int:
            import cherrypy

            return len(cherrypy.counted_requests)

        self.call(begin, ending)
        return lambda: int(self.call(counted))

    def start_task(self, name: str, *args: Any, user: Any = None, **options: Any) -> str:
        """Start a task of my_worker_tasks inside Girder, and return the id of its job."""
        return self.start_tasks(name, [args], user=user, **options)[0]

    def start_tasks(
        self, name: str, calls: Iterable[tuple[Any, ...]], user: Any = None, **options: Any
    ) -> list[str]:
        """Start a task of my_worker_tasks once for each tuple of arguments."""
        calls = list(calls)

        def start() -> list[str]:
            import my_worker_tasks

            task = getattr(my_worker_tasks, name)
            return [str(task.apply_async(args, **options).id) for args in calls]

        return list(self.call(start, user=user))

    def all_jobs(self, ids: Iterable[str]) -> list[dict[str, Any]]:
        """Return the documents of many jobs, without their logs."""
        wanted = list(ids)

        def load() -> list[dict[str, Any]]:
            from bson import ObjectId
            from girder_jobs.models.job import Job

            query = {"_id": {"$in": [ObjectId(i) for i in wanted]}}
            fields = {"log": False, "kwargs": False}
            found = {str(job["_id"]): job for job in Job().collection.find(query, fields)}
            return [found[i] for i in wanted]

        return list(self.call(load))

    def wait_all(self, ids: Iterable[str], timeout: float = 120) -> list[dict[str, Any]]:
        """Wait until many jobs have ended, and return their documents."""
        wanted = list(ids)

        def ended() -> list[dict[str, Any]] | None:
            jobs = self.all_jobs(wanted)
            return jobs if all(job["status"] in FINAL for job in jobs) else None

        return list(until(ended, timeout, 0.3))

    def numbered(self, job_id: str, tag: str = "line") -> list[int]:
        """Return the numbers of the lines ``line 0``, ``line 1``, … in the log of a job."""
        return [int(n) for n in re.findall(rf"^{tag} (\d+)$", self.log(job_id), re.MULTILINE)]

    def outputs(self, folder: str) -> dict[str, list[str]]:
        """Return the contents of all files of a folder by the names of the files."""
        found: dict[str, list[str]] = {}
        for item in self.admin.listItem(folder):
            files = list(self.admin.listFile(item["_id"]))
            if not files:
                found.setdefault(item["name"], []).append("no file")
            for file in files:
                content = b"".join(self.admin.downloadFileAsIterator(file["_id"])).decode()
                found.setdefault(file["name"], []).append(content)
        return found
