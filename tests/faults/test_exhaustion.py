"""Workers that run out of memory or of disk."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from girder_dask.jobs import JobStatus
from girder_dask.standalone.stack_part import Part
from tests.support.fault_site import FaultStack, states

S = JobStatus
Start = Callable[..., FaultStack]
SHARED = "/dev/shm"  # noqa: S108 - it is asked how large it is

# At most 2 GiB, if nobody ends it.
EATS = """
import time
path = self.work_dir / "half.txt"
path.write_text("of a result")
print("wrote", path)
time.sleep(1.0)
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
    job = stack.wait(job_id, 90)
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
    # No file is left of either attempt.
    wrote = [Path(path) for path in re.findall(r"^wrote (\S+)$", log, re.MULTILINE)]
    assert len(set(wrote)) == 2, log
    assert not any(path.exists() for path in wrote)
    assert list(stack.directory.rglob(f"job-{job_id}-*")) == []


@pytest.mark.parametrize("limited", [False, pytest.param(True, marks=pytest.mark.long)])
def test_disk_full_during_a_download(fault_stack: Start, limited: bool) -> None:
    """The disk is full, or the system lets the worker write no larger files."""
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

    with contextlib.ExitStack() as over:
        disk = limited_files(stack) if limited else over.enter_context(small_disk(stack))
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


class Disk:
    """Where a worker has its files: a file system of a few MiB.

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


class LimitedFiles(Disk):
    """The directory of a stack, where a process may make no file larger than 1 MiB.

    It is told of that when it writes, as on a disk that is full, in another word.
    """

    def __init__(self, path: Path, process: psutil.Process) -> None:
        super().__init__(path)
        self._process = process

    def leave(self, room: int | None) -> None:
        """Set the limit, or take it away."""
        most = psutil.RLIM_INFINITY if room is None else 1 << 20
        self._process.rlimit(psutil.RLIMIT_FSIZE, (most, psutil.RLIM_INFINITY))


def limited_files(stack: FaultStack) -> Disk:
    return LimitedFiles(stack.directory, stack.worker_process("worker-0"))


@contextlib.contextmanager
def small_disk(stack: FaultStack) -> Iterator[Disk]:
    """Start the worker again with all of its files on a small disk, a tmpfs.

    It is mounted for the worker alone, in a namespace, for which no privileges are needed on
    most systems. Where that is forbidden, root or sudo mounts it for all to see. In a container
    that may do neither, it is the small one that it has for shared memory.
    """
    place = stack.directory / "disk"
    place.mkdir(exist_ok=True)
    tmpfs = ["mount", "-t", "tmpfs", "-o"]
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    script = f'{" ".join(tmpfs)} size=6m tmpfs "$0" && exec "$@"'
    sudo = [] if os.getuid() == 0 else ["sudo", "-n"]
    options = f"size=6m,mode=700,uid={os.getuid()},gid={os.getgid()}"
    if works(*alone, "sh", "-c", script, place, "true"):
        part = move_worker(stack, place, *alone, "sh", "-c", script, str(place))
        yield Disk(Path(f"/proc/{part.pid}/root{place}"))
    elif works(*sudo, *tmpfs, options, "tmpfs", place):
        try:
            move_worker(stack, place)
            yield Disk(place)
        finally:
            stack.kill("worker-0")
            assert works(*sudo, "umount", place)
    elif shutil.disk_usage(SHARED).total <= 256 << 20:
        with tempfile.TemporaryDirectory(dir=SHARED) as shared:
            move_worker(stack, Path(shared))
            yield Disk(Path(shared))
            stack.kill("worker-0")
    else:
        warnings.warn("no small disk can be had here: a limit for files is taken", stacklevel=2)
        yield limited_files(stack)


def works(*command: str | Path) -> bool:
    """Run a command, and say whether it worked."""
    try:
        return subprocess.run(command).returncode == 0
    except FileNotFoundError:
        return False


def move_worker(stack: FaultStack, place: Path, *prefix: str) -> Part:
    """Start the worker again with its files in a place."""
    part = stack.part("worker-0")
    part.env["DASK_GIRDER__WORKER__CACHE_DIRECTORY"] = str(place / "cache")
    part.command[part.command.index("--local-directory") + 1] = str(place / "workers")
    part.command = [*prefix, *part.command]
    stack.kill("worker-0")
    stack.restart("worker-0")
    return part
