"""What the tests of canceled jobs share: what they start, and what must hold afterwards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psutil
from fault_site import FaultStack, check_history, until

__all__ = [
    "BEATS",
    "CANCELED",
    "assert_history",
    "assert_whole",
    "beats",
    "is_alive",
    "is_over",
    "running_does",
]

CANCELED = ["QUEUED", "RUNNING", "CANCELING", "CANCELED"]

#: It writes each line to a file and to the log, until it is interrupted.
BEATS = """
import time
with open(path, "a") as out:
    try:
        for n in range(100_000):
            print(n, file=out, flush=True)
            if not silent:
                print("line", n)
            time.sleep(0.02)
    finally:
        print("over", file=out)
        if not silent:
            print("last words")
"""


def beats(path: Path) -> list[str]:
    """Return what BEATS has written."""
    return path.read_text().splitlines() if path.exists() else []


def is_over(path: Path) -> bool:
    """Say whether BEATS has ended by itself."""
    return beats(path)[-1:] == ["over"]


def is_alive(pid: int) -> bool:
    """Say whether a process is there, and has not ended."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def running_does(stack: FaultStack, code: str, user: Any = None, **given: Any) -> str:
    """Start code in a worker, and return the id of its job when it has printed something."""

    def start() -> str:
        from my_worker_tasks import does

        return str(does.apply_async((code,), given).id)

    job_id = str(stack.call(start, user=user))
    until(lambda: stack.log(job_id))
    return job_id


def assert_history(job: dict[str, Any], expected: list[str] | None = None) -> None:
    """Check the states that an ended job went through, by default those of a canceled one."""
    check_history(job, expected or CANCELED)


def assert_whole(log: str, path: Path) -> None:
    """Check that all that BEATS has printed is in the log of its job."""
    numbers = [int(n) for n in re.findall(r"^line (\d+)$", log, re.MULTILINE)]
    written = len(beats(path)) - 1
    # The interruption may have come between the two.
    assert numbers in (list(range(written)), list(range(written - 1)))
    assert log.endswith("last words\nThe job was canceled.\n")
