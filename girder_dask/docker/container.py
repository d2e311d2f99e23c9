"""One container in an engine that is reached over a socket, from its creation to its removal."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from girder_dask.docker import descriptions
from girder_dask.docker.attached_output import AttachedOutput
from girder_dask.docker.engine_api import EngineApi, EngineRefusal
from girder_dask.docker.engines import EngineFacts
from girder_dask.docker.images import Image
from girder_dask.docker.output import OutputWriter, Source, follow
from girder_dask.docker.plan import ContainerEnd, ContainerPlan
from girder_dask.errors import ContainerError

__all__ = ["remove", "run_in_engine"]

logger = logging.getLogger(__name__)

_GONE_STATUSES = (404, 409)
_FIRST_DELAY_S, _MAX_DELAY_S = 0.005, 0.2
_END_TIMEOUT_S = 60.0
# Podman's own API exists with a version only.
_PODMAN_CREATE = "/v4.0.0/libpod/containers/create"
# What engines say of a command that cannot be run.
_COMMAND_PROBLEMS = ("not found", "no such file", "permission denied", "exec format error")


def run_in_engine(
    api: EngineApi,
    facts: EngineFacts,
    image: Image,
    plan: ContainerPlan,
    *,
    writer: OutputWriter,
    also: Sequence[Source],
    is_canceled: Callable[[], bool],
) -> ContainerEnd:
    """Run a container to its end, and remove it whatever happens.

    Parameters
    ----------
    writer
        Takes its output.
    also
        Sources to read while it runs.
    is_canceled
        Tells whether the container must stop. It gets SIGTERM then.
    """
    made = _create(api, facts, image, plan)
    try:
        return _run(api, made, plan, writer=writer, also=also, is_canceled=is_canceled)
    finally:
        with contextlib.suppress(ContainerError):  # the end of the run tries again, and says so
            remove(api, made)


def _run(
    api: EngineApi,
    container: str,
    plan: ContainerPlan,
    *,
    writer: OutputWriter,
    also: Sequence[Source],
    is_canceled: Callable[[], bool],
) -> ContainerEnd:
    asked_to_stop = False

    def stop_if_canceled() -> None:
        nonlocal asked_to_stop
        if is_canceled() and not asked_to_stop:
            asked_to_stop = True
            _signal(api, container, "SIGTERM")

    with _explained(plan):
        connection, first = api.attach(container)  # before it starts, so that nothing is lost
    with contextlib.closing(connection):
        with _explained(plan):
            api.call("POST", f"/containers/{container}/start")
        follow([AttachedOutput(connection, first, writer.write)], also, stop_if_canceled)
    return _end(api, container, stop_if_canceled)


def _create(api: EngineApi, facts: EngineFacts, image: Image, plan: ContainerPlan) -> str:
    with _explained(plan):
        made = _created(api, facts, image, plan)
    for warning in made.get("Warnings") or ():
        print(f"{facts.name}: {warning}")
    return str(made["Id"])


def _created(api: EngineApi, facts: EngineFacts, image: Image, plan: ContainerPlan) -> Any:
    if not facts.is_podman:
        description = descriptions.for_docker(facts, image, plan)
        return api.call("POST", "/containers/create", body=description)
    description = descriptions.for_podman(facts, image, plan)
    try:
        return api.call("POST", _PODMAN_CREATE, body=description)
    except EngineRefusal as e:
        if descriptions.KEEP_ID not in str(e):  # which needs /etc/subuid
            raise
    description = {**description, "user": descriptions.ROOT}
    del description["userns"]
    return api.call("POST", _PODMAN_CREATE, body=description)


@contextlib.contextmanager
def _explained(plan: ContainerPlan) -> Iterator[None]:
    """Say what an engine refuses to do for a container."""
    try:
        yield
    except EngineRefusal as e:
        raise ContainerError(_problem(plan, str(e))) from e


def _problem(plan: ContainerPlan, message: str) -> str:
    lower = message.lower()
    if "exec" in lower and any(each in lower for each in _COMMAND_PROBLEMS):
        program = plan.entrypoint or (plan.command[0] if plan.command else "its command")
        return (
            f"The command of the container cannot be run: {message}. The image {plan.image} has no "
            f"such program, or may not run it ({program!r:.200}). Check args and entrypoint."
        )
    if "no command specified" in lower or "no command or entrypoint" in lower:
        return f"The image {plan.image} has no command of its own. Give one in args."
    if "bind source path does not exist" in lower or "statfs" in lower:
        return (
            f"The container engine does not see the files of this worker: {message}. If the worker "
            "is itself a container, give it its --local-directory as a volume at the same path "
            "as on the host."
        )
    if "could not select device driver" in lower or "nvidia.com/gpu" in lower:
        return (
            f"The container engine cannot give GPUs to containers: {message}. Ask the operator to "
            "install the NVIDIA Container Toolkit on this worker."
        )
    return f"The container engine refused to run {plan.image}: {message}"


def _end(api: EngineApi, container: str, on_tick: Callable[[], None]) -> ContainerEnd:
    """Wait for the end of a container that has closed its output, which is the same moment."""
    delay_s = _FIRST_DELAY_S
    while True:
        state = api.call("GET", f"/containers/{container}/json")["State"]
        if str(state.get("Status", "")).lower() in ("exited", "dead", "stopped"):
            return ContainerEnd(int(state.get("ExitCode") or 0), bool(state.get("OOMKilled")))
        on_tick()
        time.sleep(delay_s)
        delay_s = min(delay_s * 2, _MAX_DELAY_S)


def _signal(api: EngineApi, container: str, name: str) -> None:
    """Send a signal to a container, if it runs."""
    try:
        api.call("POST", f"/containers/{container}/kill", query={"signal": name})
    except EngineRefusal as e:
        if e.status not in _GONE_STATUSES and "not running" not in str(e):
            raise


def remove(api: EngineApi, container: str) -> None:
    """Kill a container, and remove it with its volumes.

    Raises
    ------
    ContainerError
        If the engine does not remove it in a minute.
    """
    deadline = time.monotonic() + _END_TIMEOUT_S
    delay_s = _FIRST_DELAY_S
    while True:
        with contextlib.suppress(EngineRefusal):  # it has ended
            _signal(api, container, "SIGKILL")
        try:
            api.call("DELETE", f"/containers/{container}", query={"force": "1", "v": "1"})
        except EngineRefusal as e:
            if e.status == _GONE_STATUSES[0]:
                return
            if time.monotonic() > deadline:
                raise ContainerError(f"The container {container[:12]} is not removed: {e}") from e
        else:
            return
        time.sleep(delay_s)
        delay_s = min(delay_s * 2, _MAX_DELAY_S)
