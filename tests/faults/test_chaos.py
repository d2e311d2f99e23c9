"""Scheduler, workers and Girder are killed at random, and each job still ends as it should.

Among the jobs are tasks of girder_worker: some run again after the loss of their worker
(``acks_late``), the others run at most once, which is Celery's default.

The seed of a run is printed. ``pytest tests/faults/test_chaos.py --chaos-seed=…`` deals the same
blows again, to the same parts and in the same order.
"""

from __future__ import annotations

import itertools
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from my_worker_tasks import tally

from girder_dask import connect
from girder_dask.celery import BROKER_URL
from girder_dask.errors import GirderError
from girder_dask.jobs import FINAL
from girder_dask.transforms import GirderUploadToFolder
from tests.support.ended_jobs import check_log, check_states, check_theirs, runs_in
from tests.support.fault_site import FaultStack, states, until
from tests.support.monkey import Blow, Monkey, blows

LINES = 15
WORKERS = 2
ENV = {
    # A job may lose more workers here than in a year of its life.
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1000",
    "GIRDER_WORKER_BROKER": BROKER_URL,
}


# How long parts are killed, how many jobs run, and whether a machine that is too slow for all of
# the planned blows takes more time for them. If not, each part is still killed once.
@pytest.mark.parametrize(
    ("seconds", "count", "is_whole"),
    [
        pytest.param(25, 60, True, id="short", marks=pytest.mark.timeout(700)),
        pytest.param(
            120, 300, False, id="long", marks=[pytest.mark.timeout(900), pytest.mark.long]
        ),
    ],
)
def test_parts_killed_at_random(
    fault_stack: Callable[..., FaultStack],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    seconds: float,
    count: int,
    is_whole: bool,
) -> None:
    seed = request.config.getoption("--chaos-seed")
    plan = blows(seed, seconds, WORKERS)
    stack = fault_stack(workers=WORKERS, threads=2, env=ENV, own=True)
    monkey = Monkey(stack)
    calls = Calls(stack, tmp_path / "tally", seed)
    try:
        calls.start_at_once(count // 3)
        with calls.started_meanwhile(count) as allow:
            over = time.monotonic() + seconds
            for share, blow in zip(shares(count - count // 3, plan), plan, strict=True):
                is_over = time.monotonic() > over and victims(monkey) == {b.victim for b in plan}
                if is_over and not is_whole:
                    break
                allow(share // 2)
                monkey.tend(blow.pause)
                allow(share - share // 2)  # so that some are on their way
                monkey.deal(blow)
            until(monkey.whole, 120)
        jobs = calls.made()
        until(lambda: monkey.whole() and has_ended(stack, jobs.values()), 60 + 3 * seconds, 0.3)
    finally:
        print(f"seed {seed}", "planned:", *(f"  {b.pause:4.2f} s  {b}" for b in plan), sep="\n")
        print(*monkey.diary, *calls.summary(), sep="\n")

    assert len(calls.accepted) == count
    assert calls.accepted.items() <= jobs.items(), "what was accepted is there"
    documents = dict(zip(jobs, stack.all_jobs(jobs.values()), strict=True))
    found = landed(monkey, documents.values())
    assert found == (plan if is_whole else plan[: len(monkey.hits)])
    assert victims(monkey) == {blow.victim for blow in plan}
    begun = [job["created"].timestamp() for job in documents.values()]
    meanwhile = sum(monkey.hits[0].time < moment < monkey.hits[-1].time for moment in begun)
    assert meanwhile >= len(found), "jobs are started while parts are killed"
    check_jobs(stack, documents, calls)


def shares(count: int, plan: Sequence[Blow]) -> list[int]:
    """Return how many of some jobs are started before each blow."""
    each, more = divmod(count, len(plan))
    return [each + (n < more) for n in range(len(plan))]


@dataclass
class Calls:
    """Calls of one task, some of which are made while there is no Girder.

    They have numbers. A call is accepted if it returned the id of a job. What became of any
    other is not known to the caller, but that there is no more than one job of it.
    """

    stack: FaultStack
    path: Path
    seed: int
    accepted: dict[int, str] = field(default_factory=dict)
    #: girder_worker's tasks by the numbers of their calls.
    theirs: dict[int, str] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.user = self.stack.create_user()
        self.folder = str(self.user.folder["_id"])
        self._numbers = itertools.count()

    @property
    def their_path(self) -> Path:
        """The file in which girder_worker's tasks note their runs."""
        return self.path.with_suffix(".theirs")

    def _call(self, number: int) -> tuple[list[Any], dict[str, Any]]:
        options = {
            "girder_job_title": f"call {number}",
            "girder_result_hooks": [GirderUploadToFolder(self.folder)],
        }
        return [str(self.path), number, [LINES / 10], f"out-{number}.txt"], options

    def start_at_once(self, count: int) -> None:
        """Start jobs in one request."""
        numbers = list(itertools.islice(self._numbers, count))
        self.accepted.update(zip(numbers, self._in_girder(numbers), strict=True))

    @contextmanager
    def started_meanwhile(self, count: int) -> Iterator[Callable[[int], None]]:
        """Start jobs in two ways until so many are accepted: inside Girder, and from outside.

        What is returned lets some of them be started. At the end the others may be, too.
        """
        allowed = threading.Semaphore(0)
        over = threading.Event()
        left = iter(range(count - len(self.accepted)))

        def start_all(way: int, start: Callable[[int], str]) -> None:
            chance = random.Random(self.seed + way)  # noqa: S311 - to be done again
            for _ in left:
                allowed.acquire()
                while not over.is_set() and not self._start(start):
                    time.sleep(chance.uniform(0.1, 0.4))

        def allow(some: int) -> None:
            if some:
                allowed.release(some)

        with (
            connect(self.stack.girder, api_key=self.stack.api_key),
            ThreadPoolExecutor(2) as threads,
        ):
            ways = [lambda n: self._in_girder([n])[0], self._outside]
            started = [threads.submit(start_all, n, way) for n, way in enumerate(ways)]
            try:
                yield allow
                allow(count)
                for thread in started:
                    thread.result(120)
            finally:
                over.set()
                allow(count)

    def _start(self, start: Callable[[int], str]) -> bool:
        number = next(self._numbers)
        try:
            self.accepted[number] = start(number)
        except (GirderError, requests.RequestException) as e:
            self.refused[number] = f"{type(e).__name__}: {e}"
            return False
        return True

    def _in_girder(self, numbers: list[int]) -> list[str]:
        def start(calls: list[tuple[str, list[Any], dict[str, Any]]]) -> list[str]:
            import my_worker_tasks
            import their_tasks.tasks

            return [
                str(my_worker_tasks.tally.apply_async(args, **options).id)
                if name == "tally"
                else str(getattr(their_tasks.tasks, name).apply_async(args, **options).job["_id"])
                for name, args, options in calls
            ]

        calls = [self._call_in_girder(number) for number in numbers]
        return list(self.stack.call(start, calls, user=self.user))

    def _call_in_girder(self, number: int) -> tuple[str, list[Any], dict[str, Any]]:
        """Return the call of a task: every second one is girder_worker's."""
        if number % 2:
            return ("tally", *self._call(number))
        name = self.theirs[number] = "tally_late" if number % 4 else "tally_once"
        args = [str(self.their_path), number, LINES / 10]
        return name, args, {"girder_job_title": f"call {number}"}

    def _outside(self, number: int) -> str:
        args, options = self._call(number)
        return str(tally.apply_async(args, **options).id)

    def made(self) -> dict[int, str]:
        """Return the ids of all jobs that were made by the numbers of the calls."""

        def load() -> list[tuple[str, str]]:
            from girder_jobs.models.job import Job

            jobs = Job().collection.find({"dask.task": {"$exists": True}}, {"title": True})
            return [(job["title"], str(job["_id"])) for job in jobs]

        found = [(int(title.split()[1]), job_id) for title, job_id in self.stack.call(load)]
        twice = [number for number, times in Counter(n for n, _ in found).items() if times > 1]
        assert not twice, f"there are two jobs of the calls {twice}"
        assert {number for number, _ in found} <= self.accepted.keys() | self.refused.keys()
        return dict(sorted(found))

    def summary(self) -> list[str]:
        """Return what became of the calls."""
        said = Counter(re.sub(r"\(.*", "…", text) for text in self.refused.values())
        return [
            f"{len(self.accepted)} calls were accepted, {len(self.refused)} were not:",
            *(f"  {times} of {text}" for text, times in said.most_common()),
        ]


def victims(monkey: Monkey) -> set[str]:
    """Return what was killed."""
    return {hit.blow.victim for hit in monkey.hits}


def has_ended(stack: FaultStack, ids: Iterable[str]) -> bool:
    return all(job["status"] in FINAL for job in stack.all_jobs(ids))


def landed(monkey: Monkey, jobs: Iterable[dict[str, Any]]) -> list[Blow]:
    """Return the blows that have ended a process of which there is another now.

    Those count that were dealt while a job had been recorded and had not ended.
    """
    times = [
        (job["created"].timestamp(), job["timestamps"][-1]["time"].timestamp()) for job in jobs
    ]
    found = []
    for hit in monkey.hits:
        now = until(lambda blow=hit.blow: monkey.process(blow))
        if now.pid != hit.pid and any(begun <= hit.time < ended for begun, ended in times):
            found.append(hit.blow)
    return found


def check_jobs(stack: FaultStack, documents: dict[int, dict[str, Any]], calls: Calls) -> None:
    """Check that each job has ended once, with its whole log and one set of outputs."""
    wrong = {}
    outputs = stack.outputs(calls.folder)
    runs, their_runs = runs_in(calls.path), runs_in(calls.their_path)
    for number, job in documents.items():
        job_id, attempt = str(job["_id"]), job["dask"]["attempt"]
        log = stack.log(job_id)
        if number in calls.theirs:
            found = check_theirs(calls.theirs[number], job, log, their_runs.get(number, []), LINES)
        else:
            found = [*check_states(job), *check_log(log, attempt, LINES)]
            made = outputs.pop(f"out-{number}.txt", [])
            if made != [f"made by attempt {attempt}\n"]:
                found.append(f"its outputs are {made}")
            if len(set(runs.get(number, []))) < len(runs.get(number, [""])):
                found.append("an attempt ran twice")
        if found:
            wrong[job_id] = found
            print(f"job {job_id} ({number}): {found}\n{states(job)}\n{log}")
    assert not wrong
    assert not outputs, "nothing else was uploaded"
    assert runs.keys() == documents.keys() - calls.theirs.keys(), "no run without a job"
    assert their_runs.keys() <= documents.keys() & calls.theirs.keys()
