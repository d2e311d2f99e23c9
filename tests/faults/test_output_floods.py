"""A task that prints a gigabyte, a line of 50 MB, or a hundred thousand updates a second."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from girder_dask.jobs import JobStatus
from tests.support.fault_site import FaultStack, until

if TYPE_CHECKING:
    from typing_extensions import Self

pytestmark = pytest.mark.timeout(900)

MIB = 1024**2
S = JobStatus

# What the field of a job document holds of a log that is longer: of its beginning, of its end.
SHOWN, END = 8 * MIB, 64 * 1024

FLOOD = """
import sys
filler = "x" * 1000
for start in range(0, lines, 64):
    text = "".join(f"line {n} {filler}\\n" for n in range(start, min(start + 64, lines)))
    sys.stdout.write(text)
raise ValueError("the flood is over")
"""


class Watch:
    """Looks at a stack while something happens: does it answer, and how large does it get?"""

    def __init__(self, stack: FaultStack) -> None:
        self._stack = stack
        self._over = threading.Event()
        self._processes = stack.processes()
        self._before: dict[str, int] = {}
        self.grown = dict.fromkeys(self._processes, 0)
        self._errors: list[Exception] = []
        self._usual = 0.0
        self.answers: list[float] = []
        self.jobs: list[float] = []
        self._threads = [
            threading.Thread(target=self._repeat, args=(what, seconds))
            for what, seconds in ((self._look, 0.1), (self._run_small_job, 0.5))
        ]

    def __enter__(self) -> Self:
        # The first job of a worker imports what later ones need.
        self._stack.wait_all([self._stack.start_task("steady", 1, 0.3) for _ in range(4)])
        self._run_small_job()
        self._usual = self.jobs.pop()
        self._before = {n: p.memory_info().rss for n, p in self._processes.items()}
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        assert not self._errors, self._errors

    def check_answers(self) -> None:
        """Check that Girder answered, and that small jobs ran, as on this machine they do.

        Other processes may hold up one in ten of them.
        """
        assert ninth_of_ten(self.answers) < 2
        assert max(self.answers) < 15
        assert ninth_of_ten(self.jobs) < max(5, 10 * self._usual)
        assert max(self.jobs, default=0) < max(15, 30 * self._usual)

    def _repeat(self, what: Callable[[], None], pause: float) -> None:
        while not self._over.wait(pause) and not self._errors:
            try:
                what()
            except Exception as e:  # noqa: BLE001 - whatever it is, the test fails with it
                self._errors.append(e)

    def _look(self) -> None:
        begun = time.monotonic()
        requests.get(f"{self._stack.api}/system/version", timeout=60).raise_for_status()
        self.answers.append(time.monotonic() - begun)
        for name, process in self._processes.items():
            grown = process.memory_info().rss - self._before[name]
            self.grown[name] = max(self.grown[name], grown)

    def _run_small_job(self) -> None:
        begun = time.monotonic()
        self._stack.wait(self._stack.start_task("steady", 1), 60, S.SUCCESS)
        self.jobs.append(time.monotonic() - begun)


def ninth_of_ten(seconds: Sequence[float]) -> float:
    """Return what nine of ten times do not exceed, 0 if there are none."""
    return sorted(seconds)[(9 * len(seconds) - 1) // 10] if seconds else 0.0


def whole_log(stack: FaultStack, job_id: str) -> bytes:
    url = f"{stack.api}/dask/job/{job_id}/log"
    answer = requests.get(url, headers={"Girder-Token": stack.admin.token}, timeout=120)
    answer.raise_for_status()
    return answer.content


def shown_log(stack: FaultStack, job_id: str, whole: bytes) -> str:
    """Return the field ``log`` of the document, and check its size, its mark, and its two parts.

    ``whole`` is all that is kept of the log.
    """

    def measure() -> int:
        from bson import ObjectId
        from girder_jobs.models.job import Job

        size = {"$sum": {"$map": {"input": "$log", "in": {"$strLenBytes": "$$this"}}}}
        steps = [{"$match": {"_id": ObjectId(job_id)}}, {"$project": {"size": size}}]
        (found,) = Job().collection.aggregate(steps)
        return int(found["size"])

    shown = stack.log(job_id)
    assert len(shown.encode()) == stack.call(measure)
    mark = re.compile(
        r"\n\[Only the first 8 MiB of this log, and its end when the job has ended, are shown "
        rf"here\. The whole log: GET dask/job/{job_id}/log, or "
        rf"JobResult\('{job_id}'\)\.log\(\)\.\]\n"
    )
    head, end = (text.encode() for text in mark.split(shown))  # it is there once
    assert SHOWN - 1000 < len(head) <= SHOWN
    assert 0 < len(end) <= END
    assert len(shown.encode()) < SHOWN + END + 1000
    assert whole.startswith(head)
    assert whole.endswith(end)
    return shown


def flood(stack: FaultStack, megabytes: int, most: int) -> None:
    lines = megabytes * 1000
    with Watch(stack) as watch:
        begun = time.monotonic()
        job_id = stack.start_task("does", FLOOD, girder_job_title="Flood", kwargs={"lines": lines})
        stack.wait_all([job_id], 600)
        took = time.monotonic() - begun
    print(
        f"{megabytes} MB took {took:.1f} s; answers {max(watch.answers):.2f} s at most, small jobs "
        f"{max(watch.jobs):.2f} s; grown by {watch.grown}"
    )
    assert len(watch.jobs) > 3
    watch.check_answers()
    assert watch.grown["girder"] < 300 * MIB
    assert all(grown < 150 * MIB for name, grown in watch.grown.items() if name != "girder")
    begun = time.monotonic()
    whole = whole_log(stack, job_id)
    print(f"The log of {len(whole):,} bytes was read in {time.monotonic() - begun:.1f} s")
    assert most < len(whole) < most + MIB
    assert shown_log(stack, job_id, whole).endswith("ValueError: the flood is over\n")
    check_whole(whole.decode(), lines)


def check_whole(text: str, lines: int) -> None:
    """Check that all is there but for one gap, and that the gap is as large as is said."""
    numbers = [int(n) for n in re.findall(r"^line (\d+) x{1000}$", text, re.MULTILINE)]
    gaps = [n for n, after in itertools.pairwise(numbers) if after != n + 1]
    assert (numbers[0], numbers[-1]) == (0, lines - 1)
    assert len(gaps) == 1, gaps
    said = re.compile(r"\n\[This log has reached .*\]\n\[([\d,]+) bytes .* left out here\.\]\n")
    before, left_out, after = said.split(text)
    output = f"line {lines - 1} " + "x" * 1000 + "\n"
    after = after[: after.index(output) + len(output)]
    written = sum(len(f"line {n} ") + 1001 for n in range(lines))
    assert len(before) + int(left_out.replace(",", "")) + len(after) == written
    assert text.endswith("ValueError: the flood is over\n")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultStack]:
    env = {"DASK_GIRDER__MAX_LOG": "64 MiB"}
    with FaultStack(tmp_path_factory.mktemp("floods"), env=env, girder_env=env) as stack:
        yield stack


def test_a_task_that_prints_a_gigabyte(stack: FaultStack) -> None:
    flood(stack, 300, 64 * MIB)


@pytest.mark.long
def test_a_task_that_prints_a_whole_gigabyte(fault_stack: Callable[..., FaultStack]) -> None:
    flood(fault_stack(own=True), 1000, 256 * MIB)


SUBPROCESS = """
import subprocess, sys
program = "for n in range(300_000): print(f'line {n} ' + 'x' * 1000)"
subprocess.run([sys.executable, "-c", program], check=True)
raise ValueError("the flood is over")
"""


def test_a_subprocess_that_prints_a_gigabyte(stack: FaultStack) -> None:
    with Watch(stack) as watch:
        job_id = stack.start_task("does", SUBPROCESS)
        stack.wait_all([job_id], 600)
    check_whole(whole_log(stack, job_id).decode(), 300_000)
    watch.check_answers()


# It begins when there is a file for that, and keeps a note of how far it has come.
FLOOD_NOTED = """
import os, sys, time
while not os.path.exists(signal):
    time.sleep(0.05)
filler = "x" * 1000
note = os.open(notes, os.O_WRONLY | os.O_CREAT)
for start in range(0, lines, 64):
    text = "".join(f"line {n} {filler}\\n" for n in range(start, min(start + 64, lines)))
    sys.stdout.write(text)
    os.pwrite(note, b"%12d" % (start + 64), 0)
"""


def test_floods_while_girder_is_down_fill_no_memory(
    fault_stack: Callable[..., FaultStack], tmp_path: Path
) -> None:
    """The scheduler keeps what its buffer holds, the workers little, and then tasks wait."""
    buffer, jobs, lines = 8 * MIB, 8, 16_000
    env = {"DASK_GIRDER__SCHEDULER__BUFFER": str(buffer)}
    stack = fault_stack(workers=2, threads=jobs // 2, env=env, own=True)
    signal = tmp_path / "signal"
    floods = []
    for n in range(jobs):
        given = {"lines": lines, "signal": str(signal), "notes": str(tmp_path / f"notes-{n}")}
        floods.append(stack.start_task("does", FLOOD_NOTED, kwargs=given))
    until(lambda: {job["status"] for job in stack.all_jobs(floods)} == {S.RUNNING})

    def written() -> int:
        """Return how many lines all of them have written, a thousand bytes each."""
        return sum(int(path.read_text() or 0) for path in tmp_path.glob("notes-*"))

    processes = stack.processes()
    del processes["girder"]
    before = {name: process.memory_info().rss for name, process in processes.items()}
    grown = dict.fromkeys(processes, 0)

    def is_still(seconds: float = 3) -> bool:
        """Look at the memory for some seconds, and say whether nobody writes meanwhile."""
        at_first, over = written(), time.monotonic() + seconds
        while time.monotonic() < over:
            time.sleep(0.1)
            for name, process in processes.items():
                grown[name] = max(grown[name], process.memory_info().rss - before[name])
        return written() == at_first > 0

    stack.kill("girder")
    signal.touch()
    until(is_still, 60)
    kept = written()
    print(f"{kept:,} lines of {jobs * lines:,} were written meanwhile; grown by {grown}")
    # The buffer, and what waits of each job at its worker (girder.worker.log-buffer, 4 MiB).
    assert kept * 1000 < buffer + jobs * 6 * MIB
    # Text is kept once, besides a request of 8 MiB at most that is retried.
    assert grown["scheduler"] < buffer + 40 * MIB
    for name in ("worker-0", "worker-1"):
        assert grown[name] < jobs // 2 * 6 * MIB + 16 * MIB

    stack.restart("girder")
    jobs_then = stack.wait_all(floods, 600)
    assert {job["status"] for job in jobs_then} == {S.SUCCESS}
    for job_id in floods:
        text = whole_log(stack, job_id).decode()
        numbers = [int(n) for n in re.findall(r"^line (\d+) x{1000}$", text, re.MULTILINE)]
        assert numbers == list(range(lines))


LINE = """
print("begin")
print("ä" * 10_000_000 + "x" * 30_000_000)
print("end")
"""


def test_a_line_of_50_mb(stack: FaultStack) -> None:
    with Watch(stack) as watch:
        job_id = stack.start_task("does", LINE)
        (job,) = stack.wait_all([job_id])
    assert job["status"] == S.SUCCESS
    watch.check_answers()
    expected = b"begin\n" + "ä".encode() * 10_000_000 + b"x" * 30_000_000 + b"\nend\n"
    whole = whole_log(stack, job_id)
    assert len(whole) == len(expected) == 50_000_000 + len("begin\n\nend\n")
    assert whole == expected
    assert shown_log(stack, job_id, whole).endswith("x\nend\n")


# The loop is run by turns with the job and with somebody who does nothing, on whatever else the
# machine does meanwhile. Of each it is told how many rounds there were, and the seconds and the
# processor's seconds that they took.
PROGRESS = """
import time

class Nobody:
    def updateProgress(self, **given):
        pass

told = {"job": [0, 0.0, 0.0], "nobody": [0, 0.0, 0.0]}

def update(name, manager):
    count, began, cpu = told[name][0], time.monotonic(), time.thread_time()
    while time.monotonic() < began + 0.1:
        count += 1
        manager.updateProgress(total=1e9, current=count, message=f"step {count}", forceFlush=FORCED)
    told[name][0] = count
    told[name][1] += time.monotonic() - began
    told[name][2] += time.thread_time() - cpu

for _ in range(10):
    update("nobody", Nobody())
    update("job", self.job_manager)
result = told
"""

# Updates in a second of a processor.
RATE = 100_000
# The share of a processor that who reports has, of that which who does not report has.
FAIR = 0.4


@pytest.mark.parametrize("forced", [False, True], ids=["", "forced"])
@pytest.mark.parametrize("task", ["does", "process"])
def test_a_hundred_thousand_progress_updates_a_second(
    stack: FaultStack, task: str, forced: bool
) -> None:
    count_of_requests = stack.count_requests("/dask/job/updates")
    with Watch(stack) as watch:
        begun, earlier_requests = time.monotonic(), count_of_requests()
        job_id = stack.start_task(task, PROGRESS.replace("FORCED", str(forced)))
        (job,) = stack.wait_all([job_id])
        took = time.monotonic() - begun
        requests_made = count_of_requests() - earlier_requests
    told = value_of(stack, job_id)
    (count, seconds, cpu), (rounds, nobodys, nobodys_cpu) = told["job"], told["nobody"]
    fair = (cpu / seconds) / (nobodys_cpu / nobodys)
    sequence = job["dask"]["sequence"]
    print(
        f"{task} {forced}: {count / seconds:,.0f} a second, {count / cpu:,.0f} a second of a "
        f"processor (nobody: {rounds / nobodys_cpu:,.0f}), {fair:.2f} of its share; {sequence} "
        f"updates, {requests_made} requests in {took:.1f} s; grown by {watch.grown}; {watch.jobs}"
    )
    assert count / cpu > RATE
    assert fair > FAIR, "it is not made to wait"
    last = {"total": 1e9, "current": count, "message": f"step {count}"}
    assert job["progress"] == last
    # Five in a second go on for as long as there is something to say; a change of state is more.
    assert sequence <= requests_made <= 5 * took + 10 + 3 * (len(watch.jobs) + 1)
    assert sequence < 5 * took + 10
    assert all(grown < 8 * MIB for grown in watch.grown.values())
    watch.check_answers()


def value_of(stack: FaultStack, job_id: str) -> dict[str, list[float]]:
    """Return the value of a job."""

    def get() -> dict[str, list[float]]:
        from girder_dask import JobResult

        return dict(JobResult(job_id).get(timeout=30))

    return dict(stack.call(get))
