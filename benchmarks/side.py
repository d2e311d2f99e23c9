"""A measured system with a Girder, and the processes that run its jobs."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pymongo

if TYPE_CHECKING:
    from benchmarks.stack import BenchmarkStack

__all__ = ["Side"]

SUCCESS = 3
#: The states of jobs that have not ended, of girder_jobs and of girder_worker.
UNFINISHED = [0, 1, 2, 820, 821, 822, 823, 824]

#: Seconds between two queries of the database.
POLL_S = 0.02
_IDLE_S = 0.5


class Side:
    """A Girder whose jobs are started, awaited and counted in the same way for each system.

    Parameters
    ----------
    name
        The name of the system in the results.
    stack
        The processes.
    client
        A ``GirderClient`` of the administrator.
    mongo
        The URI of Girder's database.
    girder, workers
        The names of the processes of Girder, and of those that run jobs.
    """

    def __init__(
        self,
        name: str,
        stack: BenchmarkStack,
        client: Any,
        mongo: str,
        girder: Sequence[str],
        workers: Sequence[str],
    ) -> None:
        self.name = name
        self.client = client
        self.girder = list(girder)
        self.workers = list(workers)
        self._stack = stack
        self._mongo: pymongo.MongoClient[Any] = pymongo.MongoClient(mongo)
        self._database = self._mongo.get_default_database()
        #: The collection of job documents, read directly so that Girder gets no requests.
        self.jobs = self._database["job"]

    @property
    def processes(self) -> dict[str, list[str]]:
        """The names of its processes, by the name of their group in the results."""
        scheduler = {"the scheduler": ["scheduler"]} if self.name == "girder_dask" else {}
        return {
            "Girder": self.girder,
            "MongoDB": ["mongod"],
            **scheduler,
            "the workers": self.workers,
        }

    def close(self) -> None:
        """Disconnect from the database."""
        self._mongo.close()

    def start(self, way: str, **arguments: Any) -> Any:
        """Start jobs within one request of Girder, with the function ``way`` of ``tasks.py``."""
        return self.client.post(f"benchmark/start/{way}", json=arguments)

    def requests(self) -> int:
        """Return the number of requests that Girder has answered, without the benchmarks' own."""
        return int(self.client.get("benchmark/requests"))

    def timed(self, way: str, jobs: int, **arguments: Any) -> float:
        """Start jobs, and return the seconds from the request until all are in SUCCESS."""
        start = time.perf_counter()
        self.start(way, jobs=jobs, **arguments)
        self.wait(timeout=120 + jobs / 4)
        seconds = time.perf_counter() - start
        self.check(jobs)
        return seconds

    def wait(self, timeout: float) -> None:
        """Wait until all jobs have ended. Raise TimeoutError after ``timeout`` seconds.

        The database is queried every 20 ms for one unfinished job. The query reads the first
        entry of girder_jobs' own index of the states, so its cost does not depend on the number
        of jobs.
        """
        deadline = time.monotonic() + timeout
        while self.jobs.find_one({"status": {"$in": UNFINISHED}}, {"_id": 1}) is not None:
            if time.monotonic() > deadline:
                self._stack.check()
                raise TimeoutError(
                    f"{self.name}: {self.count(UNFINISHED)} jobs have not ended after {timeout:g} s"
                )
            time.sleep(POLL_S)

    def count(self, states: Sequence[int] = (SUCCESS,)) -> int:
        """Return the number of jobs in any of these states."""
        return int(self.jobs.count_documents({"status": {"$in": list(states)}}))

    def check(self, jobs: int) -> None:
        """Raise AssertionError unless ``jobs`` jobs have ended, all in SUCCESS."""
        states = self.jobs.aggregate([{"$group": {"_id": "$status", "n": {"$sum": 1}}}])
        found = {state["_id"]: state["n"] for state in states}
        # The parent of a map is a job as well.
        assert found in ({SUCCESS: jobs}, {SUCCESS: jobs + 1}), f"{self.name}: {jobs}, {found}"

    def clear(self) -> None:
        """Remove all jobs, so that each round begins with an empty collection."""
        assert self.count(UNFINISHED) == 0
        for name in ("job", "dask_job", "dask_log"):
            self._database[name].delete_many({})
        time.sleep(_IDLE_S)

    def abandon(self) -> None:
        """Cancel all unfinished jobs, and remove all jobs."""
        for parent in self.jobs.find({"status": {"$in": UNFINISHED}, "parentId": None}, {"_id": 1}):
            self.client.put(f"job/{parent['_id']}/cancel")
        self.wait(timeout=300)
        self.clear()

    def log(self, job_id: Any) -> str:
        """Return the log of a job, as a client of Girder gets it."""
        if self.name == "girder_dask":
            return str(self.client.get(f"dask/job/{job_id}/log", jsonResp=False).text)
        return "".join(self.client.get(f"job/{job_id}")["log"])

    def make_folder(self) -> dict[str, Any]:
        """Create a folder of the administrator with a unique name."""
        me = self.client.get("user/me")["_id"]
        return dict(self.client.createFolder(me, secrets.token_hex(8), parentType="user"))

    def stop_workers(self) -> None:
        """Stop the processes that run jobs."""
        self._stack.stop_parts(self.workers)

    def start_workers(self) -> None:
        """Restart the processes that run jobs."""
        self._stack.start_parts(self.workers)

    def warm_up(self) -> None:
        """Run some jobs, so that everything that is loaded on first use is loaded."""
        self.timed("delay", 20, task="noop")
        self.clear()
