"""Jobs whose arguments are the values of other jobs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from girder_dask.jobs import JobStatus

S = JobStatus
LARGE = 5_000_000  # more than girder.worker.max-result


def poll(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


def value(stack: Any, job_id: str) -> Any:
    """Return what a job returned, when it has ended well."""

    def get(job_id: str) -> Any:
        from girder_dask import JobResult

        return JobResult(job_id).get(timeout=5)

    job = stack.wait(job_id)
    assert job["status"] == S.SUCCESS, stack.log(job_id)
    return stack.call(get, job_id)


def on_scheduler(stack: Any, function: Callable[..., Any], *args: Any) -> Any:
    """Call ``function(plugin, *args)`` in the scheduler."""

    def ask(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        from distributed import Client
        from girder.models.setting import Setting

        def run(dask_scheduler: Any, call: Any, args: Any) -> Any:
            return call(dask_scheduler.plugins["girder-dask"], *args)

        address = Setting().get("dask.scheduler_address")
        with Client(address, set_as_default=False) as client:
            return client.run_on_scheduler(run, call=function, args=args)

    return stack.call(ask, function, args)


def kept(stack: Any) -> int:
    """Return how many values the scheduler keeps."""
    return int(on_scheduler(stack, lambda plugin: len(plugin.transitions.retained)))


def keys(stack: Any) -> set[str]:
    """Return the keys that Dask knows, without those that no worker can run.

    Of these there is one for the jobs that other tests have left waiting, from when the scheduler
    claims them.
    """

    def known(plugin: Any) -> list[str]:
        tasks = list(plugin._scheduler.tasks.values())
        return [str(task.key) for task in tasks if task.state != "no-worker"]

    return set(on_scheduler(stack, known))


def let_go(stack: Any, job_id: str) -> None:
    on_scheduler(stack, lambda plugin, job: plugin.transitions.retained.release(job), job_id)


@pytest.fixture(autouse=True)
def before(girder_stack):
    """Give the keys that Dask knew before the test, to which none may be added for long."""

    def forget_all(plugin: Any) -> None:
        for job_id in list(plugin.transitions.retained._results):
            plugin.transitions.retained.release(job_id)

    on_scheduler(girder_stack, forget_all)
    poll(lambda: kept(girder_stack) == 0, "values of other tests are left behind")
    known = keys(girder_stack)
    yield known
    on_scheduler(girder_stack, forget_all)
    poll(lambda: kept(girder_stack) == 0, "values are left behind")
    poll(lambda: keys(girder_stack) <= known, "keys are left behind")


# -- values ------------------------------------------------------------------------------------


def test_a_large_value_moves_between_workers(girder_stack, girder_user, tmp_path):
    def start(count: int, directory: str) -> tuple[str, list[str]]:
        from my_worker_tasks import make_bytes, meet

        made = make_bytes.delay(count)
        return made.id, [meet.delay(made, directory, 6).id for _ in range(6)]

    made, ids = girder_stack.call(start, LARGE, str(tmp_path), user=girder_user)
    seen = [value(girder_stack, job_id) for job_id in ids]
    assert [each["size"] for each in seen] == [LARGE] * 6
    assert len({each["worker"] for each in seen}) == 2
    assert girder_stack.job(made)["status"] == S.SUCCESS
    assert kept(girder_stack) == 1, "it may be needed again"


def test_values_in_lists_and_dictionaries(girder_stack, girder_user):
    def start(count: int) -> str:
        from my_worker_tasks import make_bytes, sizes

        large, small = make_bytes.delay(count), make_bytes.delay(3)
        return str(sizes.delay([large, {"s": small}], small, k={"n": (1, [large])}).id)

    job_id = girder_stack.call(start, LARGE, user=girder_user)
    assert value(girder_stack, job_id) == [
        [LARGE, {"s": 3}],
        3,
        {"k": {"n": [1, [LARGE]]}},
    ]
    assert "QUEUED" in [S(t["status"]).name for t in girder_stack.job(job_id)["timestamps"]]


def test_a_chain(girder_stack, girder_user, before):
    def start() -> list[str]:
        from my_worker_tasks import add_one

        results = [add_one.delay(0)]
        for _ in range(4):
            results.append(add_one.delay(results[-1]))
        return [result.id for result in results]

    ids = girder_stack.call(start, user=girder_user)
    assert [value(girder_stack, job_id) for job_id in reversed(ids)] == [5, 4, 3, 2, 1]
    poll(lambda: keys(girder_stack) <= before, "small values stay on the cluster")


def test_an_input_that_has_ended_before(girder_stack, girder_user):
    def start(count: int) -> str:
        from my_worker_tasks import make_bytes

        return str(make_bytes.delay(count).id)

    def use(ids: list[str]) -> str:
        from my_worker_tasks import sizes

        from girder_dask import JobResult

        return str(sizes.delay(*[JobResult(i) for i in ids]).id)

    ids = [girder_stack.call(start, count, user=girder_user) for count in (3, LARGE)]
    for job_id in ids:
        girder_stack.wait(job_id)
    assert value(girder_stack, girder_stack.call(use, ids, user=girder_user)) == [3, LARGE, {}]


def test_a_value_that_is_kept_no_longer(girder_stack, girder_user):
    def start(count: int) -> str:
        from my_worker_tasks import make_bytes

        return str(make_bytes.delay(count, girder_job_title="Make it").id)

    def use(job_id: str) -> str:
        from my_worker_tasks import sizes

        from girder_dask import JobResult

        return str(sizes.delay(JobResult(job_id)).id)

    made = girder_stack.call(start, LARGE, user=girder_user)
    girder_stack.wait(made)
    poll(lambda: kept(girder_stack), "the value is not kept")
    let_go(girder_stack, made)
    job_id = girder_stack.call(use, made, user=girder_user)
    assert girder_stack.wait(job_id)["status"] == S.ERROR
    log = girder_stack.log(job_id)
    assert made in log
    assert "Make it" in log


def test_a_lost_worker_does_not_make_a_value_again(girder_stack, girder_user, tmp_path, before):
    diary = tmp_path / "diary"

    def start(count: int, diary: str) -> str:
        from my_worker_tasks import make_bytes

        return str(make_bytes.delay(count, diary).id)

    made = girder_stack.call(start, LARGE, str(diary), user=girder_user)
    girder_stack.wait(made)
    poll(lambda: kept(girder_stack), "the value is not kept")

    def holders(plugin: Any) -> list[Any]:
        (key,) = plugin.transitions.retained._job_ids
        return [(ws.address, ws.pid) for ws in plugin._scheduler.tasks[key].who_has]

    def workers(plugin: Any) -> list[str]:
        return list(plugin._scheduler.workers)

    there = set(on_scheduler(girder_stack, workers))
    ((address, pid),) = on_scheduler(girder_stack, holders)
    os.kill(pid, signal.SIGKILL)
    poll(lambda: keys(girder_stack) <= before, "the value is not given up")
    now = poll(
        lambda: len(found := set(on_scheduler(girder_stack, workers))) == len(there) and found,
        "the worker does not come back",
        60,
    )
    assert now != there, address

    def use(job_id: str) -> str:
        from my_worker_tasks import sizes

        from girder_dask import JobResult

        return str(sizes.delay(JobResult(job_id)).id)

    job_id = girder_stack.call(use, made, user=girder_user)
    assert girder_stack.wait(job_id)["status"] == S.ERROR
    assert diary.read_text() == "made\n"
    assert girder_stack.job(made)["status"] == S.SUCCESS


def test_a_notebook_holds_a_value(girder_stack, girder_user, before, tmp_path):
    from distributed import Client, Future

    go = tmp_path / "go"

    def address() -> str:
        from girder.models.setting import Setting

        return str(Setting().get("dask.scheduler_address"))

    def start(path: str, count: int) -> list[str]:
        from my_worker_tasks import hold, make_bytes

        first = hold.delay(path)
        return [first.id, make_bytes.delay(count).id]

    jobs = girder_stack.call(start, str(go), LARGE, user=girder_user)
    with Client(girder_stack.call(address), set_as_default=False) as client:

        async def pin(jobs: list[str]) -> dict[str, str]:
            return dict(await client.scheduler.girder_pin(jobs=jobs, client=client.id))

        girder_stack.wait(jobs[1])
        futures = {}
        for job_id, key in client.sync(pin, jobs).items():
            futures[job_id] = Future(key, client)
        client.sync(pin, jobs)  # again, now that somebody listens
        let_go(girder_stack, jobs[1])
        go.touch()
        assert futures[jobs[0]].result(timeout=20) == 1
        assert len(futures[jobs[1]].result(timeout=20)) == LARGE
        assert kept(girder_stack) == 0
        assert len(keys(girder_stack) - before) == 2


# -- inputs that end badly -----------------------------------------------------------------------


def test_a_failing_input_ends_all_that_depends_on_it(girder_stack, girder_user):
    def start() -> tuple[str, list[str]]:
        from my_worker_tasks import fails, sizes

        bad = fails.delay("no coins", girder_job_title="Count coins")
        first = sizes.delay([bad], girder_job_title="Sum up")
        return bad.id, [first.id, sizes.delay(first).id]

    bad, (first, second) = girder_stack.call(start, user=girder_user)
    assert girder_stack.wait(first)["status"] == girder_stack.wait(second)["status"] == S.ERROR
    assert girder_stack.log(first) == (
        f"Input job {bad} ('Count coins') ended in ERROR, so this job cannot run.\n"
    )
    assert girder_stack.log(second) == (
        f"Input job {first} ('Sum up') ended in ERROR, so this job cannot run.\n"
    )


def test_a_canceled_input_ends_what_depends_on_it(girder_stack, girder_user):
    def start() -> list[str]:
        from my_worker_tasks import add_one, slow

        slow_one = slow.delay(60, 600, girder_job_title="Slow one")
        return [slow_one.id, add_one.delay(slow_one).id]

    slow, dependent = girder_stack.call(start, user=girder_user)
    girder_stack.wait(slow, status=S.RUNNING)
    girder_user.client.put(f"job/{slow}/cancel")
    assert girder_stack.wait(slow)["status"] == S.CANCELED
    assert girder_stack.wait(dependent)["status"] == S.ERROR
    assert girder_stack.log(dependent) == (
        f"Input job {slow} ('Slow one') was canceled, so this job cannot run.\n"
    )


# -- waiting ---------------------------------------------------------------------------------------


def test_a_job_that_waits_holds_no_thread(girder_stack, girder_user, tmp_path):
    """Eight threads: one for the slow input, and ten jobs that wait for it."""
    go = tmp_path / "go"

    def start(path: str) -> tuple[list[str], list[str]]:
        from my_worker_tasks import add_one, hold

        slow_one = hold.delay(path)
        waiting = [add_one.delay(slow_one) for _ in range(10)]
        return [w.id for w in waiting], [add_one.delay(n).id for n in range(8)]

    waiting, others = girder_stack.call(start, str(go), user=girder_user)
    for n, job_id in enumerate(others):
        assert value(girder_stack, job_id) == n + 1
    assert {girder_stack.job(job_id)["status"] for job_id in waiting} == {S.QUEUED}
    go.touch()
    assert [value(girder_stack, job_id) for job_id in waiting] == [2] * 10


def test_a_job_that_waits_is_canceled_at_once(girder_stack, girder_user, tmp_path):
    go = tmp_path / "go"

    def start(path: str) -> list[str]:
        from my_worker_tasks import add_one, hold

        slow_one = hold.delay(path)
        return [slow_one.id, add_one.delay(slow_one).id]

    slow, waiting = girder_stack.call(start, str(go), user=girder_user)
    girder_stack.wait(slow, status=S.RUNNING)
    girder_user.client.put(f"job/{waiting}/cancel")
    assert girder_stack.wait(waiting)["status"] == S.CANCELED
    assert girder_stack.job(slow)["status"] == S.RUNNING
    go.touch()
    assert girder_stack.wait(slow)["status"] == S.SUCCESS


# -- tries -----------------------------------------------------------------------------------------


def test_a_job_is_tried_again_and_then_its_value_is_used(girder_stack, girder_user, tmp_path):
    def start(path: str) -> list[str]:
        from my_worker_tasks import add_one, fails_once

        first = fails_once.delay(path)
        return [first.id, add_one.delay(first).id]

    first, second = girder_stack.call(start, str(tmp_path / "tried"), user=girder_user)
    assert value(girder_stack, second) == 8
    log = girder_stack.log(first)
    assert "ValueError: the first try\n" in log
    assert log.endswith("Try 1 of 2 failed; the job is retried in 1 s as attempt 2.\n")
    job = girder_stack.job(first)
    names = [S(stamp["status"]).name for stamp in job["timestamps"]]
    assert names == ["QUEUED", "RUNNING", "QUEUED", "RUNNING", "SUCCESS"]
