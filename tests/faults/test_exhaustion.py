"""Workers that run out of memory or of disk."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

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

    with small_disk(stack, "worker-0") as disk:
        worker = stack.worker_process("worker-0")
        other = stack.start_task("steady", 10, 1.0)
        # First there is room for a part of it, then for nothing.
        for room in (1 << 20, 0):
            disk.leave(room)
            job_id = fetch(large["_id"])
            job = stack.wait(job_id)
            assert states(job) == ["QUEUED", "FETCHING_INPUT", "ERROR"], stack.log(job_id)
            assert stack.log(job_id).endswith(
                f"GirderFileId('{large['_id']}'): The disk of the worker is full: there was no "
                "room for large.bin (4,194,304 bytes). Ask the operator for space, or use a "
                "smaller file.\n"
            )
            assert list(disk.path.rglob("large.bin")) == []
            assert list(disk.path.rglob(f"job-{job_id}-*")) == []
            assert list(disk.path.glob(f"cache/*-{4 << 20}")) == []
            assert disk.free > room - 64 * 1024  # what keeps the accounts

        assert stack.wait(other)["status"] == S.SUCCESS
        disk.leave(1 << 20)
        assert stack.wait(fetch(small["_id"]))["status"] == S.SUCCESS
        disk.leave(None)
        assert stack.wait(fetch(large["_id"]))["status"] == S.SUCCESS
        assert (disk.path / "cache" / "bytes").read_text() == str((4 << 20) + 1000)
        assert stack.worker_process("worker-0") == worker


class SmallDisk:
    """A file system of 6 MiB on which a worker has all of its files.

    ``path`` is where the test sees it, which need not be where the worker does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def free(self) -> int:
        """The bytes that can still be written."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def leave(self, room: int | None) -> None:
        """Fill it up until so much is left, None for all that the worker does not take."""
        ballast = self.path / "ballast"
        ballast.unlink(missing_ok=True)
        if room is not None:
            with ballast.open("wb") as out:
                os.posix_fallocate(out.fileno(), 0, self.free - room)
            assert self.free == room


@contextlib.contextmanager
def small_disk(stack: FaultStack, name: str) -> Iterator[SmallDisk]:
    """Start a worker again with all of its files on a small disk, a tmpfs.

    The worker has a mount of its own, in a namespace, for which no privileges are needed on
    most systems. Where that is forbidden, root or sudo mounts it for all to see.
    """
    place = stack.directory / "disk"
    place.mkdir()
    part = stack.part(name)
    part.env["DASK_GIRDER__WORKER__CACHE_DIRECTORY"] = str(place / "cache")
    part.command[part.command.index("--local-directory") + 1] = str(place / "workers")
    tmpfs = ["mount", "-t", "tmpfs", "-o"]
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    script = f'{" ".join(tmpfs)} size=6m tmpfs "$0" && exec "$@"'
    if subprocess.run([*alone, "sh", "-c", script, place, "true"]).returncode == 0:
        part.command = [*alone, "sh", "-c", script, str(place), *part.command]
        stack.kill(name)
        stack.restart(name)
        yield SmallDisk(Path(f"/proc/{part.pid}/root{place}"))
        return
    sudo = [] if os.getuid() == 0 else ["sudo", "-n"]
    options = f"size=6m,mode=700,uid={os.getuid()},gid={os.getgid()}"
    subprocess.run([*sudo, *tmpfs, options, "tmpfs", place], check=True)
    try:
        stack.kill(name)
        stack.restart(name)
        yield SmallDisk(place)
    finally:
        stack.kill(name)
        subprocess.run([*sudo, "umount", place], check=True)


@pytest.mark.long
def test_file_too_large_during_a_download(fault_stack: Start) -> None:
    """What the system allows the worker to write into one file is less than its disk has."""
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
