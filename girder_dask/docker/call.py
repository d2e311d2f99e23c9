"""The arguments of :func:`girder_dask.docker.run`, and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from girder_dask.docker import outputs
from girder_dask.docker.image_names import check_name
from girder_dask.errors import ContainerError

__all__ = ["ContainerCall"]

_MAX_PATH_CHARACTERS = 4096

_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "args": ((list, tuple, str), "a list"),
    "entrypoint": ((str, type(None)), "the path of a program"),
    "env": ((Mapping,), "a dict"),
    "outputs": ((str, list, tuple, type(None)), "the name of a file, or a list of names"),
    "workdir": ((str, type(None)), "a path in the container"),
    "network": ((bool,), "True or False"),
}


@dataclass(frozen=True, slots=True)
class ContainerCall:
    """The arguments of :func:`girder_dask.docker.run`."""

    image: str
    args: Sequence[Any] = ()
    entrypoint: str | None = None
    env: Mapping[str, Any] | None = None
    outputs: str | Sequence[str] | None = None
    workdir: str | None = None
    network: bool = False

    def check(self) -> None:
        """Check the arguments, which come from a request as they are.

        The elements of ``args`` and ``env`` are checked when they become text.

        Raises
        ------
        ContainerError
            If one is of another type, or no engine could take it. The message names it.
        """
        check_name(self.image)
        for name, (kinds, expected) in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kinds) and not (name == "env" and value is None):
                raise _invalid(name, value, f"give {expected}")
        _check_path("entrypoint", self.entrypoint)
        _check_path("workdir", self.workdir)
        if self.workdir is not None and not PurePosixPath(self.workdir).is_absolute():
            raise _invalid(
                "workdir", self.workdir, "give a path that begins with '/', such as '/work'"
            )
        outputs.check_names(self.outputs)


def _check_path(name: str, value: str | None) -> None:
    if value is None:
        return
    if not value:
        raise _invalid(name, value, "give a path, or None for that of the image")
    if len(value) > _MAX_PATH_CHARACTERS or not value.isprintable():
        raise _invalid(
            name,
            value,
            f"give a path of printable characters, {_MAX_PATH_CHARACTERS:,} at most",
        )


def _invalid(name: str, value: Any, remedy: str) -> ContainerError:
    return ContainerError(f"{name}={value!r:.200}: {remedy}.", permanent=True)
