"""The connections to a scheduler, by which Girder calls its procedures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from girder_dask.plugin.scheduler_answers import check_answer

__all__ = ["SchedulerRpc"]

_CONNECT_TIMEOUT_S = 3.0


class SchedulerRpc:
    """The connections to one scheduler at a time.

    Parameters
    ----------
    site
        Returns the id of this Girder. A scheduler of another Girder is refused.
    """

    def __init__(self, site: Callable[[], str | None]) -> None:
        self._site = site
        self._rpc: Any = None

    @property
    def address(self) -> str | None:
        """The address to which the connections are, None without any."""
        return None if self._rpc is None else str(self._rpc.address)

    @property
    def connections(self) -> tuple[Any, ...]:
        """The connections, which may be closed."""
        return () if self._rpc is None else tuple(self._rpc.comms)

    async def call(
        self, address: str, operation: str, arguments: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Call a procedure of the scheduler at an address, and return its answer.

        Raises
        ------
        LookupError
            If it is no scheduler of this Girder
            (:func:`~girder_dask.plugin.scheduler_answers.check_answer`).
        OSError
            If it cannot be reached.
        """
        from distributed import rpc
        from distributed.security import Security

        if self.address != address:
            self.disconnect()
        if self._rpc is None:
            security = Security().get_connection_args("client")
            self._rpc = rpc(address, timeout=_CONNECT_TIMEOUT_S, connection_args=security)
        answer = await getattr(self._rpc, operation)(**arguments)
        return check_answer(answer, operation, self._site)

    def disconnect(self) -> None:
        """Close the connections."""
        if self._rpc is not None:
            self._rpc.close_comms()
            self._rpc = None
