"""The scheduler's preload: ``dask scheduler --preload girder_dask.scheduler_hooks``.

This module connects the two sides: the scheduler sends workers and nannies their plugins, and
neither side imports the other.

A ``dask scheduler`` whose configuration is wrong ends, with one line and the exit code 78
(``EX_CONFIG``). Dask would log the error and go on without the jobs of Girder.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os

import click
from distributed import Scheduler
from distributed.comm.addressing import get_address_host, parse_address

from girder_dask import config
from girder_dask.errors import GirderDaskError
from girder_dask.protocol import json_log
from girder_dask.scheduler.plugin import GirderSchedulerPlugin, WorkerSide
from girder_dask.worker.celery_imports import CeleryImportsPlugin
from girder_dask.worker.nanny_plugin import GirderNannyPlugin
from girder_dask.worker.plugin import GirderWorkerPlugin, run_job

__all__ = ["dask_setup", "make_plugin"]


def make_plugin(api_url: str | None = None, credential: str | None = None) -> GirderSchedulerPlugin:
    """Return the scheduler plugin together with the plugins that it sends to workers.

    Parameters
    ----------
    api_url, credential
        Girder's REST API and the scheduler's API key, by default those of Dask's
        configuration (``girder.api-url``, ``girder.credential``).
    """
    workers = WorkerSide(run_job, GirderWorkerPlugin, GirderNannyPlugin, CeleryImportsPlugin)
    return GirderSchedulerPlugin(workers, api_url, credential)


def dask_setup(scheduler: Scheduler) -> None:
    """Install the plugin. Dask calls this for ``--preload`` and for its ``preload`` setting.

    Raises
    ------
    GirderDaskError
        If the configuration is wrong. Dask logs it. A scheduler that is part of another program,
        such as that of a ``LocalCluster``, then runs without the jobs of Girder.
    SystemExit
        In place of it, in a process of Dask's command line.
    """
    try:
        _check(scheduler)
        plugin = make_plugin()
    except GirderDaskError as e:
        if click.get_current_context(silent=True) is None:
            raise
        click.echo(f"The scheduler cannot run the jobs of Girder and ends. {e}", err=True)
        # The loop ends now, and would show the exit of this task as an error.
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        raise SystemExit(os.EX_CONFIG) from e
    scheduler.add_plugin(plugin)


def _check(scheduler: Scheduler) -> None:
    """Raise GirderDaskError if a scheduler cannot run the jobs of a Girder, or not safely."""
    if not config.get("api-url"):
        raise GirderDaskError(
            "girder.api-url is not set. Set it in Dask's configuration, or "
            "DASK_GIRDER__API_URL=http://HOST:PORT/api/v1 in the environment."
        )
    if not config.credential():
        raise GirderDaskError(
            "The scheduler has no credential. Create one with 'girder-dask credential --output "
            "FILE' and set girder.credential-file (DASK_GIRDER__CREDENTIAL_FILE) to it."
        )
    config.check("scheduler")
    json_log.install_if_configured()
    if config.get("security.allow-insecure"):
        return
    for listener in scheduler.listeners:
        if not _is_closed(listener.listen_address):
            raise GirderDaskError(
                f"It listens on {listener.listen_address} without TLS, so whoever can connect can "
                "run code here. Use TLS ('girder-dask certs' makes certificates), listen on "
                "127.0.0.1 (--host), or, in a network that is closed, set "
                "girder.security.allow-insecure: true "
                "(DASK_GIRDER__SECURITY__ALLOW_INSECURE=true)."
            )


def _is_closed(address: str) -> bool:
    """Return True if only this machine, or only who has a certificate, can connect."""
    scheme, _ = parse_address(address)
    if scheme in {"tls", "wss", "inproc"}:
        return True
    host = get_address_host(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
