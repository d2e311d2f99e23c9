"""``dask scheduler`` with our hooks and a wrong configuration, as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dask
import pytest

from girder_dask.errors import GirderDaskError
from girder_dask.scheduler_hooks import dask_setup

GIRDER = {"DASK_GIRDER__API_URL": "http://127.0.0.1:9/api/v1"}


def start(*options: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Start a scheduler that is expected to end."""
    return subprocess.run(
        [sys.executable, "-m", "dask", "scheduler", "--port", "0",
         "--dashboard-address", "127.0.0.1:0", *options],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip


@pytest.fixture
def dask_config(tmp_path: Path) -> str:
    """A file for DASK_CONFIG that loads the hooks, as that of a site."""
    path = tmp_path / "dask.yaml"
    path.write_text("distributed: {scheduler: {preload: [girder_dask.scheduler_hooks]}}\n")
    return str(path)


@pytest.mark.parametrize(
    ("host", "settings", "said"),
    [
        (
            "127.0.0.1",
            {**GIRDER, "DASK_GIRDER__CREDENTIAL_FILE": "/nowhere/key"},
            "cannot be read from /nowhere/key (No such file or directory)",
        ),
        (
            "127.0.0.1",
            {
                **GIRDER,
                "DASK_GIRDER__CREDENTIAL": "x",
                "DASK_GIRDER__SCHEDULER__PULL_INTERVAL": "soon",
            },
            "girder.scheduler.pull-interval is 'soon'",
        ),
        (
            "0.0.0.0",  # noqa: S104 - it is refused
            {**GIRDER, "DASK_GIRDER__CREDENTIAL": "x"},
            "set girder.security.allow-insecure: true",
        ),
    ],
)
def test_scheduler_with_a_wrong_configuration_ends_with_one_line(
    dask_config: str, host: str, settings: dict[str, str], said: str
) -> None:
    done = start("--host", host, DASK_CONFIG=dask_config, **settings)
    assert done.returncode == os.EX_CONFIG, done.stderr
    lines = [line for line in done.stderr.splitlines() if " - INFO - " not in line]
    assert len(lines) == 1, done.stderr
    assert said in lines[0]


async def test_scheduler_in_another_program_goes_on_without_hooks(
    dask_config: str, caplog: pytest.LogCaptureFixture
) -> None:
    from distributed import Client, Scheduler

    hooks = "girder_dask.scheduler_hooks"
    async with Scheduler(host="127.0.0.1", port=0, dashboard=False, preload=[hooks]) as scheduler:
        assert "girder-dask" not in {str(name) for name in scheduler.plugins}
        assert "girder.api-url is not set" in caplog.text
        with pytest.raises(GirderDaskError, match=r"girder\.api-url is not set"):
            dask_setup(scheduler)
        with (
            dask.config.set({"girder.api-url": GIRDER["DASK_GIRDER__API_URL"]}),
            pytest.raises(GirderDaskError, match="has no credential"),
        ):
            dask_setup(scheduler)
        async with Client(scheduler.address, asynchronous=True) as client:
            assert await client.run_on_scheduler(lambda: 7) == 7
