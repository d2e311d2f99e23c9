"""The plan of a soak, and its judgement of memory."""

from __future__ import annotations

from itertools import pairwise

import pytest

from benchmarks.soak.kinds import IN_GIRDER, OUTSIDE, allowed_ends
from benchmarks.soak.operations import plan
from benchmarks.soak.watch import growths
from girder_dask.jobs import FINAL


def life(pid: int, start: float, values: list[float]) -> list[tuple[float, float, int]]:
    """Return samples of a process, one each ten seconds."""
    return [(start + 10 * n, value, pid) for n, value in enumerate(values)]


@pytest.mark.parametrize("minutes", [5, 60])
def test_plan_has_each_operation_and_leaves_the_first_worker_alone(minutes: float) -> None:
    found = plan(60 * minutes, 7, 3)
    assert found == plan(60 * minutes, 7, 3) != plan(60 * minutes, 8, 3)
    assert all(a.at <= b.at for a, b in pairwise(found))
    assert [each.name for each in found if not each.is_routine] == [
        *("certificates that expire soon", "new credential", "new certificates", "upgrade"),
        *("another new credential", "Girder restarts"),
    ]
    routine = {each.name.split()[0] for each in found if each.is_routine}
    assert routine <= {"worker-1", "worker-2"}
    assert len([each for each in found if each.is_routine]) >= minutes


def test_growth_is_that_of_the_longest_life_after_its_beginning() -> None:
    steady = [100.0, 150.0, 190.0] + [200.0 + n % 3 for n in range(27)]
    leaking = [100.0 + 5 * n for n in range(30)]
    samples = {
        "girder": life(1, 0, leaking[:20]) + life(2, 200, steady),
        "scheduler": life(3, 0, leaking),
        "worker-1": life(4, 0, leaking),
        "mongod": life(5, 0, leaking),
    }
    girder, scheduler = growths(samples)
    assert (girder.part, girder.is_steady) == ("girder", True)
    assert girder.late - girder.early <= 2
    assert (scheduler.part, scheduler.is_steady) == ("scheduler", False)
    assert scheduler.most == 245


def test_growth_needs_some_samples() -> None:
    assert growths({"girder": life(1, 0, [100.0] * 5)}) == []


def test_each_kind_of_job_has_an_end() -> None:
    assert all(allowed_ends(kind) <= set(FINAL) for kind in (*IN_GIRDER, *OUTSIDE))
