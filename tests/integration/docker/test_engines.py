"""The container engines that the tests start."""

from __future__ import annotations

import stat
from typing import Any

import pytest

from tests.support.docker_engine import IMAGE, worker_settings

ENGINES = ["docker_engine", "podman_engine"]


@pytest.mark.parametrize("fixture", ENGINES)
def test_an_engine_runs_a_container(fixture: str, request: pytest.FixtureRequest) -> None:
    engine = request.getfixturevalue(fixture)
    assert stat.S_ISSOCK(engine.socket.stat().st_mode)
    command = ["/bin/sh", "-c", "echo said; exit 3"]
    wanted = {"Image": IMAGE, "Cmd": command, "HostConfig": {"NetworkMode": "none"}}
    status, body = engine.request("POST", "/containers/create", wanted)
    assert status == 201, body
    container = next(each["Id"] for each in engine.containers())
    try:
        assert engine.request("POST", f"/containers/{container}/start")[0] == 204
        status, body = engine.request("POST", f"/containers/{container}/wait")
        assert b'"StatusCode":3' in body
        assert b"said" in engine.request("GET", f"/containers/{container}/logs?stdout=1")[1]
    finally:
        engine.request("DELETE", f"/containers/{container}?force=1")
    assert engine.containers() == []


def test_worker_settings_are_those_of_the_block(girder_stack: Any) -> None:
    from distributed import Client

    def read() -> tuple[str | None, str | None]:
        import os

        import dask

        return os.environ.get("A_VARIABLE"), dask.config.get("girder.a-setting", None)

    with Client(girder_stack.scheduler, set_as_default=False) as client:
        before = set(client.run(read).values())
        with worker_settings(girder_stack, {"A_VARIABLE": "1"}, {"girder.a-setting": "2"}):
            assert set(client.run(read).values()) == {("1", "2")}
        assert before == set(client.run(read).values()) == {(None, None)}
