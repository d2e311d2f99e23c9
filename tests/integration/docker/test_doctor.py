"""What ``girder-dask doctor`` says about container engines."""

from __future__ import annotations

from typing import Any

from girder_dask.jobs import JobStatus
from tests.integration.docker.conftest import Containers
from tests.integration.test_doctor_command import doctor

_CHECK = "The workers have the container engines that jobs need"


def test_doctor_says_which_workers_have_an_engine(
    containers: Containers, girder_stack: Any, settings: Any
) -> None:
    options = ("--scheduler", girder_stack.scheduler, "--api-url", girder_stack.api)
    code, checks = doctor(*options)
    name = containers.engine.name.title()
    assert checks[_CHECK]["detail"].startswith(f"{name} ")
    assert "none on" not in checks[_CHECK]["detail"]
    assert code == 0
    waiting = containers.start("true", options={"resources": {"nowhere": 1}})
    assert doctor(*options)[1][_CHECK]["ok"]
    settings(engine="none")
    code, checks = doctor(*options)
    assert code == 1
    problem = checks[_CHECK]["problem"]
    assert problem.startswith("1 unfinished job needs one, and tcp://")
    assert "This worker runs no containers (girder.docker.engine)" in problem
    girder_stack.admin.put(f"job/{waiting}/cancel")
    containers.wait(waiting, JobStatus.CANCELED)
    code, checks = doctor(*options)
    assert (code, checks[_CHECK]["ok"]) == (0, True)
    settings(engine="unix:///nowhere/docker.sock")
    code, checks = doctor(*options)
    failed = [check for check in checks.values() if not check["ok"]]
    assert code == 1
    assert {check["failure"].partition(" tcp://")[0] for check in failed} == {
        "The container engine of worker"
    }
    assert "There is no container engine at /nowhere/docker.sock" in failed[0]["problem"]
