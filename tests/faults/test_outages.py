"""Girder, its database or its broker is away while jobs begin, go on and end."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import girder_client
import pytest
import requests

from girder_dask.jobs import JobStatus
from tests.support.fault_site import FaultStack, check_history, until
from tests.support.outage_site import (
    JournaledStack,
    Leaders,
    Outage,
    Witnesses,
    killed,
    misbehaving,
    stopped,
)

S = JobStatus

NO_ANSWER = "Girder does not answer at "
OUTAGES = {
    "girder killed": Outage(partial(killed, name="girder"), NO_ANSWER),
    "girder fails": Outage(partial(misbehaving, pause=None), " answered 500 to "),
    "girder stopped": Outage(partial(stopped, name="girder"), NO_ANSWER),
    # In less than the time that the scheduler gives it, so nothing fails and all takes longer;
    # and in more, so that it does what was asked of it after it was asked again.
    "girder is slow": Outage(partial(misbehaving, pause=1.0), None, blocks=None),
    "girder is too slow": Outage(partial(misbehaving, pause=6.0), NO_ANSWER, blocks=None),
    "mongo killed": Outage(partial(killed, name="mongod"), " answered 503 to "),
}
LONG = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def journaled_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JournaledStack]:
    env = {
        "DASK_GIRDER__SCHEDULER__PULL_INTERVAL": "1s",
        "DASK_GIRDER__SCHEDULER__RETRY_DELAY_MAX": "1s",
        # Less than a short outage lasts, so that some requests are made again.
        "DASK_GIRDER__SCHEDULER__REQUEST_TIMEOUT": "5s",
    }
    directory = tmp_path_factory.mktemp("outages") / "stack"
    with JournaledStack(directory, workers=2, threads=3, env=env) as stack:
        yield stack


@pytest.fixture
def stack(
    journaled_stack: JournaledStack, request: pytest.FixtureRequest
) -> Iterator[JournaledStack]:
    """One for all tests here, which is whole again after each."""
    yield journaled_stack
    if getattr(request.node, "failed", False):
        print(journaled_stack.recent_logs(40))


@pytest.mark.parametrize(
    ("outage", "seconds"),
    [
        *(pytest.param(outage, 10, id=f"{name}, short") for name, outage in OUTAGES.items()),
        *(pytest.param(OUTAGES[n], 300, id=f"{n}, long", marks=LONG) for n in OUTAGES),
    ],
)
def test_jobs_go_on(stack: FaultStack, tmp_path: Path, outage: Outage, seconds: float) -> None:
    jobs = Witnesses(stack, tmp_path)
    with outage.of(stack):
        jobs.go_on(seconds)
    jobs.check(outage)


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("girder killed", 40),
        pytest.param("girder fails", 40, marks=[pytest.mark.long, pytest.mark.timeout(600)]),
        # Longer than a worker waits for an answer, so that a request that was taken is made again.
        pytest.param("girder stopped", 70, marks=[pytest.mark.long, pytest.mark.timeout(600)]),
        *(pytest.param(n, 300, marks=LONG) for n in ("girder killed", "girder fails")),
        pytest.param("mongo killed", 300, marks=LONG),
    ],
)
def test_tasks_that_start_others(
    stack: FaultStack, tmp_path: Path, name: str, seconds: float
) -> None:
    """One waits for what it has started all the while, the other starts something meanwhile."""
    leaders, outage = Leaders(stack, tmp_path), OUTAGES[name]
    with outage.of(stack):
        leaders.go_on(seconds)
    leaders.check()


@pytest.mark.parametrize("how", [killed, stopped])
def test_redis_is_away(stack: FaultStack, tmp_path: Path, how: Any) -> None:
    """Nobody is told at once of what happens; nothing else changes."""
    outage = Outage(partial(how, name="redis"), None, blocks=False)
    jobs = Witnesses(stack, tmp_path)
    with outage.of(stack):
        began = time.monotonic()
        jobs.start_one()
        assert time.monotonic() - began < 4, "it does not wait for Redis, which would take 5 s"
        jobs.go_on(0)
        jobs.all_end()
    jobs.check(outage)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_scheduler_holds_as_much_as_it_may(
    fault_stack: Callable[..., FaultStack],
) -> None:
    """Jobs wait with what they say, for longer than their ends are waited for. None runs twice."""
    stack = fault_stack(workers=2, threads=2, env={"DASK_GIRDER__SCHEDULER__BUFFER": "1 MiB"})
    stack.wait(stack.start_task("steady", 1))
    lines = 20_000  # a fifth of the buffer
    ids = stack.start_tasks("steady", [(lines, 0.1, number) for number in range(40)])
    with killed(stack, "girder"):
        time.sleep(45)
    for number, job in enumerate(stack.wait_all(ids)):
        check_history(job, ["QUEUED", "RUNNING", "SUCCESS"])
        assert job["dask"]["attempt"] == 1
        assert stack.numbered(str(job["_id"])) == list(range(lines))
        assert stack.call(result, str(job["_id"])) == number


def result(job_id: str) -> Any:
    """Return the value of a job. Run it in Girder."""
    from girder_dask import JobResult

    return JobResult(job_id).get()


# -- jobs that are started ---------------------------------------------------------------------


def by_route(stack: FaultStack, user: Any, diary: str) -> None:
    """Start a witness with ``delay()``, in the route of a plugin."""
    given = json.dumps({"diary": diary, "lines": 3})
    user.client.post("my_plugin/task/witness", {"kwargs": given})


def by_model(stack: FaultStack, user: Any, diary: str) -> None:
    """Start one as Girder's own model does."""

    def start() -> None:
        from girder.api.rest import getCurrentUser
        from girder_jobs.models.job import Job

        task = {"task": "my_worker_tasks:witness"}
        kwargs = {"diary": diary, "lines": 3}
        more = {"handler": "dask_handler", "kwargs": kwargs, "otherFields": {"dask": task}}
        Job().scheduleJob(Job().createJob("witness", "", user=getCurrentUser(), **more))

    stack.call(start, user=user)


def by_map(stack: FaultStack, user: Any, diary: str) -> None:
    """Start three, under a job that shows how many of them are done."""

    def start() -> None:
        from my_worker_tasks import witness

        witness.map([diary] * 3, lines=3)

    stack.call(start, user=user)


def die_at(event: str) -> None:
    """Have this Girder killed by what happens next. Run it in Girder."""
    from girder import events

    def die(_event: object) -> None:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)

    events.bind(event, "test", die)


def restart_killed(stack: FaultStack, holds: Callable[[], bool] = lambda: True) -> None:
    """Wait until Girder was killed, look that something holds then, and start it again."""
    part = stack.part("girder")
    until(lambda: not part.running)
    assert part.exit_code == -signal.SIGKILL
    assert holds()
    stack.kill("girder")
    stack.restart("girder")


def let_time_pass(group: Any) -> None:
    """Have the jobs of a map have been recorded for three minutes. Run it in Girder."""
    from datetime import datetime, timedelta, timezone

    from girder_jobs.models.job import Job

    moment = datetime.now(timezone.utc) - timedelta(minutes=3)
    Job().collection.update_one({"_id": group}, {"$set": {"dask.group.recording": moment}})


@pytest.mark.parametrize(
    ("start", "event", "count"),
    [
        (by_route, "model.job.save.after", 1),
        (by_model, "jobs.job.update.after", 1),
        (by_map, "model.job.save.after", 3),
    ],
)
def test_girder_killed_between_recording_a_job_and_handing_it_over(
    stack: FaultStack, tmp_path: Path, start: Callable[..., None], event: str, count: int
) -> None:
    """The scheduler asks for it."""
    user = stack.create_user()
    stack.call(die_at, event)
    with pytest.raises(requests.ConnectionError):
        start(stack, user, str(tmp_path))
    restart_killed(stack, lambda: not list(tmp_path.iterdir()))

    ids = [job["_id"] for job in user.client.get("job", {"limit": 0})]
    for job in stack.all_jobs(ids):
        if "group" in job["dask"]:
            stack.call(let_time_pass, job["_id"])
    jobs = stack.wait_all(ids)
    for job in jobs:
        check_history(job, ["QUEUED", "RUNNING", "SUCCESS"])
    said = [stack.numbered(job["_id"]) for job in jobs if "group" not in job["dask"]]
    assert said == [[0, 1, 2]] * count
    assert len(list(tmp_path.iterdir())) == count


def start_until_it_fails(path: str) -> dict[str, tuple[float, str, bool]]:
    """Start jobs in some threads until an error, and make a file when each has one.

    Returns for each title the seconds that it took, the id or the message, and whether a job was
    created. Run it in Girder.
    """
    import itertools
    import time
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    from my_worker_tasks import noop

    from girder_dask.errors import GirderError

    found: dict[str, tuple[float, str, bool]] = {}

    def start(name: str) -> None:
        for n in itertools.count():
            title, began = f"{name}-{n}", time.monotonic()
            try:
                said, is_made = str(noop.delay(girder_job_title=title).id), True
            except GirderError as e:
                said, is_made = str(e), False
            found[title] = (time.monotonic() - began, said, is_made)
            if not is_made:
                return
            Path(path, name).touch()

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(start, ("a", "b", "c")))
    return found


def test_jobs_started_while_mongo_is_away(stack: FaultStack, tmp_path: Path) -> None:
    """There is an error that says so, soon, and no half job."""
    user = stack.create_user()
    with ThreadPoolExecutor(1) as thread:
        started = thread.submit(stack.call, start_until_it_fails, str(tmp_path))
        until(lambda: started.done() or len(list(tmp_path.iterdir())) == 3)
        assert not started.done(), started.result()
        with killed(stack, "mongod"):
            found = started.result(60)
            began = time.monotonic()
            with pytest.raises(girder_client.HttpError) as raised:
                user.client.post("my_plugin/task/noop")
            assert raised.value.status == 500
            assert time.monotonic() - began < 20
    assert max(took for took, _, _ in found.values()) < 20, "it waits for 3 s, and cleans up"
    errors = {title: said for title, (_, said, is_made) in found.items() if not is_made}
    assert len(errors) == 3
    nothing = re.compile(r"No job was created, as Girder's database|None of them was recorded\.$")
    unsure = re.compile(r"They may have been recorded: .* start them again\.$")
    assert all(nothing.search(said) or unsure.search(said) for said in errors.values())

    def titles(names: list[str], user_id: str) -> list[tuple[str, str]]:
        from bson import ObjectId
        from girder_jobs.models.job import Job

        query = {"$or": [{"title": {"$in": names}}, {"userId": ObjectId(user_id)}]}
        return [(job["title"], str(job["_id"])) for job in Job().collection.find(query)]

    made = dict(there := stack.call(titles, list(found), user.id))
    assert len(made) == len(there), "each once"
    for title, (_, said, is_made) in found.items():
        if is_made:
            assert made[title] == said
        elif nothing.search(said):
            assert title not in made
    assert made.keys() <= found.keys(), "none of the user"
    assert {job["status"] for job in stack.wait_all(made.values())} == {S.SUCCESS}


def test_the_database_forgets_the_end_of_a_job(stack: FaultStack, tmp_path: Path) -> None:
    """As in a crash, which takes along what was not in the journal yet. The job runs again."""
    gate = tmp_path / "gate"
    job_id = stack.start_task("hold", str(gate))

    def documents() -> Any:
        from bson import ObjectId
        from girder_jobs.models.job import Job

        from girder_dask.plugin.store.models import DaskJob

        return [m().collection.find_one({"_id": ObjectId(job_id)}) for m in (DaskJob, Job)]

    def put_back(record: Any, job: Any) -> None:
        from girder_jobs.models.job import Job

        from girder_dask.plugin.store.models import DaskJob

        DaskJob().collection.replace_one({"_id": record["_id"]}, record)
        Job().collection.replace_one({"_id": job["_id"]}, job)

    until(lambda: stack.job(job_id)["status"] == S.RUNNING)
    at_work = stack.call(documents)
    gate.touch()
    stack.wait(job_id)
    stack.call(put_back, *at_work)
    check_history(stack.wait(job_id), ["QUEUED", "RUNNING", "QUEUED", "RUNNING", "SUCCESS"])
    assert "The scheduler no longer had the job; this is attempt 2." in stack.log(job_id)


@pytest.mark.parametrize(
    "event",
    [
        "model.item.save.after",
        pytest.param("model.file.finalizeUpload.before", marks=pytest.mark.long),
        pytest.param("model.file.finalizeUpload.after", marks=pytest.mark.long),
    ],
)
def test_girder_killed_while_it_makes_a_file_of_an_output(
    stack: FaultStack, tmp_path: Path, event: str
) -> None:
    """The output is there once."""
    user = stack.create_user()
    folder = str(user.folder["_id"])

    def start(diary: str) -> str:
        from my_worker_tasks import witness

        from girder_dask.transforms import GirderUploadToFolder

        hooks = [GirderUploadToFolder(folder)]
        given = {"diary": diary, "lines": 1, "ends": "out"}
        return str(witness.apply_async((), given, girder_result_hooks=hooks).id)

    stack.call(die_at, event)
    job_id = stack.call(start, str(tmp_path), user=user)
    restart_killed(stack)
    # Its worker repeats requests after up to 15 s.
    check_history(stack.wait(job_id, 90), ["QUEUED", "RUNNING", "PUSHING_OUTPUT", "SUCCESS"])
    assert stack.outputs(folder) == {"out": ["out of attempt 1\n"]}
