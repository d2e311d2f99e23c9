"""A worker whose directory another user of the host could change ends at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any


def test_a_directory_that_others_may_replace_is_refused(girder_stack: Any, tmp_path: Path) -> None:
    shared = tmp_path / "guessed"
    shared.mkdir()
    shared.chmod(0o777)
    command = [sys.executable, "-m", "dask", "worker", girder_stack.scheduler, "--no-nanny"]
    done = subprocess.run(
        [*command, "--local-directory", str(shared), "--no-dashboard", "--nthreads", "1"],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert "is closed because its directory is not safe" in done.stderr
    assert f"others may write into {shared}" in done.stderr
    assert "--local-directory" in done.stderr
