"""Which states follow which."""

from __future__ import annotations

import ast
import importlib.util
import itertools
from pathlib import Path

import pytest

from girder_dask.jobs import FINAL, PREDECESSORS, JobStatus, can_follow

S = JobStatus
AT_WORK = [
    S.FETCHING_INPUT,
    S.CONVERTING_INPUT,
    S.RUNNING,
    S.CONVERTING_OUTPUT,
    S.PUSHING_OUTPUT,
]


def test_the_numbers_are_those_of_girder() -> None:
    # Read, not imported: girder_jobs connects to a database when it is imported.
    spec = importlib.util.find_spec("girder_jobs")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "constants.py").read_text()
    statuses = next(
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "JobStatus"
    )
    numbers = {
        ast.unparse(node.targets[0]): node.value.value
        for node in statuses.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    assert len(numbers) == 6
    assert numbers == {s.name: int(s) for s in S if s < 820}


def test_the_other_numbers_are_those_of_girder_worker() -> None:
    assert {s.name: int(s) for s in S if s >= 820} == {
        "FETCHING_INPUT": 820,
        "CONVERTING_INPUT": 821,
        "CONVERTING_OUTPUT": 822,
        "PUSHING_OUTPUT": 823,
        "CANCELING": 824,
    }


@pytest.mark.parametrize("new", list(S))
@pytest.mark.parametrize("end", sorted(FINAL))
def test_an_end_is_never_left(end: JobStatus, new: JobStatus) -> None:
    assert not can_follow(end, new)


def test_every_state_says_what_it_may_follow() -> None:
    assert set(PREDECESSORS) == set(S)
    assert not any(can_follow(s, s) for s in S)


@pytest.mark.parametrize("start", [S.QUEUED, S.CANCELING, *AT_WORK])
def test_every_open_state_can_be_stopped_and_can_fail(start: JobStatus) -> None:
    assert can_follow(start, S.CANCELED)
    assert can_follow(start, S.ERROR)
    assert can_follow(start, S.CANCELING) == (start != S.CANCELING)


def test_a_lost_job_is_queued_again_but_not_one_that_is_to_stop() -> None:
    assert all(can_follow(s, S.QUEUED) for s in AT_WORK)
    assert not can_follow(S.CANCELING, S.QUEUED)
    assert not can_follow(S.QUEUED, S.SUCCESS)


def test_the_usual_course_of_a_job() -> None:
    course = [S.INACTIVE, S.QUEUED, S.FETCHING_INPUT, S.RUNNING, S.PUSHING_OUTPUT, S.SUCCESS]
    assert all(can_follow(a, b) for a, b in itertools.pairwise(course))
    at_work = course[2:]
    assert not any(can_follow(b, a) for a, b in itertools.pairwise(at_work))
