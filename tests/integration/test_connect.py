"""Jobs from a process that called ``connect()``: a notebook, or a script."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from my_worker_tasks.endings import fails, slow
from my_worker_tasks.files import file_size

import girder_dask
from girder_dask import JobFailed, JobResult, NotConnectedError, as_completed, connect, gather, task
from girder_dask.client import connection
from girder_dask.errors import (
    ArgumentError,
    GirderError,
    ResultUnavailable,
    SchedulerError,
    SubmissionError,
)
from girder_dask.jobs import JobStatus
from girder_dask.transforms import GirderFileId, GirderItemMetadata
from tests.integration.test_permissions import configure, make_group
from tests.support.breaking_proxy import breaking_proxy


@pytest.fixture(autouse=True)
def tidy(girder_admin: Any) -> Iterator[None]:
    """Close what was opened, and leave the settings as they were."""
    yield
    if connection._current is not None:
        connection._current.close()
    for key in ("dask.submitters", "dask.allow_tasks"):
        girder_admin.delete("system/setting", parameters={"key": key})


@pytest.fixture
def connected(girder_stack: Any) -> Iterator[girder_dask.Connection]:
    """A connection of the administrator, without a scheduler."""
    with connect(girder_stack.girder, api_key=key_of(girder_stack.admin)) as found:
        yield found


@pytest.fixture
def with_cluster(girder_stack: Any) -> Iterator[girder_dask.Connection]:
    """A connection of the administrator, with a scheduler."""
    with connect(
        girder_stack.girder,
        api_key=key_of(girder_stack.admin),
        scheduler=girder_stack.scheduler,
    ) as found:
        yield found


def key_of(client: Any) -> str:
    return str(client.post("api_key", parameters={"name": "notebook", "active": "true"})["key"])


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.03)


def run_script(code: str, **variables: str) -> str:
    """Run a script in a process of its own, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- functions of one's own -------------------------------------------------------------------


def test_a_function_of_a_script_runs_on_a_worker(girder_stack):
    said = run_script(
        """
        import os
        import girder_dask

        THRESHOLD = 3

        class Coin:
            def __init__(self, size):
                self.size = size

        def is_large(coin):
            return coin.size > THRESHOLD

        @girder_dask.task(title="Keep the large ones")
        def keep(coins):
            print("I have", len(coins))
            return [coin for coin in coins if is_large(coin)]

        with girder_dask.connect(os.environ["URL"], api_key=os.environ["KEY"]):
            result = keep.delay([Coin(n) for n in range(6)])
            large = result.get(timeout=60)
            print(result["title"], [c.size for c in large], isinstance(large[0], Coin))
            print(repr(result.log()), repr(result.state))
        """,
        URL=girder_stack.girder,
        KEY=key_of(girder_stack.admin),
    )
    assert said == "Keep the large ones [4, 5] True\n'I have 6\\n' 'SUCCESS'\n"


def test_its_error_comes_back(connected):
    @task
    def broken(n: int) -> float:
        return 1 / n

    with pytest.raises(JobFailed, match="division by zero") as caught:
        broken.delay(0).get(timeout=30)
    assert isinstance(caught.value, ZeroDivisionError)
    assert ", in broken\n" in str(caught.value.__cause__)


def test_an_installed_task_runs_with_transforms_and_hooks(connected, girder_stack):
    file = girder_stack.upload(b"seven...", "data.bin")
    result = file_size.delay(GirderFileId(file["_id"]))
    assert result.get(timeout=30) == 8

    @task
    def facts(path: str) -> dict[str, Any]:
        from pathlib import Path

        return {"bytes": len(Path(path).read_bytes())}

    hooks = [GirderItemMetadata(file["itemId"])]
    facts.delay(GirderFileId(file["_id"]), girder_result_hooks=hooks).get(timeout=30)
    assert girder_stack.admin.getItem(file["itemId"])["meta"] == {"bytes": 8}


def test_what_cannot_be_sent_is_refused_here(connected):
    with pytest.raises(ArgumentError, match="cannot be pickled"):
        file_size.delay(sys.stdout)
    with pytest.raises(SubmissionError, match="do not fit"):
        file_size.delay()


def test_a_loop_shows_its_progress_and_can_be_canceled(connected):
    @task
    def loop() -> int:
        import time as clock

        done = 0
        for _ in girder_dask.progress(range(600), message="Turning"):
            clock.sleep(0.1)
            done += 1
        return done

    result = loop.delay()
    until(lambda: (result.refresh()["progress"] or {}).get("current", 0) > 2)
    assert result["progress"]["message"] == "Turning"
    assert result["progress"]["total"] == 600
    result.cancel()
    assert result.wait(60).status == JobStatus.CANCELED


def test_a_task_starts_others_that_are_its_children(connected, girder_stack):
    @task
    def inner(n: int) -> int:
        return n * n

    @task
    def outer(n: int) -> int:
        return sum(inner.delay(i).get(timeout=30) for i in range(n))

    result = outer.delay(3)
    assert result.get(timeout=60) == 5
    children = girder_stack.admin.get("job", parameters={"parentId": result.id})
    assert len(children) == 3
    with pytest.raises(JobFailed, match="delay\\(\\) needs no connection"):
        task(lambda: connect("http://127.0.0.1", token="t") and None).delay().get(timeout=30)


# -- many jobs --------------------------------------------------------------------------------


def test_many_jobs_are_gathered(connected):
    @task
    def square(n: int) -> int:
        return n * n

    mapped = square.map(range(20))
    assert gather(mapped, timeout=60) == [n * n for n in range(20)]
    assert sorted(r.get() for r in as_completed(mapped, timeout=60)) == gather(mapped)
    assert mapped.wait(60).status == JobStatus.SUCCESS
    failed = [fails.delay("no coins"), square.delay(2)]
    error, value = gather(failed, timeout=60, errors="return")
    assert value == 4
    assert "no coins" in str(error)


def test_a_result_is_an_argument(connected):
    @task
    def add(values: list[int]) -> int:
        return sum(values)

    first = add.delay([1, 2])
    assert add.delay([first, add.delay([first, 4])]).get(timeout=60) == 10


# -- another process, and after closing -------------------------------------------------------


def test_another_process_has_the_result_by_its_id(connected, girder_stack):
    result = file_size.delay(GirderFileId(girder_stack.upload(b"12345")["_id"]))
    said = run_script(
        """
        import os
        from girder_dask import JobResult, connect

        connect(os.environ["URL"], api_key=os.environ["KEY"])
        result = JobResult(os.environ["JOB"])
        print(result.get(timeout=60), result.status.name, result["type"])
        """,
        URL=girder_stack.api,
        KEY=key_of(girder_stack.admin),
        JOB=result.id,
    )
    assert said == "5 SUCCESS dask\n"


def test_after_closing_nothing_is_submitted(girder_stack):
    with connect(girder_stack.girder, token=girder_stack.admin.token):
        result = slow.delay(0.1, 1)
    with pytest.raises(NotConnectedError, match=r"girder_dask\.connect\("):
        slow.delay(0.1, 1)
    with pytest.raises(NotConnectedError):
        result.get()
    girder_stack.wait(result.id, status=JobStatus.SUCCESS)


# -- who may ----------------------------------------------------------------------------------


def test_members_of_the_group_run_code_of_their_own(girder_stack, girder_user, girder_admin):
    group = make_group(girder_admin, girder_user)
    configure(girder_admin, "dask.submitters", group["_id"])
    with connect(girder_stack.girder, api_key=key_of(girder_user.client)) as found:
        assert found.user == girder_user.login
        result = task(lambda n: {n}).delay(3)
        assert result.get(timeout=30) == {3}
    job = girder_stack.job(result.id)
    assert girder_admin.get("job", parameters={"userId": girder_user.id})[0]["_id"] == job["_id"]


def test_others_start_what_is_allowed(girder_stack, girder_user, girder_admin):
    file = girder_stack.upload(b"123", client=girder_user.client)
    with connect(girder_stack.girder, api_key=key_of(girder_user.client)):
        with pytest.raises(SubmissionError, match=r"may not start my_worker_tasks.*No job was"):
            file_size.delay(GirderFileId(file["_id"]))
        configure(girder_admin, "dask.allow_tasks", ["my_worker_tasks.files:*"])
        assert file_size.delay(GirderFileId(file["_id"])).get(timeout=30) == 3
        with pytest.raises(SubmissionError, match=r"may not start my_worker_tasks\.endings:slow"):
            slow.delay(1, 1)
        configure(girder_admin, "dask.allow_tasks", value=True)
        with pytest.raises(SubmissionError, match="pickle"):
            task(lambda: 1).delay()
    assert len(girder_admin.get("job", parameters={"userId": girder_user.id})) == 1


def test_what_another_user_returned_is_not_unpickled(girder_stack, girder_user, connected):
    @task(public=True)
    def odd() -> set[int]:
        return {1, 2}

    @task(public=True)
    def plain() -> list[int]:
        return [1, 2]

    results = [odd.delay(), plain.delay()]
    assert gather(results, timeout=30) == [{1, 2}, [1, 2]]
    with connect(girder_stack.girder, api_key=key_of(girder_user.client)):
        theirs = [JobResult(result.id) for result in results]
        assert theirs[1].get() == [1, 2]
        with pytest.raises(ResultUnavailable, match="is not opened here"):
            theirs[0].get()


def test_the_jobs_of_others_are_not_to_be_seen(girder_stack, girder_user, connected):
    result = slow.delay(0.1, 1).wait(30)
    with connect(girder_stack.girder, api_key=key_of(girder_user.client)):
        theirs = JobResult(result.id)
        for ask in (theirs.get, theirs.log, theirs.cancel):
            with pytest.raises(GirderError) as caught:
                ask()
            assert caught.value.status == 403


# -- the scheduler ----------------------------------------------------------------------------


def wanted(client: Any, key: str) -> list[str]:
    """Return the names of the clients that want a key."""

    def look(dask_scheduler: Any = None) -> list[str]:
        found = dask_scheduler.tasks.get(key)
        return [] if found is None else [c.client_key for c in found.who_wants]

    return list(client.run_on_scheduler(look))


def test_a_large_value_stays_on_the_cluster(with_cluster):
    large = task(lambda: b"x" * (4 << 20))

    @task
    def count(value: bytes) -> int:
        return len(value)

    result = large.delay()
    assert len(result.get(timeout=30)) == 4 << 20
    assert count.delay(result).get(timeout=30) == 4 << 20
    assert len(JobResult(result.id).get()) == 4 << 20
    future = result.future
    assert with_cluster.dask_client.submit(len, future).result(timeout=20) == 4 << 20


def until_held(result: JobResult) -> str:
    until(lambda: result._future is not None)
    return str(result.future.key)


def test_a_value_is_held_as_long_as_its_result(with_cluster, tmp_path):
    client = with_cluster.dask_client

    @task
    def late(path: str) -> list[int]:
        import time as clock
        from pathlib import Path

        while not Path(path).exists():
            clock.sleep(0.02)
        return [1, 2]

    # It is held from when it is known, which is not at once.
    result = late.delay(str(tmp_path / "go"))
    key = until_held(result)
    (tmp_path / "go").touch()
    result.wait(60)
    assert client.id in wanted(client, key)
    assert result.future.result(timeout=20) == [1, 2]
    del result
    gc.collect()
    until(lambda: client.id not in wanted(client, key))


def test_a_value_that_only_girder_has_is_brought_back(with_cluster):
    result = task(lambda: {"coins": 24}).delay().wait(30)
    old = JobResult(result.id)
    client, key = with_cluster.dask_client, str(result.future.key)
    del result
    gc.collect()
    until(lambda: not wanted(client, key))
    assert old.future.result(timeout=20) == {"coins": 24}


def test_a_failed_job_has_no_future(with_cluster):
    result = fails.delay("no coins").wait(30)
    with pytest.raises(ResultUnavailable, match="the job is ERROR"):
        _ = JobResult(result.id).future


def test_a_tried_job_has_a_future_of_its_last_try(with_cluster, tmp_path):
    @task(retries=1)
    def second_time(path: str) -> int:
        from pathlib import Path

        if not Path(path).exists():
            Path(path).touch()
            raise ValueError("not yet")
        return 7

    result = second_time.delay(str(tmp_path / "tried"))
    assert result.get(timeout=60) == 7
    assert result.future.result(timeout=20) == 7


def test_a_map_holds_its_values(with_cluster):
    mapped = task(lambda n: b"x" * ((2 << 20) + n)).map(range(4))
    assert [len(value) for value in gather(mapped, timeout=60)] == [(2 << 20) + n for n in range(4)]
    until(lambda: all(result._future is not None for result in mapped.results))


def test_the_parent_of_a_map_has_the_values_of_its_jobs(connected):
    add = task(lambda a, b=1: a + b)
    mapped = add.map(range(12))
    again = JobResult(mapped.id)
    assert again.get(timeout=60) == list(range(1, 13))
    with pytest.raises(SubmissionError, match="parent job of a map"):
        add.delay(JobResult(mapped.id))
    assert task(lambda values: sum(values) + 0).delay(mapped).get(timeout=60) == sum(range(1, 13))


def test_an_exit_of_a_task_does_not_end_the_script(connected):
    with pytest.raises(JobFailed) as caught:
        task(lambda: sys.exit(0)).delay().get(timeout=30)
    assert not isinstance(caught.value, SystemExit)


@pytest.mark.parametrize("value", [b"x" * (1 << 20), "é" * (1 << 19), [b"x" * 400_000] * 2])
def test_values_of_a_mebibyte_are_kept_with_the_job(connected, value):
    assert task(lambda: value).delay().get(timeout=30) == value


def test_without_a_job_it_runs_on_the_cluster(with_cluster):
    result = task(lambda n: n + 1).delay(1, girder_job_disable=True)
    assert result.wait(timeout=30).get() == 2
    assert list(as_completed([result], timeout=20)) == [result]
    with pytest.raises(TimeoutError):
        task(lambda: time.sleep(20)).delay(girder_job_disable=True).wait(timeout=0.2)


def test_a_client_may_be_given(girder_stack):
    from distributed import Client

    with (
        Client(girder_stack.scheduler, set_as_default=False) as client,
        connect(girder_stack.girder, token=girder_stack.admin.token, scheduler=client) as found,
    ):
        assert found.dask_client is client
        assert task(lambda: 5).delay().wait(30).future.result(timeout=20) == 5
        found.close()
        assert client.status == "running"


def test_without_a_scheduler_it_says_what_is_missing(connected, girder_stack):
    result = task(lambda: b"x" * (2 << 20)).delay().wait(30)
    with pytest.raises(SchedulerError, match="scheduler='tcp://127"):
        _ = result.future
    with pytest.raises(ResultUnavailable, match=r"max-result.*scheduler='tcp://127"):
        result.get()
    with pytest.raises(SchedulerError, match=r"girder_dask\.connect\("):
        task(lambda: 1).delay(girder_job_disable=True)


def test_another_scheduler_is_told_apart(girder_stack):
    from distributed import LocalCluster

    with (
        LocalCluster(
            n_workers=0, processes=False, dashboard_address=None, protocol="tcp://"
        ) as cluster,
        connect(
            girder_stack.girder,
            token=girder_stack.admin.token,
            scheduler=cluster.scheduler_address,
        ),
    ):
        result = task(lambda: 1).delay().wait(30)
        assert result.get() == 1
        with pytest.raises(SchedulerError, match="does not return the key of the value"):
            _ = result.future


# -- how it looks -----------------------------------------------------------------------------


def test_nothing_shows_a_key(girder_stack, caplog):
    key = key_of(girder_stack.admin)
    with connect(girder_stack.girder, api_key=key) as found:
        result = slow.delay(0.1, 1).wait(30)
        shown = [
            repr(found),
            repr(found._backend),
            repr(result),
            json.dumps(result.job, default=str),
        ]
    token_free = "".join([*shown, caplog.text])
    assert key not in token_free
    assert key not in girder_stack.recent_logs(lines=200)


def test_connecting_takes_few_requests(girder_stack):
    key = key_of(girder_stack.admin)
    with breaking_proxy(girder_stack.api) as proxy:
        connect(proxy.url, api_key=key).close()
        asked = [request.splitlines()[0] for request in proxy.requests]
    assert asked == [
        "GET /api/v1/dask/ping HTTP/1.1",
        "POST /api/v1/api_key/token HTTP/1.1",
        "GET /api/v1/user/me HTTP/1.1",
    ]
