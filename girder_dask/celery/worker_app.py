"""girder_worker's Celery app on a Dask worker: tasks of all packages, and our signal handlers."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import shutil
import threading
from contextvars import Context
from typing import Any

from girder_dask.celery import shared_values
from girder_dask.celery.containers import remove_running, track_containers
from girder_dask.celery.run_state import CeleryJobManager, current_run
from girder_dask.errors import TaskNotFoundError
from girder_dask.tasks.running_job import current_job

__all__ = ["find_task", "worker_app"]

logger = logging.getLogger(__name__)

# The entry points of packages that extend girder_worker.
_ENTRY_POINTS = "girder_worker_plugins"

_lock = threading.Lock()
_app: Any = None
# Modules of tasks that cannot be imported here, with the reasons.
_failed: dict[str, Exception] = {}


def worker_app() -> Any:
    """Return the app, prepared by the first call.

    The modules of tasks are imported outside of any job, whose log would get what they print.

    Raises
    ------
    TaskNotFoundError
        If girder_worker, or one of the packages that extend it, cannot be imported here.
    """
    global _app
    with _lock:
        if _app is None:
            try:
                _app = Context().run(_prepare)
            except Exception as e:
                raise TaskNotFoundError(_import_problem(e)) from e
        return _app


def _import_problem(error: Exception) -> str:
    """Return why girder_worker cannot be imported: it is missing, or a package breaks it."""
    reason = f"{type(error).__name__}: {error}"
    again = "restart them, and start the job again"
    if importlib.util.find_spec("girder_worker") is not None:
        for entry_point in importlib.metadata.entry_points(group=_ENTRY_POINTS):
            try:
                entry_point.load()
            except Exception as e:  # noqa: BLE001 - the code of a package may raise anything
                dist = entry_point.dist
                package = entry_point.value if dist is None else f"{dist.name} {dist.version}"
                return (
                    f"The package {package} extends girder_worker, and its plugin "
                    f"{entry_point.value} cannot be imported there: {type(e).__name__}: {e}. So no "
                    "task of girder_worker runs there. Install what it needs in the environment of "
                    f"the workers, or uninstall it there, {again}."
                )
    return (
        f"The task is one of girder_worker, which cannot be imported there ({reason}). Install it "
        f"in the environment of the workers, {again}: pip install 'girder_dask[celery]'"
    )


def _prepare() -> Any:
    from celery import signals
    from girder_worker import app as theirs

    from girder_dask.celery import docker_output, publishing

    app = theirs.app
    publishing.install(app)
    app.set_default()
    for module in app.loader.default_modules:
        try:
            importlib.import_module(module)
        except Exception as e:
            logger.warning("The tasks in %s cannot be imported", module, exc_info=True)
            _failed[module] = e
    app.finalize()
    for signal, receiver in (
        (signals.task_prerun, theirs.gw_task_prerun),
        (signals.task_success, theirs.gw_task_success),
        (signals.task_failure, theirs.gw_task_failure),
        (signals.task_postrun, theirs.gw_task_postrun),
        (signals.task_revoked, theirs.gw_task_revoked),
    ):
        signal.disconnect(receiver)
    for handler in [*theirs.logger.handlers]:  # it writes records a second time
        theirs.logger.removeHandler(handler)
    docker_output.keep_buffered_output()
    docker_output.attach_before_start()
    docker_output.drain_ended_containers()
    track_containers()
    signals.task_prerun.connect(_before_run, weak=False)
    signals.task_failure.connect(_on_failure, weak=False)
    signals.task_postrun.connect(_after_run, weak=False)
    # It writes what each task returns or raises. The job has both.
    logging.getLogger("celery.app.trace").setLevel(logging.CRITICAL + 1)
    return app


def find_task(name: str, package: str | None) -> Any:
    """Return a task of an installed package.

    Raises
    ------
    TaskNotFoundError
        If no package on this worker has it. The message names the package to install.
    """
    app = worker_app()
    found = app.tasks.get(name)
    if found is not None:
        return found
    module = name.rpartition(".")[0]
    for broken, error in _failed.items():
        if broken.partition(".")[0] == module.partition(".")[0]:
            raise TaskNotFoundError(
                f"The module {broken} cannot be imported there: {type(error).__name__}: {error}. "
                "Install what it needs in the environment of the workers, restart them, and start "
                "the job again."
            ) from error
    distribution, _, version = (package or "").partition(" ")
    what = (
        f"Install it in the environment of the workers and restart them: pip install "
        f"'{distribution}{f'=={version}' if version else ''}'"
        if distribution
        else "Install the package with this task in the environment of the workers, and restart "
        "them"
    )
    raise TaskNotFoundError(
        f"No package that is installed there registers a task {name!r} with girder_worker (entry "
        f"point group girder_worker_plugins). {what}."
    )


def _before_run(task: Any = None, kwargs: Any = None, **_: Any) -> None:
    """Give a task the manager and the client of the running job, and its result hooks."""
    from girder_client import GirderClient
    from girder_worker.utils.transform import ResultTransform

    from girder_dask.celery import serializer

    job, state = current_job(), current_run()
    if state is None:  # a task that a task calls in its own process, with apply()
        return
    state.keeps_containers = (kwargs or {}).get("remove_container") is False
    task.job_manager = CeleryJobManager(job.job_manager, state)
    task.girder_client = job.girder_client
    if task.request.girder_client_token == "":
        task.girder_client = GirderClient(apiUrl=task.request.girder_api_url)
    hooks = getattr(task.request, "girder_result_hooks", None)
    if hooks is not None:
        task.request.girder_result_hooks = [
            serializer.restore(shared_values.resolve(hook)) for hook in hooks
        ]
        for hook in task.request.girder_result_hooks:
            if isinstance(hook, ResultTransform):
                hook.job = {"_id": job.id}


def _after_run(task: Any = None, **_: Any) -> None:
    """Remove what ``docker_run`` leaves: a container that goes on, and an unused directory.

    It makes a directory each time, and removes it only once it is used.
    """
    state = current_run()
    while state is not None and state.attachments:
        state.attachments.pop().close()
    volume = getattr(task.request, "_default_temp_volume", None)
    if volume is None:  # no docker_run
        return
    if state is not None and state.containers:
        remove_running(state)
    if not getattr(volume, "_transformed", True):
        shutil.rmtree(volume.host_path, ignore_errors=True)


def _on_failure(exception: BaseException | None = None, traceback: Any = None, **_: Any) -> None:
    """Keep what a task has raised, with its traceback from the function of the task on."""
    state = current_run()
    if state is None or exception is None:
        return
    while traceback is not None and _is_of_celery(traceback):
        traceback = traceback.tb_next
    state.error = exception.with_traceback(traceback)


def _is_of_celery(traceback: Any) -> bool:
    name = str(traceback.tb_frame.f_globals.get("__name__"))
    return name.startswith("celery.") or name == "girder_worker.task"
