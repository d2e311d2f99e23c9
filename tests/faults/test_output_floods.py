"""A task that prints a gigabyte, a line of 50 MB, or a hundred thousand updates a second."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import requests
from fault_site import FaultStack, until

from girder_dask.jobs import JobStatus

if TYPE_CHECKING:
    from typing_extensions import Self

MIB = 1024**2
S = JobStatus

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
        self._processes = {n: psutil.Process(stack.part(n).pid) for n in ("girder", "scheduler")}
        self._before = {n: p.memory_info().rss for n, p in self._processes.items()}
        self.grown = dict.fromkeys(self._processes, 0)
        self._errors: list[Exception] = []
        self.answers: list[float] = []
        self.jobs: list[float] = []
        self._threads = [
            threading.Thread(target=self._repeat, args=(what, seconds))
            for what, seconds in ((self._look, 0.1), (self._run_small_job, 0.5))
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        assert not self._errors, self._errors

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


def whole_log(stack: FaultStack, job_id: str) -> bytes:
    url = f"{stack.api}/dask/job/{job_id}/log"
    answer = requests.get(url, headers={"Girder-Token": stack.admin.token}, timeout=120)
    answer.raise_for_status()
    return answer.content


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
    assert max(watch.answers) < 2
    assert max(watch.jobs) < 5
    assert watch.grown["scheduler"] < 150 * MIB
    assert watch.grown["girder"] < 300 * MIB
    shown = stack.log(job_id)
    assert len(shown.encode()) < 9 * MIB
    assert f"GET dask/job/{job_id}/log" in shown
    assert shown.endswith("ValueError: the flood is over\n")
    begun = time.monotonic()
    whole = whole_log(stack, job_id)
    print(f"The log of {len(whole):,} bytes was read in {time.monotonic() - begun:.1f} s")
    assert most < len(whole) < most + MIB
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
    flood(fault_stack(), 1000, 256 * MIB)


WAIT = """
import os, time
while not os.path.exists(signal):
    time.sleep(0.05)
"""

SUBPROCESS = """
import subprocess, sys
program = "for n in range(300_000): print(f'line {n} ' + 'x' * 1000)"
subprocess.run([sys.executable, "-c", program], check=True)
raise ValueError("the flood is over")
"""


def test_a_subprocess_that_prints_a_gigabyte(stack: FaultStack) -> None:
    with Watch(stack) as watch:
        job_id = stack.start_task("does", SUBPROCESS)
        stack.wait_all([job_id])
    check_whole(whole_log(stack, job_id).decode(), 300_000)
    assert max(watch.answers) < 2
    assert max(watch.jobs) < 5


def test_a_flood_while_girder_is_down_fills_no_memory(
    fault_stack: Callable[..., FaultStack], tmp_path: Path
) -> None:
    stack, signal = fault_stack(), tmp_path / "signal"
    given = {"lines": 40_000, "signal": str(signal)}
    flooding = stack.start_task("does", WAIT + FLOOD, kwargs=given)
    until(lambda: stack.all_jobs([flooding])[0]["status"] == S.RUNNING)
    processes = [psutil.Process(stack.part("scheduler").pid), stack.worker_process("worker-1")]
    before = [process.memory_info().rss for process in processes]
    stack.kill("girder")
    signal.touch()
    over = time.monotonic() + 3
    while time.monotonic() < over:
        time.sleep(0.2)
        for process, rss in zip(processes, before, strict=True):
            assert process.memory_info().rss < rss + 150 * MIB
    stack.restart("girder")
    stack.wait_all([flooding])
    text = whole_log(stack, flooding).decode()
    numbers = [int(n) for n in re.findall(r"^line (\d+) x{1000}$", text, re.MULTILINE)]
    assert numbers == list(range(40_000))


LINE = """
print("begin")
print("ä" * 10_000_000 + "x" * 30_000_000)
print("end")
"""

PROGRESS = """
import time
job, begun, n = self.job_manager, time.monotonic(), 0
while time.monotonic() < begun + 1:
    n += 1
    job.updateProgress(total=1e9, current=n, message=f"step {n}", forceFlush=%r)
result = n
"""


def test_a_line_of_50_mb(stack: FaultStack) -> None:
    with Watch(stack) as watch:
        job_id = stack.start_task("does", LINE)
        stack.wait_all([job_id])
    whole = "begin\n" + "ä" * 10_000_000 + "x" * 30_000_000 + "\nend\n"
    assert whole_log(stack, job_id).decode() == whole
    assert max(watch.answers) < 2
    assert max(watch.jobs, default=0) < 5


def test_a_hundred_thousand_progress_updates_a_second(stack: FaultStack) -> None:
    for task in ("does", "process"):
        for forced in (False, True):
            with Watch(stack) as watch:
                job_id = stack.start_task(task, PROGRESS % forced)
                (job,) = stack.wait_all([job_id])
            count, sequence = job["progress"]["current"], job["dask"]["sequence"]
            print(f"{task} {forced}: {count:,.0f} a second in {sequence} updates, {watch.jobs}")
            assert job["progress"]["message"] == f"step {count:.0f}"
            assert count > 10_000  # nothing holds it up
            assert sequence < 25
            assert max(watch.answers) < 2
            assert max(watch.jobs) < 5
