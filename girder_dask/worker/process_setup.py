"""Set-up of a worker's process: checks of where it runs, and the capture of output."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from distributed import Scheduler, Worker

from girder_dask import config
from girder_dask.files.cache import CacheUnusable, FileCache, open_cache
from girder_dask.tasks.running_job import set_process_of_jobs
from girder_dask.utils import working_directory
from girder_dask.utils.private_directory import require_unchangeable
from girder_dask.worker.capture import output_capture
from girder_dask.worker.process_globals import job_scope
from girder_dask.worker.propagation import hooks

__all__ = [
    "open_file_cache",
    "remove_credential",
    "start_capture",
    "stop_capture",
    "unsafe_directory",
    "warn_of_shared_directory",
]

logger = logging.getLogger(__name__)

# Several workers may share a process, which has one capture.
_capture_lock = threading.Lock()
_capture_users = 0


def unsafe_directory(worker: Worker) -> str | None:
    """Return why other users can change the directory of a worker, None if they cannot."""
    try:
        require_unchangeable(Path(worker.local_directory))
    except OSError as e:
        return (
            f"Worker {worker.address} is closed because its directory is not safe: {e}. Start it "
            "with a --local-directory that its own user alone may change."
        )
    return None


def open_file_cache() -> tuple[FileCache | None, str | None]:
    """Return the cache of input files, or why there is none although it is configured."""
    try:
        return open_cache(), None
    except CacheUnusable as e:
        logger.warning("%s", e)
        return None, str(e)


def remove_credential() -> None:
    """Remove the scheduler's API key from the configuration, which tasks and Dask's pages show."""
    if len(Scheduler._instances) or not config.forget_credential():  # noqa: SLF001
        return
    logger.warning(
        "The scheduler's API key (girder.credential) was in the configuration of this worker, "
        "where tasks can read it, and was removed. Set it for the scheduler alone."
    )


def warn_of_shared_directory() -> None:
    """Log why jobs have no working directory of their own, if they have none."""
    why = working_directory.unsupported_reason()
    if why is not None:
        logger.warning(
            "This system gives threads no working directory of their own (%s), so jobs share that "
            "of the worker, which is restored after each. Allow unshare(CLONE_FS) in the seccomp "
            "profile of its container, or set girder.worker.isolation to process.",
            why,
        )


def start_capture() -> None:
    """Begin to capture the output of jobs in this process."""
    global _capture_users
    with _capture_lock:
        _capture_users += 1
        if _capture_users == 1:
            set_process_of_jobs(True)
            output_capture.install(log_level=config.get("worker.log-level"))
            hooks.install()
            job_scope.install()
            warn_of_shared_directory()


def stop_capture() -> None:
    """Stop the capture, unless another worker of this process needs it."""
    global _capture_users
    with _capture_lock:
        _capture_users -= 1
        if _capture_users == 0:
            set_process_of_jobs(False)
            job_scope.uninstall()
            hooks.uninstall()
            output_capture.uninstall()
