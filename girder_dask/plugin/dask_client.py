"""The Dask client of the Girder process, for work that is not a job."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from girder_dask.errors import SchedulerError
from girder_dask.utils.forks import reset_after_fork

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["LazyDaskClient"]

_CONNECT_TIMEOUT_S = 5.0


class LazyDaskClient:
    """A Dask client that is created on first use, in a forked process anew.

    Parameters
    ----------
    address
        Returns the scheduler's address, or None. Called each time, so that a changed setting takes
        effect.
    """

    def __init__(self, address: Callable[[], str | None]) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._client_address: str | None = None
        # Clients of processes from which this one was forked. They cannot be used here, and must
        # not be deleted either: a client closes itself through its event loop, which has no thread
        # here, and this could close sockets of the parent.
        self._clients_of_parents: list[Client] = []
        reset_after_fork(self, LazyDaskClient._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        if self._client is not None:
            self._clients_of_parents.append(self._client)
            self._client = None

    def client(self) -> Client:
        """Return the client.

        Raises
        ------
        SchedulerError
            If no scheduler is set, or it does not answer.
        """
        address = self._address()
        if not address:
            raise SchedulerError(
                "This Girder has no Dask scheduler. Set dask.scheduler_address, for example to "
                "tcp://dask.example.org:8786, on the page of the plugin Dask."
            )
        with self._lock:
            if self._client is not None and self._client_address == address:
                if self._client.status not in ("closed", "closing"):
                    return self._client
                self._client = None
            self._drop()
            self._client = _connect(address)
            self._client_address = address
            return self._client

    def close(self) -> None:
        """Close the client."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close(timeout=_CONNECT_TIMEOUT_S)


def _connect(address: str) -> Client:
    from distributed import Client

    try:
        return Client(address, timeout=_CONNECT_TIMEOUT_S, set_as_default=False, name="girder")
    except (OSError, TimeoutError) as e:
        raise SchedulerError(
            f"The Dask scheduler at {address} does not answer: {e}. Check that it runs and that "
            "Girder's setting dask.scheduler_address is right; 'girder-dask doctor' checks both."
        ) from e
