"""The package that a measured system imports: its tasks and its Girder plugin."""

from __future__ import annotations

from pathlib import Path

from tests.support.ported_source import rewrite

__all__ = ["NAME", "write"]

#: The name by which both systems import the tasks.
NAME = "benchmark_tasks"

_TASKS = Path(__file__).with_name("tasks.py")
_METADATA = "Metadata-Version: 2.1\nName: benchmark-tasks\nVersion: 1\n"
_ENTRY_POINTS = "[girder.plugin]\nbenchmark = benchmarks.plugin:BenchmarkPlugin\n"
_WORKER_ENTRY_POINTS = (
    "[girder_worker_plugins]\nbenchmark = benchmarks.task_plugin:BenchmarkTasks\n"
)


def write(directory: Path, *, ported: bool) -> Path:
    """Write the package into a directory for PYTHONPATH, and return the directory.

    Parameters
    ----------
    directory
        The directory. It is created if missing.
    ported
        Whether the tasks import from girder_worker instead of girder_dask.
    """
    source = _TASKS.read_text()
    distribution = directory / f"{NAME}-1.dist-info"
    distribution.mkdir(parents=True, exist_ok=True)
    (directory / f"{NAME}.py").write_text(rewrite(source) if ported else source)
    (distribution / "METADATA").write_text(_METADATA)
    entry_points = _ENTRY_POINTS + (_WORKER_ENTRY_POINTS if ported else "")
    (distribution / "entry_points.txt").write_text(entry_points)
    return directory
