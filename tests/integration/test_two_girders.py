"""Two processes of one Girder, as behind a proxy: jobs of each run, and are seen in the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from girder_dask.jobs import JobStatus
from girder_dask.standalone import checks, ports, programs
from girder_dask.standalone.stack_part import Part
from girder_dask.testing.stack import TestStack
from tests.support.deadline import until
from tests.support.fault_site import FaultStack

S = JobStatus


class OtherGirder(FaultStack):
    """The second Girder of a stack, with the same database, Redis and files."""

    __test__ = False

    def __init__(self, stack: TestStack) -> None:
        self.__dict__.update(stack.__dict__)
        self._first = stack
        self._admin = None
        self._port = ports.choose(None)
        self._own_api = f"http://127.0.0.1:{self._port}/api/v1"

    @property
    def api(self) -> str:
        """The REST API of the second Girder."""
        return self._own_api

    def begin(self) -> Part:
        """Start the process."""
        first = self._first.part("girder")
        part = Part(
            "girder-2",
            programs.girder("127.0.0.1", self._port),
            env=first.env,
            directory=first.log.parent,
            log=first.log.with_name("girder-2.log"),
            check=lambda: checks.girder_answers(self._own_api),
        )
        part.start(self._reaper)
        until(part.is_ready, 60)
        return part


@pytest.fixture(scope="module")
def girders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FaultStack, OtherGirder]]:
    with FaultStack(tmp_path_factory.mktemp("two") / "stack", 1, 2) as stack:
        other = OtherGirder(stack)
        part = other.begin()
        try:
            yield stack, other
        finally:
            part.kill()


def test_jobs_of_each_girder_run_and_are_seen_in_the_other(
    girders: tuple[FaultStack, OtherGirder],
) -> None:
    first, second = girders
    ids = [girder.start_task("steady", 2, 0.0, n) for n in range(3) for girder in girders]
    for job_id in ids:
        assert first.wait(job_id)["status"] == S.SUCCESS
        assert second.job(job_id)["status"] == S.SUCCESS
        assert second.numbered(job_id) == [0, 1]


def test_one_girder_cancels_a_job_of_the_other(girders: tuple[FaultStack, OtherGirder]) -> None:
    first, second = girders
    job_id = first.start_task("slow", 60.0, 600)
    first.wait(job_id, status=S.RUNNING)
    second.admin.put(f"job/{job_id}/cancel")
    assert first.wait(job_id)["status"] == S.CANCELED


def test_jobs_run_on_while_one_girder_is_stopped(
    girders: tuple[FaultStack, OtherGirder],
) -> None:
    first, second = girders
    held: list[Any] = [second.start_task("steady", 5, 1.0, 9)]
    first.kill("girder")
    held.append(second.start_task("add_one", 1))
    first.restart("girder")
    for job in second.wait_all(held):
        assert job["status"] == S.SUCCESS, second.log(job["_id"])
