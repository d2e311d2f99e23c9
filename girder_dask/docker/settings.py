"""The settings of a worker for containers, ``girder.docker`` in Dask's configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from girder_dask import config
from girder_dask.docker.image_names import matches
from girder_dask.errors import ContainerError, GirderDaskError

__all__ = ["ContainerSettings"]

_PULL_POLICIES = ("missing", "never", "always")
_USER = re.compile(r"\d+(:\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ContainerSettings:
    """What the operator of a worker allows containers. See ``girder_dask.yaml`` for each.

    Attributes
    ----------
    images
        Patterns of the images that may run, None without such a list.
    memory_bytes, cpus
        Limits of a container whose job reserves none, None without limit.
    """

    engine: str
    images: tuple[str, ...] | None
    pull: str
    network: str
    user: str | None
    volumes: tuple[str, ...]
    memory_bytes: int | None
    cpus: float | None
    processes: int
    sif_directory: str | None
    apptainer_limits: bool

    @classmethod
    def read(cls) -> ContainerSettings:
        """Read the settings.

        Raises
        ------
        GirderDaskError
            If one of them is invalid.
        """
        images, user = config.get("docker.images"), config.get("docker.user")
        if user is not None and not _USER.fullmatch(str(user)):
            raise GirderDaskError(
                f"girder.docker.user is {user!r:.100} in Dask's configuration. Set it to numbers "
                "such as '1000:1000'."
            )
        return cls(
            engine=str(config.get("docker.engine") or "none"),
            images=None if images is None else tuple(config.names("docker.images")),
            pull=config.choice("docker.pull", _PULL_POLICIES),
            network=str(config.get("docker.network") or "none"),
            user=None if user is None else str(user),
            volumes=tuple(config.names("docker.volumes")),
            memory_bytes=_memory(),
            cpus=config.positive_or_none("docker.cpus"),
            processes=_processes(),
            sif_directory=config.get("docker.sif-directory"),
            apptainer_limits=bool(config.get("docker.apptainer-limits")),
        )

    def check_image(self, image: str, *, trusted: bool) -> None:
        """Raise ContainerError unless a job may run an image.

        Parameters
        ----------
        trusted
            Whether the call comes from someone who may run code of their own on the workers.
        """
        if self.images is None and trusted:
            return
        if self.images is not None and matches(image, self.images):
            return
        raise ContainerError(
            f"The image {image} may not run on this worker. {_why(self.images)} Ask the operator "
            "to add it to girder.docker.images there.",
            permanent=True,
        )

    def check_network(self) -> None:
        """Raise ContainerError if containers may have no network."""
        if self.network == "none":
            raise ContainerError(
                "Containers have no network on this worker, and this one asks for it "
                "(network=True). Ask the operator to set girder.docker.network there, or have the "
                "container read its inputs as files.",
                permanent=True,
            )


def _why(images: Sequence[str] | None) -> str:
    if images is None:
        return (
            "It names no images for everybody, and the job was started by a user who may not run "
            "code of their own."
        )
    return f"Those that may are: {', '.join(images) or 'none'}."


def _processes() -> int:
    number = config.positive_or_none("docker.processes")
    if number is None or number < 1:
        raise GirderDaskError(
            f"girder.docker.processes is {number!r} in Dask's configuration. Set it to a number "
            "from 1 on."
        )
    return int(number)


def _memory() -> int | None:
    """Return the limit of memory in bytes, None without one."""
    value = config.get("docker.memory")
    try:
        size = None if value is None else config.nbytes("docker.memory")
    except (ValueError, TypeError, AttributeError):
        size = -1
    if size is not None and size <= 0:
        raise GirderDaskError(
            f"girder.docker.memory is {value!r:.100} in Dask's configuration. Set it to a size "
            "such as '8 GiB', or to null."
        )
    return size
