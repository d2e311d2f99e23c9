"""What is asked of a container engine: one container, its files and its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["ContainerEnd", "ContainerPlan", "Mount"]


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or directory of the host that a container has at another path."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """One container.

    Attributes
    ----------
    image
        The name of the image.
    command, entrypoint
        The arguments, and the program in place of that of the image.
    user
        The user and group in the container, as numbers.
    network
        The name of the network, ``'none'`` for none.
    gpus
        The ids of the GPUs that it may use.
    cpus, memory_bytes, processes
        Its limits, None for none.
    labels
        By which the container is found again.
    """

    image: str
    command: Sequence[str]
    mounts: Sequence[Mount]
    user: str
    entrypoint: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str | None = None
    network: str = "none"
    gpus: Sequence[str] = ()
    cpus: float | None = None
    memory_bytes: int | None = None
    processes: int = 4096
    labels: Mapping[str, str] = field(default_factory=dict)
    progress: Path | None = None


@dataclass(frozen=True, slots=True)
class ContainerEnd:
    """How a container ended."""

    exit_code: int
    out_of_memory: bool = False
