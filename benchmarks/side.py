"""A system under measurement: a Girder, and what its jobs run on."""

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

#: Seconds between two looks at the database.
POLL = 0.02
_IDLE = 0.5


class Side:
    """A Girder whose jobs are started, waited for and counted, the same way for each system.

    Parameters
    ----------
    name
        What it is called in the results.
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
        #: The documents of jobs. Read here, so that Girder is not asked.
        self.jobs = self._database["job"]

    @property
    def processes(self) -> dict[str, list[str]]:
        """The names of its processes, by what the results call them together."""
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
        """Start jobs within one request of Girder, in one of the ways of tasks.py."""
        return self.client.post(f"benchmark/start/{way}", json=arguments)

    def requests(self) -> int:
        """Return how many requests Girder has answered, without those of the benchmarks."""
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
        """Return when no job is left that has not ended.

        What the database is asked, every 20 ms, is whether it has one: the answer is the
        first entry of an index over the states that girder_jobs itself makes, so that it
        costs the same however many jobs there are.
        """
        deadline = time.monotonic() + timeout
        while self.jobs.find_one({"status": {"$in": UNFINISHED}}, {"_id": 1}) is not None:
            if time.monotonic() > deadline:
                self._stack.check()
                raise TimeoutError(
                    f"{self.name}: {self.count(UNFINISHED)} jobs have not ended after {timeout:g} s"
                )
            time.sleep(POLL)

    def count(self, states: Sequence[int] = (SUCCESS,)) -> int:
        """Return how many jobs are in one of these states."""
        return int(self.jobs.count_documents({"status": {"$in": list(states)}}))

    def check(self, jobs: int) -> None:
        """Raise AssertionError unless this many jobs have ended, all of them in SUCCESS."""
        states = self.jobs.aggregate([{"$group": {"_id": "$status", "n": {"$sum": 1}}}])
        found = {state["_id"]: state["n"] for state in states}
        # The parent of a map is a job as well.
        assert found in ({SUCCESS: jobs}, {SUCCESS: jobs + 1}), f"{self.name}: {jobs}, {found}"

    def clear(self) -> None:
        """Remove all jobs, so that each round begins with an empty collection."""
        assert self.count(UNFINISHED) == 0
        for name in ("job", "dask_job", "dask_log"):
            self._database[name].delete_many({})
        time.sleep(_IDLE)

    def abandon(self) -> None:
        """Cancel what has not ended, and clear."""
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
        """Make a folder of the administrator, with a name that no other has."""
        me = self.client.get("user/me")["_id"]
        return dict(self.client.createFolder(me, secrets.token_hex(8), parentType="user"))

    def stop_workers(self) -> None:
        """Have nothing that runs jobs."""
        self._stack.stop_parts(self.workers)

    def start_workers(self) -> None:
        """Have again what runs jobs."""
        self._stack.start_parts(self.workers)

    def warm_up(self) -> None:
        """Run some jobs, so that all that is loaded when it is first needed is loaded."""
        self.timed("delay", 20, task="noop")
        self.clear()
