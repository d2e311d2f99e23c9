"""The plugin of Dask nannies, which the scheduler sends to every nanny that joins."""

from __future__ import annotations

import asyncio
import logging

from distributed import Nanny
from distributed.diagnostics.plugin import NannyPlugin

from girder_dask.protocol import json_log
from girder_dask.tls import keep_certificate
from girder_dask.utils.background import log_failure

__all__ = ["GirderNannyPlugin"]

logger = logging.getLogger(__name__)


class GirderNannyPlugin(NannyPlugin):
    """Plugin that drains a worker before its nanny stops it, and keeps the nanny's certificate."""

    name = "girder-dask"
    restart = False

    def __init__(self) -> None:
        self._certificate: asyncio.Task[None] | None = None

    async def setup(self, nanny: Nanny) -> None:
        """Begin to watch the files of the nanny's certificate."""
        json_log.install_if_configured()
        keeping = asyncio.create_task(keep_certificate(nanny, "worker"))
        self._certificate = log_failure(keeping, logger, "Keeping the certificate")

    async def teardown(self, nanny: Nanny) -> None:
        """Have the scheduler drain the worker. Dask waits for this before it stops the worker.

        A second request to end the nanny ends it at once.
        """
        if self._certificate is not None:
            self._certificate.cancel()
        worker = nanny.worker_address
        if worker is None or not nanny.is_alive():
            return
        try:
            await nanny.scheduler.girder_leave(worker=worker)
        except Exception as e:  # noqa: BLE001 - no error may keep the nanny from its end
            logger.warning("Worker %s is closing but cannot tell the scheduler: %r", worker, e)
