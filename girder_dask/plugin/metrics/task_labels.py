"""Labels for the names of tasks: installed tasks have their own, all others share one.

Whoever may start jobs can name any task. So a name is a label only if an installed module of this
Girder defines that task.
"""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from typing import Any

from girder_dask.entrypoint import tasks_in
from girder_dask.tasks import discovery
from girder_dask.utils.bounded_dict import BoundedDict

__all__ = ["MAX_TASK_LABELS", "OTHER", "TaskLabels"]

logger = logging.getLogger(__name__)

#: The label of all tasks without one of their own.
OTHER = "other"

#: The most tasks with labels of their own. Each adds some forty time series.
MAX_TASK_LABELS = 100

_MAX_NAMES = 10_000
_MAX_NAME_CHARS = 200


class TaskLabels:
    """The labels of tasks by their names. Thread-safe.

    The first look-up of a task may import its module, which takes time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._labels = BoundedDict[str, str](_MAX_NAMES)
        self._known: set[str] = set()

    @property
    def known(self) -> list[str]:
        """The names with labels of their own."""
        with self._lock:
            return sorted(self._known)

    def add_known(self, label: str) -> None:
        """Add a label that another process has found to be that of an installed task."""
        with self._lock:
            if label != OTHER and len(self._known) < MAX_TASK_LABELS:
                self._known.add(label)
                self._labels[label] = label

    def label(self, name: str) -> str:
        """Return the label of a task."""
        with self._lock:
            label = self._labels.get(name)
        if label is None:
            label = name if _is_installed(name) else OTHER
            self.add_known(label)
            with self._lock:
                label = name if name in self._known else OTHER
                self._labels[name] = label
        return label


def _is_installed(name: str) -> bool:
    """Return True if an installed module defines the task, of this package or of girder_worker."""
    module, colon, _ = name.partition(":")
    if not colon:
        module = name.rpartition(".")[0]
    if not module or len(name) > _MAX_NAME_CHARS or module == "__main__":
        return False
    try:
        found = sys.modules.get(module)
        if found is None and discovery.is_of_tasks(module):
            found = importlib.import_module(module)
        if found is None:
            return False
        if colon:
            return any(task.name == name for task in tasks_in(found).values())
        return any(_is_celery_task(value, name) for value in list(vars(found).values()))
    except (Exception, SystemExit):
        logger.exception("The module %.200r cannot be searched for tasks", module)
        return False


def _is_celery_task(value: Any, name: str) -> bool:
    try:
        return getattr(value, "name", None) == name and callable(getattr(value, "delay", None))
    except Exception:  # noqa: BLE001 - of a proxy object
        return False
