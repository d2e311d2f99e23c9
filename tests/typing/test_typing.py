"""Type checkers see through the decorator, in packages of others too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import girder_dask

TASKS = Path(__file__).with_name("tasks.py")
ERROR = re.compile(r"^.*tasks\.py:(\d+): error: .*\[([\w-]+)\]$", re.MULTILINE)
EXPECTED = re.compile(r"# E: ([\w,-]+)$")


# Apart from that of `make lint`, whose options differ.
CACHE = Path(girder_dask.__file__).parents[1] / ".mypy_cache" / "of_tests"


@pytest.mark.timeout(600)  # the first time, it reads all of the package
def test_mypy_finds_the_mistakes_and_no_others() -> None:
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "mypy", "--strict", "--config-file=", "--no-error-summary"),
            *("--cache-dir", str(CACHE), "--follow-imports=silent", str(TASKS)),
        ],
        capture_output=True,
        text=True,
        cwd=TASKS.parent,
        env={**os.environ, "MYPYPATH": str(Path(girder_dask.__file__).parents[1])},
    )
    found = {(int(line), code) for line, code in ERROR.findall(done.stdout)}
    expected = {
        (n, code)
        for n, line in enumerate(TASKS.read_text().splitlines(), 1)
        if (match := EXPECTED.search(line))
        for code in match[1].split(",")
    }
    assert expected, "the file has no mistakes to find"
    assert found == expected, done.stdout + done.stderr


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(girder_dask.__file__).parent / "py.typed").is_file()
