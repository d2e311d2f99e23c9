"""Labels of tasks: those that are installed have their own."""

from __future__ import annotations

import pytest

from girder_dask.plugin.metrics import task_labels
from girder_dask.plugin.metrics.task_labels import OTHER, TaskLabels

TASK = "my_worker_tasks:my_task"


@pytest.mark.parametrize("name", [TASK, "my_worker_tasks.endings:fails"])
def test_installed_task_has_a_label_of_its_own(name: str) -> None:
    labels = TaskLabels()
    assert labels.label(name) == name
    assert labels.known == [name]


@pytest.mark.parametrize(
    "name",
    [
        "my_worker_tasks:nothing",
        "my_worker_tasks:Path",
        "os:system",
        "os.system",
        "no_such_module:f",
        "my_worker_tasks.no_such_module:f",
        "__main__:f",
        'my_worker_tasks:x"} 1\nother{a="b',
        "my_worker_tasks:" + "x" * 1000,
        "",
        ":",
        "None",
    ],
)
def test_unknown_task_has_the_common_label(name: str) -> None:
    labels = TaskLabels()
    assert labels.label(name) == OTHER
    assert labels.known == []


def test_number_of_labels_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_labels, "MAX_TASK_LABELS", 1)
    labels = TaskLabels()
    labels.add_known("their:task")
    assert labels.label(TASK) == OTHER
    assert labels.known == ["their:task"]
