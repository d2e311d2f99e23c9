"""The plugin of Dask nannies, which the scheduler sends to every nanny that joins."""

from __future__ import annotations

import logging

from distributed import Nanny
from distributed.diagnostics.plugin import NannyPlugin

__all__ = ["GirderNannyPlugin"]

logger = logging.getLogger(__name__)


class GirderNannyPlugin(NannyPlugin):
    """Plugin that drains a worker before its nanny stops it."""

    name = "girder-dask"
    restart = False

    async def teardown(self, nanny: Nanny) -> None:
        """Have the scheduler drain the worker. Dask waits for this before it stops the worker.

        A second request to end the nanny ends it at once.
        """
        worker = nanny.worker_address
        if worker is None or not nanny.is_alive():
            return
        try:
            await nanny.scheduler.girder_leave(worker=worker)
        except Exception as e:  # noqa: BLE001 - no error may keep the nanny from its end
            logger.warning("Worker %s is closing but cannot tell the scheduler: %r", worker, e)
