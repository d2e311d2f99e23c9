"""``girder-dask local-worker``: the worker of the queue ``local``, which has Girder's database."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

import click

from girder_dask.errors import GirderDaskError

__all__ = ["command_line", "local_worker", "missing_requirements"]

_QUEUE_RESOURCE = "queue:local"
_VARIABLES = ("GIRDER_MONGO_URI",)
_MODULES = {"girder": "girder", "girder_worker": "girder-worker"}


@click.command("local-worker")
@click.argument("scheduler")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Tasks that the worker runs at once.",
)
@click.argument("dask_options", nargs=-1, type=click.UNPROCESSED)
def local_worker(scheduler: str, threads: int, dask_options: tuple[str, ...]) -> NoReturn:
    """Start the Dask worker for tasks that need Girder's database (queue "local").

    SCHEDULER is the address of the Dask scheduler. Options of "dask worker" may follow "--". Run it
    where Girder is installed with its plugins, with Girder's own environment: GIRDER_MONGO_URI,
    GIRDER_NOTIFICATION_REDIS_URL, and access to the assetstores. No other task runs there.

    The worker has Girder's database, so whoever can run code on it is an administrator of Girder:
    each member of the group of dask.submitters, and everyone on the cluster's network. Start it
    only where you trust all of them that far.
    """
    missing = missing_requirements(os.environ)
    if missing:
        raise GirderDaskError(
            "A worker of the queue 'local' uses Girder's database as Girder does, and this "
            f"environment lacks {', '.join(missing)}. Start it in Girder's environment, with "
            "Girder's variables."
        )
    command = command_line(scheduler, threads, dask_options)
    os.execv(command[0], command)  # noqa: S606 - in the place of this process


def missing_requirements(environment: Mapping[str, str]) -> list[str]:
    """Return what this environment lacks for a worker of the queue ``local``."""
    variables = [f"the variable {name}" for name in _VARIABLES if not environment.get(name)]
    packages = [
        f"the package {package}"
        for module, package in _MODULES.items()
        if importlib.util.find_spec(module) is None
    ]
    return variables + packages


def command_line(scheduler: str, threads: int, dask_options: Sequence[str] = ()) -> list[str]:
    """Return the command that starts the worker.

    >>> command_line("tcp://dask:8786", 2)[1:]
    ['-m', 'dask', 'worker', 'tcp://dask:8786', '--nthreads', '2', '--resources', 'queue:local=2']
    """
    worker = [sys.executable, "-m", "dask", "worker", scheduler, "--nthreads", str(threads)]
    return [*worker, "--resources", f"{_QUEUE_RESOURCE}={threads}", *dask_options]
