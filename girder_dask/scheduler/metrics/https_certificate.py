"""When the certificate of Girder's https expires, as the scheduler sees it.

It is read in the background, so that a scrape waits for no network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from girder_dask.http.authorities import https_expiry
from girder_dask.metrics import families

__all__ = ["HttpsCertificate"]

_TIMEOUT_S = 10.0
# While Girder does not answer, and afterwards.
_RETRY_S, _INTERVAL_S = 60.0, 600.0


class HttpsCertificate:
    """The certificate with which Girder answers the scheduler.

    Parameters
    ----------
    url
        Girder's REST API. There is no metric without https.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._expires: float | None = None

    async def step(self) -> float:
        """Look at the certificate, and return the seconds until the next look.

        One that is refused, as an expired one is, leaves the time of the last that was accepted.
        """
        found = await asyncio.to_thread(https_expiry, self._url, timeout_s=_TIMEOUT_S)
        if found is not None:
            self._expires = found
        return _INTERVAL_S if found is not None else _RETRY_S

    def families(self) -> Iterator[Any]:
        """Yield when it expires, if that is known."""
        if self._expires is not None:
            yield families.gauge(
                "girder_dask_scheduler_https_certificate_expiry_timestamp_seconds",
                "When the certificate of Girder's https expires.",
                {(): self._expires},
            )
