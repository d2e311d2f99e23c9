"""A package of tasks written for girder_worker, as sites have them. It does not know Dask."""

from __future__ import annotations

from typing import Any

from girder_worker import GirderWorkerPluginABC


class TheirTasks(GirderWorkerPluginABC):
    """The plugin of girder_worker that names the modules of tasks."""

    def __init__(self, app: Any, *_: Any, **__: Any) -> None:
        self.app = app

    def task_imports(self) -> list[str]:
        """Return the names of the modules."""
        return ["their_tasks.tasks", "their_tasks.unknown_to_girder"]
