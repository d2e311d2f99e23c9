"""The plugin of girder_worker that names the tasks of the benchmarks."""

from __future__ import annotations

from typing import Any

__all__ = ["BenchmarkTasks"]


class BenchmarkTasks:
    """Names the module with the tasks, where girder_worker has its plugins imported."""

    def __init__(self, app: Any, *_: Any, **__: Any) -> None:
        self.app = app

    def task_imports(self) -> list[str]:
        """Return the names of the modules."""
        return ["benchmark_tasks"]
