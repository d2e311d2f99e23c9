"""Threads that import one package at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from girder_dask.utils.module_loading import retry_import_deadlock

# Each package imports its module late, which imports another module of it.
# To find one takes its time, as on a shared disk: then threads come upon each other.
PACKAGE = """
import time
time.sleep(0.01)
from {name}.first import one
"""
FIRST = """
import time
time.sleep(0.01)
from girder_dask import task
from {name}.second import two

@task
def one():
    return 1
"""
SECOND = """
import time
time.sleep(0.01)
from girder_dask import task

@task
def two():
    return 2
"""
PROGRAM = """
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from girder_dask.protocol.payload import open_value
from girder_dask.tasks.task import find_task

class Slow:
    def find_spec(self, name, path=None, target=None):
        time.sleep(0.01)

sys.meta_path.insert(0, Slow())

def load(number, place):
    name = f"pkg{number}"
    pickled = b"pc" + name.encode() + b".first\\none\\n."
    ways = [
        lambda: find_task(f"{name}:one"),
        lambda: find_task(f"{name}.first:one"),
        lambda: find_task(f"{name}.second:two"),
        lambda: open_value(pickled, unpickle=True),
    ]
    return ways[place]()

with ThreadPoolExecutor(4) as pool:
    for number in range(int(sys.argv[1])):
        found = [pool.submit(load, number, place) for place in range(4)]
        print(*(future.result()() for future in found))
"""


def test_load_module_serves_threads_that_import_one_package(tmp_path: Path) -> None:
    count = 20
    for number in range(count):
        package = tmp_path / f"pkg{number}"
        package.mkdir()
        for name, text in (("__init__", PACKAGE), ("first", FIRST), ("second", SECOND)):
            (package / f"{name}.py").write_text(text.format(name=package.name))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), str(count)], capture_output=True, text=True, timeout=150
    )
    assert done.stderr == ""
    assert done.stdout == "1 1 2 1\n" * count


def test_retry_import_deadlock_raises_other_errors_at_once() -> None:
    calls = []

    def load() -> None:
        calls.append(1)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        retry_import_deadlock(load)
    assert calls == [1]
