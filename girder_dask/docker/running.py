"""The run of one container: its image, its files, its limits and its end."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dask.utils import format_bytes

from girder_dask.docker import apptainer, engines, images, leftovers, outputs
from girder_dask.docker.call import ContainerCall
from girder_dask.docker.container import run_in_engine
from girder_dask.docker.engine_api import EngineApi
from girder_dask.docker.image_names import full_name
from girder_dask.docker.mounts import ArgumentResolver, being_written, make_readable
from girder_dask.docker.output import OutputWriter
from girder_dask.docker.plan import ContainerEnd, ContainerPlan, Mount
from girder_dask.docker.progress_pipe import ProgressPipe
from girder_dask.docker.settings import ContainerSettings
from girder_dask.errors import ContainerError, ContainerFailed, JobCanceled
from girder_dask.tasks.running_job import RunningJob, current_job, has_lost_job
from girder_dask.utils.process_identity import identity
from girder_dask.utils.rmtree import rmtree

__all__ = ["CPU", "MEMORY", "OUTPUTS", "run_container"]

#: Where a container writes its outputs.
OUTPUTS = "/outputs"
#: The Dask resource that becomes the limit of cores.
CPU = "CPU"
#: The Dask resource that becomes the limit of memory, in bytes.
MEMORY = "MEMORY"

_PROGRESS = "/girder/progress"
# A user without rights, for a worker that runs as root.
_UNPRIVILEGED = "65534:65534"
_SIGNALED = 128
# The least that Docker takes.
_MIN_CPUS = 0.01
_MIN_MEMORY_BYTES = 6 * 1024**2


def run_container(call: ContainerCall) -> Any:
    """Run a container to its end, and return the paths of its outputs."""
    _refuse_lost_job()
    job, settings = current_job(), ContainerSettings.read()
    scope = job.container_scope
    call.check()
    settings.check_image(call.image, trusted=scope is None or scope.trusted)
    if call.network:
        settings.check_network()
    choice = engines.choose(settings.engine)
    with _output_directory(job) as directory, _progress(job) as progress:
        plan = _plan(call, job, settings, directory, progress)
        writer = OutputWriter()
        run = partial(_in_engine, choice.socket) if choice.socket else _by_apptainer
        with being_written(directory):
            end = run(choice, plan, settings, job, writer, progress)
        _check_end(end, plan, job, writer)
        for line in outputs.left_out(outputs.remove_links_out(directory)):
            print(f"girder_dask: {OUTPUTS}/{line}")
        return outputs.results(directory, call.outputs)


def _refuse_lost_job() -> None:
    """Raise ContainerError in a thread of a worker that belongs to no job.

    It would have the rights of someone who tries a container on a machine of their own.
    """
    if has_lost_job():
        raise ContainerError(
            "girder_dask.docker.run was called on a worker in a thread that belongs to no job, so "
            "it is not known what the container may do. Start it as a job, with "
            "girder_dask.docker.run.delay(). In a task, call it from the thread of the task, from "
            "one that threading or concurrent.futures has started, or within "
            "contextvars.copy_context().run() of that thread.",
            permanent=True,
        )


def _in_engine(
    socket: str,
    _choice: engines.EngineChoice,
    plan: ContainerPlan,
    settings: ContainerSettings,
    job: RunningJob,
    writer: OutputWriter,
    progress: ProgressPipe,
) -> ContainerEnd:
    api = EngineApi(socket)
    facts = engines.describe(api)
    # With a list of images, the engine is asked for the very name that the list has allowed.
    name = plan.image if settings.images is None else full_name(plan.image)
    image = images.ensure(api, name, settings.pull, job.job_manager.updateProgress)
    job.job_manager.record_image(plan.image, image.digest)
    return run_in_engine(
        api,
        facts,
        image,
        plan,
        writer=writer,
        also=[progress],
        is_canceled=lambda: job.canceled,
    )


def _by_apptainer(
    choice: engines.EngineChoice,
    plan: ContainerPlan,
    settings: ContainerSettings,
    job: RunningJob,
    writer: OutputWriter,
    progress: ProgressPipe,
) -> ContainerEnd:
    program = str(choice.program)
    apptainer.version(program)
    # Apptainer tells no digest: only a name that has one says which image it was.
    job.job_manager.record_image(plan.image, plan.image if "@" in plan.image else "")
    return apptainer.run_by_apptainer(
        program,
        plan,
        settings,
        writer=writer,
        also=[progress],
        is_canceled=lambda: job.canceled,
    )


@contextlib.contextmanager
def _output_directory(job: RunningJob) -> Iterator[Path]:
    directory = outputs.make_directory(job.work_dir)
    try:
        yield directory
    except BaseException:
        if job.work_dir is None:
            rmtree(directory)
        raise


@contextlib.contextmanager
def _progress(job: RunningJob) -> Iterator[ProgressPipe]:
    directory = Path(tempfile.mkdtemp(prefix="progress-", dir=job.work_dir))
    try:
        with ProgressPipe(directory / "progress", job.job_manager.updateProgress) as pipe:
            yield pipe
    finally:
        rmtree(directory)


def _plan(
    call: ContainerCall,
    job: RunningJob,
    settings: ContainerSettings,
    directory: Path,
    progress: ProgressPipe,
) -> ContainerPlan:
    scope = job.container_scope
    work_dir = job.work_dir
    resolver = ArgumentResolver(
        None if scope is None else scope.inputs,
        [*([] if work_dir is None else [str(work_dir)]), *settings.volumes],
        any_path=scope is None,
    )
    command = resolver.arguments(call.args)
    env = {"GIRDER_PROGRESS": _PROGRESS, **resolver.variables(call.env or {})}
    user = _user(settings)
    if int(user.partition(":")[0]) != os.getuid():
        # Both are in the directory of the job, which other users of the host cannot enter.
        directory.chmod(0o777)
        own = (str(work_dir), scope.inputs) if scope is not None else ()
        for mount in resolver.mounts:
            if mount.source.startswith(own):
                make_readable(mount.source)
    cpus, memory_bytes = _limits({} if scope is None else scope.resources, settings)
    return ContainerPlan(
        image=call.image,
        command=command,
        entrypoint=call.entrypoint,
        env=env,
        workdir=call.workdir,
        mounts=[
            *resolver.mounts,
            Mount(str(directory.resolve()), OUTPUTS, read_only=False),
            Mount(str(progress.path.resolve()), _PROGRESS, read_only=False),
        ],
        user=user,
        network=settings.network if call.network else "none",
        gpus=job.request.gpus,
        cpus=cpus,
        memory_bytes=memory_bytes,
        processes=settings.processes,
        labels=leftovers.labels_of(scope, identity()),
    )


def _limits(
    resources: Mapping[str, float], settings: ContainerSettings
) -> tuple[float | None, int | None]:
    """Return the limits of cores and of bytes of memory.

    Raises
    ------
    ContainerError
        If no container can start with them.
    """
    cpus = resources.get(CPU, settings.cpus)
    memory = resources.get(MEMORY, settings.memory_bytes)
    if cpus is not None and cpus < _MIN_CPUS:
        raise ContainerError(
            f"A limit of {cpus:g} cores (resources={{'CPU': {cpus:g}}}, or girder.docker.cpus) is "
            f"too small for a container, which needs {_MIN_CPUS:g}.",
            permanent=True,
        )
    if memory is not None and memory < _MIN_MEMORY_BYTES:
        raise ContainerError(
            f"A limit of {memory:,.0f} bytes (resources={{'MEMORY': {memory:g}}}, or "
            f"girder.docker.memory) is too small for a container, which needs "
            f"{format_bytes(_MIN_MEMORY_BYTES)}. MEMORY is in bytes.",
            permanent=True,
        )
    return cpus, None if memory is None else int(memory)


def _user(settings: ContainerSettings) -> str:
    if settings.user is not None:
        return settings.user
    return f"{os.getuid()}:{os.getgid()}" if os.getuid() else _UNPRIVILEGED


def _check_end(
    end: ContainerEnd, plan: ContainerPlan, job: RunningJob, writer: OutputWriter
) -> None:
    """Raise ContainerFailed unless the container has ended with the exit code 0."""
    if job.canceled:
        raise JobCanceled(job_id=job.id)
    if end.exit_code == 0:
        return
    place = "Its last lines are above." if writer.nbytes else "It has written nothing."
    raise ContainerFailed(
        f"The container of {plan.image} {_reason(end, plan)}. {place}", exit_code=end.exit_code
    )


def _reason(end: ContainerEnd, plan: ContainerPlan) -> str:
    limit = "there is"
    if plan.memory_bytes is not None:
        limit = f"its limit of {format_bytes(plan.memory_bytes)}"
    remedy = "Reserve more with resources={'MEMORY': bytes}, or give it smaller inputs"
    if end.out_of_memory:
        return (
            f"ran out of memory and was killed (exit code {end.exit_code}): it needed more than "
            f"{limit}. {remedy}"
        )
    ended = f"ended with exit code {end.exit_code}"
    number = end.exit_code - _SIGNALED
    if number == signal.SIGKILL:  # not all engines see why
        return (
            f"{ended}: it was killed, probably since it needed more memory than {limit}. {remedy}"
        )
    with contextlib.suppress(ValueError):
        return f"{ended} ({signal.Signals(number).name})"
    return ended
