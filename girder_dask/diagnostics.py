"""Diagnostics of one process: its versions, its tasks, and whether it reaches Girder.

``girder-dask doctor`` gathers them from Girder, the scheduler and each worker, and compares them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import socket
import sys
from typing import Any

from girder_dask.errors import GirderError
from girder_dask.tls import certificate_facts
from girder_dask.utils import working_directory

__all__ = ["COMPARED_DISTRIBUTIONS", "describe_process", "girder_error", "tasks", "versions"]

_TIMEOUT_S = 10.0

#: The distributions whose versions must be the same everywhere.
COMPARED_DISTRIBUTIONS = ("dask", "distributed", "cloudpickle", "girder_dask")


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
        ``api_url``, ``girder_error``: why Girder does not answer there, or None,
        ``no_directories``: why jobs have no working directory of their own, or None, and
        ``certificates``: those of :func:`girder_dask.tls.certificate_facts`.
    """
    return {
        "hostname": socket.gethostname(),
        "executable": sys.executable,
        "versions": versions(),
        "tasks": tasks(),
        "api_url": api_url,
        "certificates": certificate_facts(),
        "no_directories": working_directory.unsupported_reason(),
        "girder_error": None if api_url is None else girder_error(api_url),
    }


def versions() -> dict[str, str]:
    """Return the versions that must be the same everywhere.

    >>> 'distributed' in versions()
    True
    """
    found = {"python": platform.python_version()}
    for name in COMPARED_DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


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


def girder_error(
    api_url: str, *, needs_plugin: bool = True, timeout_s: float = _TIMEOUT_S
) -> str | None:
    """Return why Girder does not answer, or None if it does.

    Parameters
    ----------
    api_url
        Girder's REST API.
    needs_plugin
        Whether a Girder without the plugin ``dask`` counts as one that does not answer.
    timeout_s
        Seconds that the answer may take.
    """
    from girder_dask.http.scheduler_api import SchedulerApi

    api = SchedulerApi(api_url, timeout_s=timeout_s)
    try:
        if needs_plugin:
            api.ping()
        else:
            api.version()
    except GirderError as e:
        return str(e)
    finally:
        api.close()
    return None
