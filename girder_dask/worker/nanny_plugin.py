"""What girder_dask does in a nanny. The scheduler sends it to every nanny that joins."""

from __future__ import annotations

import logging

from distributed import Nanny
from distributed.diagnostics.plugin import NannyPlugin

__all__ = ["GirderNannyPlugin"]

logger = logging.getLogger(__name__)


class GirderNannyPlugin(NannyPlugin):
    """Has the worker leave in good order before its nanny ends."""

    name = "girder-dask"
    restart = False

    async def teardown(self, nanny: Nanny) -> None:
        """Give what runs on the worker its time; Dask waits for this before it stops the worker.

        A nanny that is asked to end twice ends at once.
        """
        worker = nanny.worker_address
        if worker is None or not nanny.is_alive():
            return
        try:
            await nanny.scheduler.girder_leave(worker=worker)
        except Exception as e:  # noqa: BLE001 - whatever it is, the nanny is to end
            logger.warning("Worker %s ends and cannot tell the scheduler: %r", worker, e)
