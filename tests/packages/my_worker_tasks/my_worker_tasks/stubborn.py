"""Tasks that start processes, and tasks that cannot be stopped."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

from girder_dask import task

__all__ = ["breeds", "frozen"]

# It ignores SIGTERM, and has a child in a session of its own whose parent goes at once.
_CHILD = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
directory, deaf = sys.argv[1:]
orphan = (
    "import os, sys, time; open(os.path.join(sys.argv[1], str(os.getpid())), 'w'); time.sleep(600)"
)
subprocess.run(
    ["sh", "-c", '"$0" -c "$1" "$2" &', sys.executable, orphan, directory], start_new_session=True
)
open(os.path.join(directory, str(os.getpid())), "w")
time.sleep(600)
"""


def _breeds(directory: str) -> None:
    # A shell that leaves at SIGTERM, so that its child has no parent then.
    script = '"$0" -c "$1" "$2" deaf & wait'
    (Path(directory) / str(os.getpid())).touch()
    subprocess.run(["sh", "-c", script, sys.executable, _CHILD, directory], check=False)


@task
def breeds(directory: str) -> None:
    """Start processes that start others; each makes a file with the name of its id."""
    _breeds(directory)


@task
def frozen(seconds: float) -> str:
    """Wait in C code."""
    print("frozen")
    select.select([], [], [], seconds)
    return "thawed"
