"""Tasks of the benchmarks, and functions that start them inside Girder.

Both Girders and their workers import this module as ``benchmark_tasks``, girder_worker's with
other imports (``packages.py``). So both systems run the same code.
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
    """Check that a file is not empty."""
    assert Path(path).stat().st_size > 0


@app.task
def make_file(n, nbytes):
    """Write a file whose content depends on ``n``, and return its path."""
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
    """Start a job at each of ``moments``, in seconds from now, with its number as the title.

    Return the times at which they were due (``time.monotonic()``).
    """
    function = globals()[task]
    start = time.monotonic() + 0.01
    for n, moment in enumerate(moments):
        time.sleep(max(0.0, start + moment - time.monotonic()))
        function.delay(n, girder_job_title=str(n))
    return [start + moment for moment in moments]


def isolated(task, isolation):
    """Start a job in a thread, or in a process of its own, which girder_worker does not have.

    Return the time of the start (``time.monotonic()``).
    """
    start = time.monotonic()
    globals()[task].apply_async((0,), isolation=isolation, girder_job_title="0")
    return start


def read_file(file, jobs):
    """Start jobs that all read the same file of Girder."""
    each("size", jobs, [GirderFileId(file)])


def push_files(folder, jobs, nbytes):
    """Start jobs that each upload a file to a folder."""
    hook = GirderUploadToFolder(folder, delete_file=True)
    delay("make_file", jobs, nbytes, girder_result_hooks=[hook])


#: The functions that the route of the benchmarks' plugin can call, by name.
STARTS = {f.__name__: f for f in (delay, each, map_all, paced, isolated, read_file, push_files)}
