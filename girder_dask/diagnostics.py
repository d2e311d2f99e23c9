"""Diagnostics of one process: its versions, its tasks, and whether it reaches Girder.

``girder-dask doctor`` gathers them from Girder, the scheduler and each worker, and compares them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import platform
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

from girder_dask._version import __version__
from girder_dask.errors import GirderError
from girder_dask.tls import certificate_facts
from girder_dask.utils import working_directory

__all__ = [
    "COMPARED_DISTRIBUTIONS",
    "GirderAnswer",
    "ask_girder",
    "describe_process",
    "disk_space",
    "find_api",
    "listening_addresses",
    "tasks",
    "versions",
]

_TIMEOUT_S = 10.0

#: The distributions whose versions must be the same everywhere.
COMPARED_DISTRIBUTIONS = ("dask", "distributed", "cloudpickle", "girder_dask")

_API_PATH = "/api/v1"


@dataclass(frozen=True, slots=True)
class GirderAnswer:
    """What a process learns when it asks Girder.

    Attributes
    ----------
    error
        Why Girder does not answer, or None.
    is_certificate_refused
        Whether the certificate of its https is not trusted.
    site
        The id of the Girder that has answered, None without its plugin ``dask``.
    """

    error: str | None = None
    is_certificate_refused: bool = False
    site: str | None = None


def describe_process(api_url: str | None) -> dict[str, Any]:
    """Return the facts of this process.

    Parameters
    ----------
    api_url
        Girder's REST API in the configuration of this process.

    Returns
    -------
    dict
        ``hostname``, ``executable``, ``versions`` by name, ``tasks`` (for each entry point
        of ``girder_dask.tasks`` its ``module``, ``package`` and ``error`` or None),
        ``api_url``, ``girder_error``: why Girder does not answer there, or None, ``site``: the id
        of that Girder, ``no_directories``: why jobs have no working directory of their own, or
        None, ``time``: the seconds since the epoch by the clock of the host, and
        ``certificates``: those of :func:`girder_dask.tls.certificate_facts`.
    """
    answer = GirderAnswer() if api_url is None else ask_girder(api_url)
    return {
        "hostname": socket.gethostname(),
        "executable": sys.executable,
        "versions": versions(),
        "tasks": tasks(),
        "api_url": api_url,
        "certificates": certificate_facts(),
        "no_directories": working_directory.unsupported_reason(),
        "girder_error": answer.error,
        "site": answer.site,
        "time": time.time(),
    }


def versions() -> dict[str, str]:
    """Return the versions that must be the same everywhere, those of the code that runs here.

    >>> 'distributed' in versions()
    True
    """
    return {"python": platform.python_version()} | {
        name: _version(name) for name in COMPARED_DISTRIBUTIONS
    }


def _version(name: str) -> str:
    """Return the version of a distribution, and another one that was installed meanwhile."""
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        installed = "not installed"
    own = __version__ if name == "girder_dask" else None
    running = own or getattr(sys.modules.get(name), "__version__", None) or installed
    return running if running == installed else f"{running}, and {installed} after a restart"


def disk_space(path: str) -> list[dict[str, Any]]:
    """Return ``path``, ``free`` and ``total`` bytes of a directory's disk, or nothing.

    >>> [disk['path'] for disk in disk_space('/')]
    ['/']
    """
    with contextlib.suppress(OSError):
        found = shutil.disk_usage(path)
        return [{"path": path, "free": found.free, "total": found.total}]
    return []


def listening_addresses(server: Any) -> list[str]:
    """Return the ``host:port`` at which an HTTP server of tornado listens, sorted; none for None.

    >>> listening_addresses(None)
    []
    """
    sockets = getattr(server, "_sockets", None) or {}
    names = [each.getsockname() for each in sockets.values()]
    return sorted(
        f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}" for name in names
    )


def tasks() -> list[dict[str, Any]]:
    """Return each installed module of tasks, with the error of its import."""
    from girder_dask.tasks.discovery import ENTRY_POINT_GROUP

    found = []
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        module = entry_point.value.partition(":")[0]
        dist = entry_point.dist
        error = None
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as e:  # noqa: BLE001 - a module may raise anything
            error = f"{type(e).__name__}: {e}"
        found.append(
            {
                "module": module,
                "package": f"{dist.name} {dist.version}" if dist is not None else None,
                "error": error,
            }
        )
    return sorted(found, key=lambda task: task["module"])


def find_api(url: str, *, timeout_s: float = _TIMEOUT_S) -> str:
    """Return the REST API of the Girder at an address, which may be that of its pages.

    Without an answer, this is the given address, or the usual one below it.
    """
    from girder_dask.http.probe import ApiProbe

    url = url.strip().rstrip("/")
    if url.endswith(_API_PATH):
        return url
    with contextlib.closing(ApiProbe(timeout_s)) as probe, contextlib.suppress(GirderError):
        for candidate in (url + _API_PATH, url):
            answer = probe.get(candidate, "system/version")
            if answer is not None and "release" in answer.document:
                return candidate
    return url + _API_PATH


def ask_girder(
    api_url: str, *, needs_plugin: bool = True, timeout_s: float = _TIMEOUT_S
) -> GirderAnswer:
    """Ask Girder who it is.

    Parameters
    ----------
    api_url
        Girder's REST API.
    needs_plugin
        Whether a Girder without the plugin ``dask`` counts as one that does not answer.
    timeout_s
        Seconds that the answer may take.
    """
    from girder_dask.http.authorities import certificate_advice
    from girder_dask.http.scheduler_api import SchedulerApi

    with contextlib.closing(SchedulerApi(api_url, timeout_s=timeout_s)) as api:
        try:
            answer = api.ping() if needs_plugin else api.version()
        except GirderError as e:
            refused = e.__cause__ is not None and certificate_advice(e.__cause__) is not None
            return GirderAnswer(str(e), is_certificate_refused=refused)
        if not needs_plugin:
            try:
                answer = api.ping()
            except GirderError:
                return GirderAnswer()
        return GirderAnswer(site=answer.get("site"))
