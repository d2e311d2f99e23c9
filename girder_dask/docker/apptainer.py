"""Containers by the command of Apptainer, for hosts without a container engine.

Apptainer runs a container as a child process of the caller, with the caller's user id. There is
nothing to remove afterwards, and what ends the processes of a job ends its containers.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from girder_dask.docker.output import OutputWriter, Source, follow
from girder_dask.docker.plan import ContainerEnd, ContainerPlan, Mount
from girder_dask.docker.settings import ContainerSettings
from girder_dask.errors import ContainerError

__all__ = ["command", "environment", "run_by_apptainer", "version"]

_CHUNK_BYTES = 64 * 1024
_SIF = ".sif"
_VERSION_TIMEOUT_S = 30.0
# Seconds between SIGTERM and SIGKILL once the run no longer waits for the container.
_GRACE_S = 2.0


def version(program: str) -> str:
    """Return the name and version of the program.

    Raises
    ------
    ContainerError
        If it cannot be started.
    """
    try:
        told = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            timeout=_VERSION_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as e:
        raise ContainerError(
            f"{program} cannot be started on this worker: {e}. Reinstall Apptainer there, or set "
            "girder.docker.engine.",
            permanent=True,
        ) from e
    return told.stdout.strip()


def command(program: str, plan: ContainerPlan, settings: ContainerSettings) -> list[str]:
    """Return the command that runs a container."""
    words = [program, "exec" if plan.entrypoint else "run"]
    # Nothing of the host but what is bound: no home directory, no /tmp, no variables.
    words += ["--containall", "--no-privs", "--no-eval"]
    if plan.network == "none":
        words += ["--net", "--network", "none"]
    for mount in plan.mounts:
        words += ["--mount", _mount(mount)]
    if plan.workdir:
        words += ["--pwd", plan.workdir]
    if plan.gpus:
        words.append("--nv")
    if settings.apptainer_limits:
        if plan.cpus is not None:
            words += ["--cpus", f"{plan.cpus:g}"]
        if plan.memory_bytes is not None:
            words += ["--memory", str(plan.memory_bytes)]
        words += ["--pids-limit", str(plan.processes)]
    words.append(_source(plan.image, settings))
    return [*words, *([plan.entrypoint] if plan.entrypoint else []), *plan.command]


def environment(plan: ContainerPlan) -> dict[str, str]:
    """Return the environment of the command: those of the container have a prefix there.

    Options would divide a value at its commas.
    """
    wanted = {**plan.env, "CUDA_VISIBLE_DEVICES": ",".join(plan.gpus)}
    passed = {
        f"{prefix}_{name}": value
        for name, value in wanted.items()
        for prefix in ("APPTAINERENV", "SINGULARITYENV")
    }
    return {**os.environ, **passed}


def _mount(mount: Mount) -> str:
    """Return a mount as CSV, in which paths may have any characters."""
    fields = ["type=bind", f"source={mount.source}", f"destination={mount.target}"]
    if mount.read_only:
        fields.append("ro")
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(fields)
    return text.getvalue()


def _source(image: str, settings: ContainerSettings) -> str:
    """Return where Apptainer finds an image: a file of the operator, or a registry."""
    if not image.endswith(_SIF):
        if settings.pull == "never":
            raise ContainerError(
                f"Apptainer would pull the image {image}, and this worker pulls none "
                "(girder.docker.pull: never). Name an image of girder.docker.sif-directory.",
                permanent=True,
            )
        return f"docker://{image}"
    if settings.sif_directory is None:
        raise ContainerError(
            f"The image {image} is a file, and this worker has no directory of such files. Ask the "
            "operator to set girder.docker.sif-directory there.",
            permanent=True,
        )
    path = Path(settings.sif_directory, image)
    if not path.is_file():
        raise ContainerError(
            f"There is no image {image} in {settings.sif_directory} (girder.docker.sif-directory).",
            permanent=True,
        )
    return str(path)


class _Pipe:
    """One stream of the command."""

    def __init__(self, name: str, file: IO[bytes], writer: OutputWriter) -> None:
        self._name, self._file, self._writer = name, file, writer

    def fileno(self) -> int:
        return self._file.fileno()

    def read(self) -> bool:
        data = os.read(self._file.fileno(), _CHUNK_BYTES)
        if data:
            self._writer.write(self._name, data)
        return bool(data)


def run_by_apptainer(
    program: str,
    plan: ContainerPlan,
    settings: ContainerSettings,
    *,
    writer: OutputWriter,
    also: Sequence[Source],
    is_canceled: Callable[[], bool],
) -> ContainerEnd:
    """Run a container to its end. The parameters are those of ``run_in_engine``."""
    process = subprocess.Popen(
        command(program, plan, settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(plan),
        start_new_session=True,
    )
    asked_to_stop = False

    def stop_if_canceled() -> None:
        nonlocal asked_to_stop
        if is_canceled() and not asked_to_stop:
            asked_to_stop = True
            _signal(process, signal.SIGTERM)

    try:
        assert process.stdout is not None  # noqa: S101 - for the type checker
        assert process.stderr is not None  # noqa: S101
        pipes = [_Pipe("stdout", process.stdout, writer), _Pipe("stderr", process.stderr, writer)]
        follow(pipes, also, stop_if_canceled)
        code = process.wait()
    finally:
        if process.poll() is None:
            _signal(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
            _signal(process, signal.SIGKILL)
            process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    return ContainerEnd(128 - code if code < 0 else code)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
