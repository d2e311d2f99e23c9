"""``girder-dask doctor`` names each of many faults of a real site, with what to do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from girder_dask.standalone.authority import Authority
from girder_dask.standalone.stack_part import Part
from tests.support.deadline import until
from tests.support.fault_site import FaultStack

Checks = dict[str, dict[str, Any]]


def break_girder() -> None:
    """Make claims fail, and change the clock and the space that the diagnostics see.

    Run in Girder.
    """
    import time
    import types

    from girder_dask import diagnostics
    from girder_dask.plugin.store import claims

    def fail(*_args: Any) -> None:
        raise RuntimeError("the claim is broken")

    def full(_path: str) -> Any:
        return types.SimpleNamespace(free=3 * 1024**2, total=10 * 1024**3)

    claims.claim = fail  # type: ignore[assignment]
    diagnostics.time = types.SimpleNamespace(  # type: ignore[assignment]
        time=lambda: time.time() + 3600
    )
    diagnostics.shutil = types.SimpleNamespace(disk_usage=full)  # type: ignore[assignment]


def remove_assetstore() -> None:
    """Leave Girder without a current assetstore. Run in Girder."""
    from girder.models.assetstore import Assetstore

    Assetstore().update({}, {"$set": {"current": False}}, multi=True)


def broken_package(directory: Path) -> Path:
    """Write a package of tasks whose import fails, and return its directory."""
    metadata = directory / "broken_tasks-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-tasks\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[girder_dask.tasks]\nbroken = broken_tasks\n")
    (directory / "broken_tasks.py").write_text("import a_library_that_is_missing\n")
    return directory


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultStack]:
    """Give a stack with a Redis of its own, and one worker with a broken package."""
    place = tmp_path_factory.mktemp("doctor")
    worker_env = {"PYTHONPATH": str(broken_package(place / "packages"))}
    env = {"DASK_GIRDER__SCHEDULER__PULL_INTERVAL": "1s"}
    with FaultStack(place / "stack", 1, 1, env=env, worker_env=worker_env) as started:
        yield started


def doctor(*options: str, **env: str) -> tuple[int, Checks, str]:
    """Run the doctor; return its exit code, its checks by name, and what it writes of errors."""
    done = subprocess.run(
        [sys.executable, "-m", "girder_dask.cli", "doctor", "--json", *options],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **env},
    )
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    return done.returncode, checks, done.stderr


def add_open_worker(stack: FaultStack) -> None:
    """Start a worker whose HTTP server listens at all addresses."""
    first = stack.part("worker-0")
    command = [word.replace("worker-0", "worker-1") for word in first.command]
    where = command.index("--dashboard-address") + 1
    command[where] = "0.0.0.0:0"
    log = first.log.with_name("worker-1.log")
    env = {**first.env, "DASK_GIRDER__API_URL": f"{stack.girder}/other/api/v1"}
    part = Part(
        "worker-1",
        command,
        env=env,
        directory=log.parent,
        log=log,
        check=lambda: len(stack.registered_workers()) == 2,
    )
    part.start(stack._reaper)
    stack.parts.append(part)
    until(part.is_ready, 60)


def test_each_fault_of_a_site_is_named(stack: FaultStack, tmp_path: Path) -> None:
    add_open_worker(stack)
    stack.credential_file.chmod(0o644)
    stack.call(break_girder)
    stack.part("redis").kill()
    authority = Authority(tmp_path)
    authority.create()
    expired = authority.issue("client", days=-1)
    tls = "DASK_DISTRIBUTED__COMM__TLS__"
    env = {
        f"{tls}CA_FILE": str(authority.certificate),
        f"{tls}CLIENT__CERT": str(expired),
        f"{tls}CLIENT__KEY": str(expired.with_suffix(".key")),
    }

    def examine() -> tuple[int, Checks, str] | None:
        found = doctor("--scheduler", stack.scheduler, "--api-url", stack.girder, **env)
        # The scheduler learns of the claims when it claims next. It may be slow to answer at all.
        claims = found[1].get("The scheduler gets its jobs from Girder", {"ok": True})
        return None if claims["ok"] else found

    code, checks, errors = until(examine, 120)
    assert (code, errors) == (1, "")
    problems = {name: check["problem"] for name, check in checks.items() if not check["ok"]}
    workers = sorted(name.split()[1] for name in checks if name.endswith("keeps input files"))
    opened = [name for name in problems if name.startswith("The HTTP server of worker")]
    assert (len(workers), len(opened)) == (2, 1)
    assert problems.pop(opened[0]).startswith("whoever reaches 0.0.0.0:")
    assert "500" in problems.pop("The scheduler gets its jobs from Girder")
    readable = problems.pop("Other accounts cannot read the scheduler's credential")
    assert readable.startswith(f"{stack.credential_file} has mode 644")
    ahead = re.search(r"that of Girder is (\d+) s ahead", problems.pop("The clocks agree"))
    # The doctor does not know how long the answer was under way.
    assert ahead is not None
    assert 3500 < int(ahead[1]) <= 3600
    assert "0.0 of 10 GiB left" in problems.pop("There is space on the disks")
    assert problems.pop("Girder's Redis answers")
    assert "expired" in problems.pop("The TLS certificates of here are valid")
    assert "a_library_that_is_missing" in problems.pop("The tasks of broken_tasks can be imported")
    prefix = next(name for name in problems if name.endswith("reaches Girder"))
    assert "/other/api/v1, and /api/v1 at the scheduler" in problems.pop(prefix)
    assert problems == {}
    for check in checks.values():
        assert check["ok"] or check["remedy"], check["name"]

    stack.call(remove_assetstore)
    _, checks, _ = doctor("--scheduler", stack.scheduler, "--api-url", stack.girder)
    assert checks["Girder has an assetstore"]["problem"] == "jobs cannot store their outputs"
