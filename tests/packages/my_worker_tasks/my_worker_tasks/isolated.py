"""Tasks for which a thread of the worker is not enough."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from girder_dask import current_job, task

_C = ctypes.CDLL(None)


@task(isolation="process")
def speaks(n: int) -> int:
    """Write ``n`` times a line from Python, the descriptor, C and a subprocess; return the pid."""
    for i in range(n):
        print(f"python {i}")
        os.write(1, f"descriptor {i}\n".encode())
        _C.puts(f"c {i}".encode())
        subprocess.run(["echo", f"subprocess {i}"], check=True)
    return os.getpid()


@task(bind=True, isolation="process")
def process(self: Any, code: str) -> Any:
    """Run Python code that may set ``result``; it sees the job as ``self``."""
    names = {"self": self, "os": os, "sys": sys, "time": time, "subprocess": subprocess, "c": _C}
    print("begun", flush=True)
    exec(code, names)  # noqa: S102 - a test says what
    return names.get("result")


@task(isolation="process")
def parents(path: str) -> None:
    """Start two generations of processes, write their ids to ``path``, and wait for ever."""
    # The second has left the group, and its parent is gone.
    code = (
        "import subprocess, sys; p = subprocess.Popen(['sleep', '1000'], start_new_session=True, "
        "stdout=subprocess.DEVNULL); print(p.pid)"
    )
    first = subprocess.Popen(["sleep", "1000"])
    second = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    file = Path(path)
    file.with_suffix(".new").write_text(f"{os.getpid()} {first.pid} {int(second.stdout)}\n")
    file.with_suffix(".new").rename(file)
    first.wait()


@task
def starts_children(values: list[int]) -> list[Any]:
    """Start a job of ``my_task`` for each value, and return the ids of these jobs."""
    from my_worker_tasks import my_task

    return [my_task.delay(value, girder_job_title=f"Child {value}").id for value in values]


@task
def which_gpus(path: str, others: int) -> dict[str, Any]:
    """Say which GPUs this run has, while ``others`` more do the same in the directory ``path``."""
    (Path(path) / str(current_job().id)).touch()
    deadline = time.monotonic() + 60
    while len(list(Path(path).iterdir())) <= others and time.monotonic() < deadline:
        time.sleep(0.01)
    shown = subprocess.run(
        ["sh", "-c", "echo $CUDA_VISIBLE_DEVICES"], stdout=subprocess.PIPE, text=True, check=True
    )
    return {
        "pid": os.getpid(),
        "gpus": list(current_job().request.gpus),
        "environment": os.environ["CUDA_VISIBLE_DEVICES"],
        "subprocess": shown.stdout.strip(),
    }
