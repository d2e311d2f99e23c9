"""The run of one container: its image, its files, its limits and its end."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dask.utils import format_bytes

from girder_dask.docker import apptainer, engines, images, leftovers, outputs
from girder_dask.docker.container import run_in_engine
from girder_dask.docker.engine_api import EngineApi
from girder_dask.docker.image_names import check_name, full_name
from girder_dask.docker.mounts import ArgumentResolver, being_written, make_readable
from girder_dask.docker.output import OutputWriter
from girder_dask.docker.plan import ContainerEnd, ContainerPlan, Mount
from girder_dask.docker.progress_pipe import ProgressPipe
from girder_dask.docker.settings import ContainerSettings
from girder_dask.errors import ContainerError, ContainerFailed, JobCanceled
from girder_dask.tasks.running_job import RunningJob, current_job
from girder_dask.utils.process_identity import identity
from girder_dask.utils.rmtree import rmtree

__all__ = ["CPU", "MEMORY", "OUTPUTS", "ContainerCall", "run_container"]

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


@dataclass(frozen=True, slots=True)
class ContainerCall:
    """The arguments of :func:`girder_dask.docker.run`."""

    image: str
    args: Sequence[Any]
    entrypoint: str | None
    env: Mapping[str, Any]
    outputs: str | Sequence[str] | None
    workdir: str | None
    network: bool


def run_container(call: ContainerCall) -> Any:
    """Run a container to its end, and return the paths of its outputs."""
    job, settings = current_job(), ContainerSettings.read()
    scope = job.container_scope
    image = check_name(call.image)
    _check_types(call)
    settings.check_image(image, trusted=scope is None or scope.trusted)
    if call.network:
        settings.check_network()
    outputs.check_names(call.outputs)
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


def _check_types(call: ContainerCall) -> None:
    """Raise ContainerError for arguments of another type, which come from a request as they are."""
    kinds = {
        "args": ((list, tuple, str), "a list"),
        "entrypoint": ((str, type(None)), "the path of a program"),
        "env": ((Mapping,), "a dict"),
        "outputs": ((str, list, tuple, type(None)), "the name of a file, or a list of names"),
        "workdir": ((str, type(None)), "a path in the container"),
    }
    for name, (kind, expected) in kinds.items():
        value = getattr(call, name)
        if not isinstance(value, kind):
            raise ContainerError(f"{name}={value!r:.200}: give {expected}.", permanent=True)


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
    env = {"GIRDER_PROGRESS": _PROGRESS, **resolver.variables(call.env)}
    user = _user(settings)
    if int(user.partition(":")[0]) != os.getuid():
        # Both are in the directory of the job, which other users of the host cannot enter.
        directory.chmod(0o777)
        own = (str(work_dir), scope.inputs) if scope is not None else ()
        for mount in resolver.mounts:
            if mount.source.startswith(own):
                make_readable(mount.source)
    resources = {} if scope is None else scope.resources
    memory = resources.get(MEMORY)
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
        cpus=resources.get(CPU, settings.cpus),
        memory_bytes=settings.memory_bytes if memory is None else int(memory),
        processes=settings.processes,
        labels=leftovers.labels_of(scope, identity()),
    )


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
