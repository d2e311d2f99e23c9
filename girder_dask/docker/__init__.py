"""Containers as tasks: :func:`run` starts one on a worker, by Docker, Podman or Apptainer.

``girder_dask.docker.run.delay(image, args, …)`` is a job that needs nothing on the workers besides
girder_dask and an engine. Inside a task, ``girder_dask.docker.run(image, args, …)`` is a function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from girder_dask.errors import ContainerError, ContainerFailed
from girder_dask.tasks.decorator import task

__all__ = ["ContainerError", "ContainerFailed", "run"]


@task(title="Run a container")
def run(
    image: str,
    args: Sequence[Any] = (),
    *,
    entrypoint: str | None = None,
    env: Mapping[str, Any] | None = None,
    outputs: str | Sequence[str] | None = None,
    workdir: str | None = None,
    network: bool = False,
) -> Any:
    """Run a container to its end, with its output in the job's log.

    It runs as an ordinary user without privileges, with the GPUs that were given to the job, within
    the limits that the job has reserved (``resources={'CPU': 2, 'MEMORY': 4e9}``) and without a
    network. It is removed when it ends, whatever happens.

    Parameters
    ----------
    image
        The name of the image, such as ``'ghcr.io/site/tool:2'``. With Apptainer also the name of a
        ``.sif`` file.
    args
        The arguments of its command: text, numbers, paths, and transforms such as
        ``GirderFileId(id)``. The container gets its files below ``/inputs``, read-only, and their
        paths there as arguments. A list among the arguments is joined to one of them:
        ``['--input=', GirderFileId(id)]``.
    entrypoint
        The program, in place of that of the image.
    env
        Environment variables, whose values are like arguments.
    outputs
        The file in ``/outputs`` that is the result, or a list of files for several result hooks.
        By default the whole directory.
    workdir
        The working directory in the container, by default that of the image.
    network
        Whether it needs a network, which the worker must allow.

    Returns
    -------
    str or tuple of str
        The path of the output, or of each of ``outputs``. In a job, they are removed with the job;
        elsewhere, the caller removes them.

    Raises
    ------
    ContainerFailed
        If the container ends with another exit code than 0.
    ContainerError
        If it cannot be started, or has not written one of the outputs. The message says what to do.
    """
    from girder_dask.docker.call import ContainerCall
    from girder_dask.docker.running import run_container

    return run_container(ContainerCall(image, args, entrypoint, env, outputs, workdir, network))
