"""Import of girder_worker's tasks on a worker that has just joined."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from distributed import Client

from girder_dask.jobs import JobStatus
from tests.support.celery_site import CelerySite, wait_until


def _imported(site: CelerySite, queue: str) -> dict[str, bool]:
    """Return whether the worker of a queue is ready for its tasks, by its name."""

    def read(dask_worker: Any) -> tuple[str, bool]:
        import sys

        prepared = getattr(sys.modules.get("girder_dask.celery.worker_app"), "_app", None)
        return dask_worker.name, prepared is not None and "their_tasks.tasks" in sys.modules

    with Client(site.scheduler, set_as_default=False) as client:
        return {name: done for name, done in client.run(read).values() if name == f"of-{queue}"}


def test_a_new_worker_imports_the_tasks_before_its_first_job(
    celery_site: CelerySite, tmp_path: Path
) -> None:
    with celery_site.queue_worker("new", tmp_path, {}):
        wait_until(lambda: _imported(celery_site, "new") == {"of-new": True})
        job_id = celery_site.delay("add", 20, 22, queue="new")
        celery_site.wait(job_id, status=JobStatus.SUCCESS)
        assert celery_site.value(job_id) == 42


def test_a_package_that_cannot_be_imported_is_named_once(
    celery_site: CelerySite, tmp_path: Path
) -> None:
    """girder_worker loads the plugins of all packages, or nothing."""
    about = tmp_path / "site" / "broken_tasks-1.2.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken_tasks\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(
        "[girder_worker_plugins]\nbroken = broken_tasks.plugin:Plugin\n"
    )
    package = about.parent / "broken_tasks"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plugin.py").write_text("import library_that_is_missing\n")
    path = os.pathsep.join(filter(None, [str(about.parent), os.environ.get("PYTHONPATH", "")]))
    reason = (
        "The package broken_tasks 1.2 extends girder_worker, and its plugin "
        "broken_tasks.plugin:Plugin cannot be imported there: ModuleNotFoundError: No module named "
        "'library_that_is_missing'."
    )
    with celery_site.queue_worker("broken", tmp_path / "worker", {"PYTHONPATH": path}) as log:
        wait_until(lambda: reason in log.read_text())
        job_id = celery_site.delay("add", 20, 22, queue="broken")
        celery_site.wait(job_id, status=JobStatus.ERROR)
        assert reason in celery_site.log(job_id)
        assert log.read_text().count(reason) == 1


def test_a_module_that_cannot_be_imported_is_named_once(
    celery_site: CelerySite, tmp_path: Path
) -> None:
    """The tasks of other packages run all the same."""
    about = tmp_path / "site" / "halved_tasks-1.2.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: halved_tasks\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text("[girder_worker_plugins]\nhalf = halved_tasks:Plugin\n")
    package = about.parent / "halved_tasks"
    package.mkdir()
    (package / "__init__.py").write_text(
        "class Plugin:\n"
        "    def __init__(self, app, *_, **__): pass\n"
        "    def task_imports(self): return ['halved_tasks.tasks']\n"
    )
    (package / "tasks.py").write_text("raise RuntimeError('no such device')\n")
    path = os.pathsep.join(filter(None, [str(about.parent), os.environ.get("PYTHONPATH", "")]))

    def start() -> str:
        from girder_worker.app import app

        return str(app.send_task("halved_tasks.tasks.scan", queue="halved").id)

    with celery_site.queue_worker("halved", tmp_path / "worker", {"PYTHONPATH": path}) as log:
        warning = "The tasks in halved_tasks.tasks cannot be imported"
        wait_until(lambda: warning in log.read_text())
        task_id = celery_site.call(start)
        (job,) = wait_until(lambda: celery_site.documents("job", {"celeryTaskId": task_id}))
        celery_site.wait(str(job["_id"]), status=JobStatus.ERROR)
        assert (
            "The module halved_tasks.tasks cannot be imported there: RuntimeError: no such device"
        ) in celery_site.log(str(job["_id"]))
        job_id = celery_site.delay("add", 20, 22, queue="halved")
        celery_site.wait(job_id, status=JobStatus.SUCCESS)
        assert log.read_text().count(warning) == 1
