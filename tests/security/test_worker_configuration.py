"""Removal of the scheduler's credential from workers that were given it."""

from __future__ import annotations

import gzip
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from distributed import Client


def test_a_worker_lets_the_credential_of_the_scheduler_go(
    girder_stack: Any, tmp_path: Path
) -> None:
    key, name = secrets.token_hex(32), f"careless-{secrets.token_hex(4)}"
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "dask.yaml").write_text(f"girder: {{credential: {key}}}")
    environment = {
        **os.environ,
        "DASK_CONFIG": str(tmp_path / "config"),
        "DASK_GIRDER__CREDENTIAL": key,
    }
    program = [sys.executable, "-m", "distributed.cli.dask_worker", girder_stack.scheduler]
    options = ["--no-nanny", "--name", name, "--nthreads", "1", "--resources", "CARELESS=1"]
    log = tmp_path / "log"
    with log.open("wb") as out:
        worker = subprocess.Popen(
            [*program, *options, "--local-directory", str(tmp_path)],
            env=environment,
            stdout=out,
            stderr=out,
        )

    def look() -> tuple[Any, Any, bool]:
        import os

        import dask.config

        held = dask.config.get("girder.credential", None), os.environ.get("DASK_GIRDER__CREDENTIAL")
        return *held, dask.config.get("girder.api-url", None) is None

    try:
        with Client(girder_stack.scheduler, set_as_default=False) as client:
            deadline = time.monotonic() + 90
            while "and was removed" not in log.read_text():
                assert worker.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            seen = client.submit(look, resources={"CARELESS": 1}, pure=False).result(timeout=30)
            assert seen == (None, None, True)
            client.dump_cluster_state(str(tmp_path / "state"))
        assert key.encode() not in gzip.decompress((tmp_path / "state.msgpack.gz").read_bytes())
        assert key not in log.read_text()
    finally:
        worker.terminate()
        worker.wait(20)
