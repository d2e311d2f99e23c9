"""Workers that run out of memory or of disk."""

from __future__ import annotations

import re
from collections.abc import Callable

import psutil
import pytest
from fault_site import FaultStack, states

from girder_dask.jobs import JobStatus

S = JobStatus
Start = Callable[..., FaultStack]

# At most 2 GiB, if nobody ends it.
EATS = """
import time
eaten = []
for i in range(200):
    eaten.append(bytes([i]) * (10 << 20))
    time.sleep(pause)
"""


@pytest.mark.parametrize(
    "pause",
    [
        pytest.param(0.02, id="slowly"),
        pytest.param(0.0, id="at once", marks=pytest.mark.long),
    ],
)
def test_worker_out_of_memory(fault_stack: Start, pause: float) -> None:
    env = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
    stack = fault_stack(workers=2, threads=1, env=env)
    stack.restart_with("worker-0", "--memory-limit", "400MiB", "--resources", "small=1")
    other = stack.start_task("steady", 40, 4.0)
    job_id = stack.start_task("does", EATS, kwargs={"pause": pause}, resources={"small": 1})
    job = stack.wait(job_id, 60)
    log = stack.log(job_id)

    assert states(job) == ["QUEUED", "RUNNING", "QUEUED", "RUNNING", "ERROR"], log
    reason = (
        r"its nanny ended it for using too much memory, [\d.]+ [MG]iB of its limit of 400\.00 MiB"
    )
    assert re.search(r"^Worker tcp\S+ was lost .* attempt 2\.$", log, re.MULTILINE)
    assert re.search(reason, log)
    error = log.splitlines()[-1]
    assert re.search(rf"Workers lost: tcp\S+ \({reason}\), tcp\S+ \({reason}\)\.$", error)
    # The worker and other jobs go on.
    assert stack.wait(other)["status"] == S.SUCCESS
    assert stack.numbered(other) == list(range(40))
    assert stack.wait(stack.start_task("noop", resources={"small": 1}))["status"] == S.SUCCESS


def test_disk_full_during_a_download(fault_stack: Start) -> None:
    stack = fault_stack(workers=1, threads=2)
    user = stack.create_user()
    folder = user.folder["_id"]
    large = stack.upload(b"x" * (4 << 20), "large.bin", client=user.client, folder=folder)
    small = stack.upload(b"x" * 1000, "small.bin", client=user.client, folder=folder)

    def fetch(file: str) -> str:
        def start() -> str:
            from my_worker_tasks import file_size

            from girder_dask.transforms import GirderFileId

            return str(file_size.delay(GirderFileId(file)).id)

        return str(stack.call(start, user=user))

    worker = stack.worker_process("worker-0")
    # What the worker writes into one file beyond 1 MiB fails like that on a full disk.
    worker.rlimit(psutil.RLIMIT_FSIZE, (1 << 20, psutil.RLIM_INFINITY))
    other = stack.start_task("steady", 10, 1.0)
    job_id = fetch(large["_id"])
    job = stack.wait(job_id)
    assert states(job) == ["QUEUED", "FETCHING_INPUT", "ERROR"]
    assert stack.log(job_id).endswith(
        f"GirderFileId('{large['_id']}'): The disk of the worker is full: there was no room for "
        "large.bin (4,194,304 bytes). Ask the operator for space, or use a smaller file.\n"
    )
    assert list(stack.directory.rglob("large.bin")) == []
    assert list((stack.directory / "workers").rglob(f"job-{job_id}-*")) == []
    cache = stack.directory / "cache"
    assert [e.name for e in cache.iterdir() if e.name.endswith(f"-{4 << 20}")] == []
    assert (cache / "bytes").read_text() == "0"

    assert stack.wait(other)["status"] == S.SUCCESS
    assert stack.wait(fetch(small["_id"]))["status"] == S.SUCCESS
    worker.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
    assert stack.wait(fetch(large["_id"]))["status"] == S.SUCCESS
    assert stack.worker_process("worker-0") == worker
