"""Tasks that may run at most once, and whose worker or scheduler dies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from girder_dask.jobs import JobStatus
from tests.support.fault_site import FaultStack, states, until

S = JobStatus
Start = Callable[..., FaultStack]

ASKS_AGAIN = """
import requests

def begin(**given):
    try:
        return self.girder_client.post(f"dask/job/{self.id}/begin", parameters=given)
    except requests.HTTPError as e:
        return e.response.status_code

found = self.girder_client.get(f"job/{self.id}")["dask"]["begun"]
mine = {key: found[key] for key in ("attempt", "run", "worker")}
result = [begin(**mine), begin(**{**mine, "run": "another"}), begin(**{**mine, "attempt": 0})]
"""


def begun(tally: Path) -> Counter[int]:
    """Return how many times the function of each number was called."""
    lines = tally.read_text().splitlines() if tally.exists() else []
    return Counter(int(line.split()[0]) for line in lines)


def test_a_task_that_may_run_at_most_once(fault_stack: Start, tmp_path: Path) -> None:
    stack = fault_stack(workers=2, threads=1)
    tally = tmp_path / "tally"

    def start(*numbers: int, seconds: float) -> list[str]:
        calls = [(str(tally), n, [seconds]) for n in numbers]
        return stack.start_tasks("tally", calls, at_most_once=True)

    lost = start(1, seconds=60)
    until(lambda: begun(tally)[1])
    stack.wait(lost[0], status=S.RUNNING)
    psutil.Process(int(tally.read_text().split()[2])).kill()
    job = stack.wait(lost[0], status=S.ERROR)
    assert states(job) == ["QUEUED", "RUNNING", "QUEUED", "ERROR"]
    assert job["dask"]["begun"]["attempt"] == 1
    last = stack.log(lost[0]).splitlines()[-1]
    assert last.startswith("The task may run at most once, and attempt 1 started it on ")
    assert "start a new job if needed" in last

    interrupted = start(10, 11, seconds=60)
    until(lambda: begun(tally)[10] and begun(tally)[11])
    waiting = start(*range(20, 30), seconds=0)
    for part in ("scheduler", "worker-0", "worker-1"):
        stack.kill(part)
    stack.restart("scheduler", "worker-0", "worker-1")
    assert {job["status"] for job in stack.wait_all(interrupted, 90)} == {S.ERROR}
    assert {job["status"] for job in stack.wait_all(waiting, 90)} == {S.SUCCESS}
    assert begun(tally) == Counter([1, 10, 11, *range(20, 30)])


def test_the_one_start(fault_stack: Start, tmp_path: Path) -> None:
    """The run may ask for it again, nobody else may, and what raises has had it."""
    stack = fault_stack(workers=1, threads=1)
    job_id = stack.start_task("does", ASKS_AGAIN, at_most_once=True)
    stack.wait(job_id, status=S.SUCCESS)

    def value() -> object:
        from girder_dask import JobResult

        return JobResult(job_id).get(timeout=10)

    assert stack.call(value) == [{"attempt": 1}, 409, 409]

    path = str(tmp_path / "tally")
    raises = f"open({path!r}, 'a').write('1\\n'); raise ValueError('once')"
    job = stack.wait(stack.start_task("does", raises, at_most_once=True))
    assert states(job) == ["QUEUED", "RUNNING", "ERROR"]
    assert Path(path).read_text() == "1\n"
