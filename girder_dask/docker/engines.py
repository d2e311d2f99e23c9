"""The container engine of a worker: which one there is, and what is known of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from girder_dask.docker.engine_api import EngineApi
from girder_dask.errors import ContainerError

__all__ = ["EngineChoice", "EngineFacts", "choose", "describe"]

_SCHEME = "unix://"
#: The variables that name a socket, by engine.
_VARIABLES = {"docker": "DOCKER_HOST", "podman": "CONTAINER_HOST"}
#: The usual sockets of an engine; ``{}`` is the directory of the user.
_SOCKETS = {
    "docker": ("{}/docker.sock", "/run/docker.sock", "/var/run/docker.sock"),
    "podman": ("{}/podman/podman.sock", "/run/podman/podman.sock"),
}
_PROGRAMS = ("apptainer", "singularity")


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """An engine: the path of its socket, or of the program ``apptainer``."""

    socket: str | None = None
    program: str | None = None


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """Facts about an engine that runs.

    Attributes
    ----------
    name
        Its name and version, for messages.
    is_podman, is_rootless
        Whether it is Podman, and whether it runs as an ordinary user.
    """

    name: str
    is_podman: bool
    is_rootless: bool


def choose(wanted: str, environment: Mapping[str, str] = os.environ) -> EngineChoice:
    """Return the engine that a worker uses.

    Parameters
    ----------
    wanted
        The setting ``girder.docker.engine``.
    environment
        The environment of the worker.

    Raises
    ------
    ContainerError
        If there is none. The message says what was looked for.
    """
    if wanted == "none":
        raise ContainerError(
            "This worker runs no containers (girder.docker.engine). Give the job a resource that "
            "only workers with containers have.",
            permanent=True,
        )
    if wanted.startswith(_SCHEME):
        return EngineChoice(socket=wanted.removeprefix(_SCHEME))
    for name in ("docker", "podman"):
        if wanted in ("auto", name):
            for path in _sockets(name, environment):
                # False for a directory that is closed, as /run/user is in a hardened unit.
                if os.path.exists(path):  # noqa: PTH110 - Path.exists() raises there
                    return EngineChoice(socket=path)
    if wanted in ("auto", "apptainer"):
        for program in _PROGRAMS:
            found = shutil.which(program, path=environment.get("PATH"))
            if found is not None:
                return EngineChoice(program=found)
    raise ContainerError(_missing(wanted, environment), permanent=True)


def _sockets(name: str, environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the paths where the socket of an engine may be. A variable counts alone."""
    given = environment.get(_VARIABLES[name], "")
    if given.startswith(_SCHEME):
        yield given.removeprefix(_SCHEME)
        return
    own = environment.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    for path in _SOCKETS[name]:
        yield path.format(own)


def _missing(wanted: str, environment: Mapping[str, str]) -> str:
    names = [name for name in _SOCKETS if wanted in ("auto", name)]
    paths = [path for name in names for path in _sockets(name, environment)]
    programs = _PROGRAMS if wanted in ("auto", "apptainer") else ()
    if not paths and not programs:
        return (
            f"girder.docker.engine is {wanted!r:.100} in Dask's configuration. Set it to auto, "
            "docker, podman, apptainer, none, or the address of a socket such as "
            "unix:///run/docker.sock."
        )
    places = [*(f"a socket at {path}" for path in paths)]
    places += [f"the program {program} on the PATH" for program in programs]
    return (
        f"This worker has no container engine. It looked for {', '.join(places)}. "
        f"{_unused(names, environment)}Install Docker or Podman there (a worker that is itself a "
        "container needs the socket as a volume), or set girder.docker.engine, and start the job "
        "again."
    )


def _unused(names: Iterable[str], environment: Mapping[str, str]) -> str:
    """Return which variables name an engine that is not reached by a socket, as sentences."""
    given = {_VARIABLES[name]: environment.get(_VARIABLES[name], "") for name in names}
    return "".join(
        f"{variable} is the address of an engine on the network, which is not used: containers get "
        "files of the worker. "
        for variable, address in given.items()
        if address and not address.startswith(_SCHEME)
    )


def describe(api: EngineApi) -> EngineFacts:
    """Ask an engine what it is."""
    version = api.call("GET", "/version")
    components = [str(each.get("Name", "")) for each in version.get("Components") or ()]
    is_podman = any(name.startswith("Podman") for name in components)
    return EngineFacts(
        name=f"{'Podman' if is_podman else 'Docker'} {version.get('Version', '')}".strip(),
        is_podman=is_podman,
        # Not from /info, for which Podman takes more than a second.
        is_rootless=Path(api.path).stat().st_uid != 0,
    )
