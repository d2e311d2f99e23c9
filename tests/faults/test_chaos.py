"""Scheduler, workers and Girder are killed at random, and each job still ends as it should.

The seed of a run is printed. ``pytest tests/faults/test_chaos.py --chaos-seed=…`` deals the same
blows again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_site import FaultStack, states, until
from monkey import Monkey, blows

from girder_dask.jobs import FINAL, JobStatus
from girder_dask.transforms import GirderUploadToFolder

LINES = 10
WORKERS = 2
ENV = {
    # A job may lose more workers here than in a year of its life.
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1000",
}


@pytest.mark.parametrize(
    ("seconds", "count"),
    [
        pytest.param(25, 60, id="short", marks=pytest.mark.timeout(240)),
        pytest.param(120, 300, id="long", marks=[pytest.mark.timeout(900), pytest.mark.long]),
    ],
)
def test_parts_killed_at_random(
    fault_stack: Callable[..., FaultStack],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    seconds: float,
    count: int,
) -> None:
    seed = request.config.getoption("--chaos-seed")
    stack = fault_stack(workers=WORKERS, threads=2, env=ENV)
    user = stack.create_user()
    folder = str(user.folder["_id"])
    tally = tmp_path / "tally"
    calls = [(str(tally), n, [LINES / 10], f"out-{n}.txt") for n in range(count)]
    hooks = [GirderUploadToFolder(folder)]
    ids = stack.start_tasks("tally", calls, user=user, girder_result_hooks=hooks)

    monkey = Monkey(stack)
    try:
        for blow in blows(seed, seconds, WORKERS):
            monkey.deal(blow)
        until(monkey.whole, 60)
        until(lambda: monkey.whole() and has_ended(stack, ids), 60 + 3 * seconds, 0.3)
    finally:
        print(f"seed {seed}", *monkey.diary, sep="\n")
    wrong = {}
    outputs = stack.outputs(folder)
    for number, (job_id, job) in enumerate(zip(ids, stack.all_jobs(ids), strict=True)):
        found = [*check_states(job), *check_log(stack.log(job_id), job["dask"]["attempt"])]
        made = outputs.pop(f"out-{number}.txt", [])
        if made != [f"made by attempt {job['dask']['attempt']}\n"]:
            found.append(f"its outputs are {made}")
        if found:
            wrong[job_id] = found
            print(f"job {job_id} ({number}): {found}\n{states(job)}\n{stack.log(job_id)}")
    assert not wrong
    assert not outputs, "nothing else was uploaded"
    runs = Counter(tuple(line.split()[:2]) for line in tally.read_text().splitlines())
    assert max(runs.values()) == 1, "no attempt runs twice"


def has_ended(stack: FaultStack, ids: list[str]) -> bool:
    return all(job["status"] in FINAL for job in stack.all_jobs(ids))


def check_states(job: dict[str, Any]) -> list[str]:
    """Return what is wrong with the states of a job: it ends once, in SUCCESS."""
    ends = [stamp["status"] for stamp in job["timestamps"] if stamp["status"] in FINAL]
    if ends == [JobStatus.SUCCESS] and states(job)[-1] == "SUCCESS":
        return []
    return [f"its states are {states(job)}"]


def check_log(log: str, last: int) -> list[str]:
    """Return what is wrong with a log.

    The last attempt has all lines. One that was lost has the first of them: what came after
    may have died with the worker, but none is missing in between, and none is there twice.
    """
    wrong = []
    for attempt in range(1, last + 1):
        lines = [int(n) for n in re.findall(rf"^attempt {attempt} line (\d+)$", log, re.MULTILINE)]
        wanted = LINES if attempt == last else len(lines)
        if lines != list(range(wanted)):
            wrong.append(f"attempt {attempt} has the lines {lines}")
    told = sorted({int(n) for n in re.findall(r"^attempt (\d+) line", log, re.MULTILINE)})
    if told and told[-1] > last:
        wrong.append(f"it has lines of attempt {told[-1]}, after the last")
    return wrong
