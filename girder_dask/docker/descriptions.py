"""Descriptions of a container for the API of Docker, and for that of Podman.

Podman takes Docker's descriptions as well, but turns parts of them into options of its command, in
which a comma in the name of a file begins another option, and drops others, such as those for GPUs.
So it gets its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from girder_dask.docker.engines import EngineFacts
from girder_dask.docker.images import Image
from girder_dask.docker.plan import ContainerPlan

__all__ = ["KEEP_ID", "ROOT", "for_docker", "for_podman"]

#: Podman's mapping of users in which the account that runs it has its own id in the container.
KEEP_ID = "keep-id"
#: In an engine without root, the root of a container is the account that runs the engine.
ROOT = "0:0"

_CPU_PERIOD_US = 100_000


def _environment(plan: ContainerPlan) -> Mapping[str, str]:
    # Images of NVIDIA ask for all GPUs, and get them where its runtime is the default.
    gpus = ",".join(plan.gpus) or "void"
    # A call does not choose them either.
    return {"HOME": "/tmp", **plan.env, "NVIDIA_VISIBLE_DEVICES": gpus}  # noqa: S108


def for_docker(facts: EngineFacts, image: Image, plan: ContainerPlan) -> dict[str, Any]:
    """Return the body of ``POST /containers/create``."""
    host: dict[str, Any] = {
        "NetworkMode": plan.network,
        "Mounts": [
            {"Type": "bind", "Source": m.source, "Target": m.target, "ReadOnly": m.read_only}
            for m in plan.mounts
        ],
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "IpcMode": "private",
        "PidsLimit": plan.processes,
        # The output comes over the connection. A copy in the engine could fill the disk.
        "LogConfig": {"Type": "none"},
    }
    if plan.cpus is not None:
        host["NanoCpus"] = int(plan.cpus * 1e9)
    if plan.memory_bytes is not None:
        host |= {"Memory": plan.memory_bytes, "MemorySwap": plan.memory_bytes}
    if plan.gpus:
        wanted = {"Driver": "nvidia", "DeviceIDs": list(plan.gpus), "Capabilities": [["gpu"]]}
        host["DeviceRequests"] = [wanted]
    return {
        "Image": image.id,
        "Cmd": list(plan.command) or None,
        **({"Entrypoint": [plan.entrypoint]} if plan.entrypoint else {}),
        **({"WorkingDir": plan.workdir} if plan.workdir else {}),
        "User": ROOT if facts.is_rootless else plan.user,
        "Env": [f"{name}={value}" for name, value in _environment(plan).items()],
        "Labels": dict(plan.labels),
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": host,
    }


def for_podman(facts: EngineFacts, image: Image, plan: ContainerPlan) -> dict[str, Any]:
    """Return the body of ``POST /libpod/containers/create``."""
    limits: dict[str, Any] = {"pids": {"limit": plan.processes}}
    if plan.cpus is not None:
        limits["cpu"] = {"period": _CPU_PERIOD_US, "quota": int(plan.cpus * _CPU_PERIOD_US)}
    if plan.memory_bytes is not None:
        limits["memory"] = {"limit": plan.memory_bytes, "swap": plan.memory_bytes}
    is_named = plan.network not in ("none", "bridge", "slirp4netns", "pasta")
    return {
        "image": image.id,
        "command": list(plan.command),
        **({"entrypoint": [plan.entrypoint]} if plan.entrypoint else {}),
        **({"work_dir": plan.workdir} if plan.workdir else {}),
        "user": plan.user,
        "env": dict(_environment(plan)),
        "httpproxy": False,
        "labels": dict(plan.labels),
        "mounts": [
            {
                "type": "bind",
                "source": mount.source,
                "destination": mount.target,
                "options": ["rbind", "ro" if mount.read_only else "rw"],
            }
            for mount in plan.mounts
        ],
        "cap_drop": ["all"],
        "no_new_privileges": True,
        "ipcns": {"nsmode": "private"},
        "netns": {"nsmode": "bridge" if is_named else plan.network},
        **({"networks": {plan.network: {}}} if is_named else {}),
        **({"userns": {"nsmode": KEEP_ID}} if facts.is_rootless else {}),
        "devices": [{"path": f"nvidia.com/gpu={each}"} for each in plan.gpus],
        "resource_limits": limits,
        "log_configuration": {"driver": "none"},
    }
