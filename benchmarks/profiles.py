"""Profiles of processes while jobs run: ``make profile``.

py-spy samples the stack of the thread that holds the GIL a hundred times a second. A sample counts
for the innermost module of girder_dask on the stack, or else for the innermost package.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import MEASURED, RESULTS
from benchmarks.side import Side
from benchmarks.stack import BenchmarkStack
from girder_dask.standalone.launcher import stopping_on_signals

__all__ = ["FILE", "owner", "shares", "tables"]

#: The file of the published profiles.
FILE = RESULTS / "profiles.json"

#: The profiled process and the way in which jobs are started, by the title of the profile.
_CASES = {
    "Girder, a map": ("girder", "map_all"),
    "Girder, a loop of `delay()`": ("girder", "delay"),
    "the scheduler, a map": ("scheduler", "map_all"),
    "a worker, a map": ("worker-0", "map_all"),
}
_RATE = 100
_MOST_SHOWN = 12
_FRAME = re.compile(r"\((?P<path>[^()]*?)(:\d+)?\)$")
#: Innermost frames of threads that wait. py-spy takes some of these threads for busy ones.
_WAITS = ("(selectors.py", "wait (threading.py", "Connection._recv (", "accept (socket.py")
_STANDARD = {*sys.stdlib_module_names, "<frozen importlib._bootstrap>"}


def owner(stack: Sequence[str]) -> str:
    """Return the module or package for which a stack counts. Frames are py-spy's, outermost first.

    >>> owner(["run (a.py:982)", "hear (girder_dask/scheduler/dispatcher.py:9)", "dumps (j.py:1)"])
    'girder_dask.scheduler.dispatcher'
    >>> owner(["run (threading.py:982)", "read (tornado/iostream.py:1)", "recv (ssl.py:3)"])
    'tornado'
    >>> owner(["run (threading.py:982)"])
    'Python'
    """
    paths = [found["path"] for frame in stack if (found := _FRAME.search(frame))]
    for path in reversed(paths):
        own = path.rpartition("girder_dask/")[2]
        if "girder_dask/" in path and "site-packages" not in own:
            return "girder_dask." + own.removesuffix(".py").replace("/", ".")
    for path in reversed(paths):
        package, slash, _ = path.partition("/")
        if slash and package and package not in _STANDARD:
            return package
    return "Python"


def shares(lines: Iterable[str]) -> dict[str, float]:
    """Return the share of each owner in py-spy's output, whose lines are a stack and its count."""
    counts: Counter[str] = Counter()
    for line in lines:
        text, _, number = line.rpartition(" ")
        stack = text.split(";")
        if not any(wait in stack[-1] for wait in _WAITS):
            counts[owner(stack)] += int(number)
    total = sum(counts.values())
    return {name: count / total for name, count in counts.most_common()}


def tables(profiles: Mapping[str, Mapping[str, float]]) -> str:
    """Return profiles as tables in Markdown."""
    parts = []
    for about, found in profiles.items():
        own = sum(share for name, share in found.items() if name.startswith("girder_dask"))
        rows = [f"| {name} | {share:.1%} |" for name, share in list(found.items())[:_MOST_SHOWN]]
        title = f"{about[:1].upper()}{about[1:]}: {own:.0%} in modules of girder_dask"
        parts += [f"| {title} | |", "| --- | --- |", *rows, ""]
    return "\n".join(parts).rstrip()


def _profile(stack: BenchmarkStack, side: Side, part: str, way: str, jobs: int) -> dict[str, float]:
    process = psutil.Process(stack.part(part).pid)
    if part.startswith("worker"):  # under its nanny
        process = max(process.children(recursive=True), key=lambda p: sum(p.cpu_times()[:2]))
    with tempfile.TemporaryDirectory() as directory:
        raw = Path(directory) / "raw"
        program = str(Path(sys.executable).parent / "py-spy")
        command = [program, "record", "--pid", str(process.pid), "--gil", "--rate", str(_RATE)]
        command += ["--format", "raw", "--output", str(raw), "--duration", "3600"]
        spy = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            side.timed(way, jobs, task="noop")
        finally:
            spy.send_signal(signal.SIGINT)
            _, said = spy.communicate(timeout=60)
        side.clear()
        if not raw.exists():
            raise RuntimeError(f"py-spy took no samples of {part}: {said.decode()}")
        return shares(raw.read_text().splitlines())


def main(arguments: list[str] | None = None) -> int:
    """Profile each case, write the profiles, and print them."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.profiles", description=__doc__)
    made.add_argument("--jobs", type=int, default=2000, help="number of jobs per case")
    made.add_argument("--output", type=Path, default=MEASURED / FILE.name)
    options = made.parse_args(arguments)
    found: dict[str, Any] = {}
    with (
        stopping_on_signals(),
        tempfile.TemporaryDirectory(prefix="girder-dask-profiles-") as name,
        BenchmarkStack(Path(name) / "stack") as stack,
    ):
        side = stack.girder_dask
        for about, (part, way) in _CASES.items():
            print(about, flush=True)
            found[about] = _profile(stack, side, part, way, options.jobs)
    kept = {about: {n: round(s, 4) for n, s in each.items()} for about, each in found.items()}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"\n{tables(kept)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
