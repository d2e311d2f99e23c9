"""What the jobs of the benchmarks do, and what starts them inside Girder.

Both Girders and their workers have this module, by the name ``benchmark_tasks``: that of
girder_worker with other imports (``packages.py``). So both systems run the same code.
"""

import tempfile
import time
from pathlib import Path

from girder_dask import app
from girder_dask.transforms import GirderFileId, GirderUploadToFolder


@app.task
def noop(n):
    """Do nothing."""


@app.task
def lines(n):
    """Write ``n`` numbered lines."""
    for i in range(n):
        print(f"line {i}")


@app.task
def size(path):
    """Look at a file."""
    assert Path(path).stat().st_size > 0


@app.task
def make_file(n, nbytes):
    """Make a file, each job one with other content, and return its path."""
    block = f"{n:015}\n".encode() * 65536
    with tempfile.NamedTemporaryFile(suffix=".bin", delete=False) as file:
        for _ in range(nbytes // len(block)):
            file.write(block)
        file.write(block[: nbytes % len(block)])
    return file.name


def delay(task, jobs, *args, **options):
    """Start jobs one after another."""
    function = globals()[task]
    for n in range(jobs):
        function.delay(n, *args, **options)


def each(task, jobs, args):
    """Start jobs that all get the same arguments."""
    function = globals()[task]
    for _ in range(jobs):
        function.delay(*args)


def map_all(task, jobs):
    """Start jobs with one call, which girder_worker does not have."""
    globals()[task].map(range(jobs))


def paced(task, moments):
    """Start a job at each of these seconds from now, with its number as the title.

    Return the times on the clock of the machine at which they were due.
    """
    function = globals()[task]
    start = time.monotonic() + 0.01
    for n, moment in enumerate(moments):
        time.sleep(max(0.0, start + moment - time.monotonic()))
        function.delay(n, girder_job_title=str(n))
    return [start + moment for moment in moments]


def isolated(task, isolation):
    """Start a job in a thread, or in a process of its own, which girder_worker does not have.

    Return the time on the clock of the machine.
    """
    start = time.monotonic()
    globals()[task].apply_async((0,), isolation=isolation, girder_job_title="0")
    return start


def read_file(file, jobs):
    """Start jobs that all read the same file of Girder."""
    each("size", jobs, [GirderFileId(file)])


def push_files(folder, jobs, nbytes):
    """Start jobs that each push a file to a folder."""
    hook = GirderUploadToFolder(folder, delete_file=True)
    delay("make_file", jobs, nbytes, girder_result_hooks=[hook])


#: What the route of the benchmarks' plugin starts.
STARTS = {f.__name__: f for f in (delay, each, map_all, paced, isolated, read_file, push_files)}
