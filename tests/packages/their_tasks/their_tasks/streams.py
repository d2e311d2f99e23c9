"""Streams of containers that are sent elsewhere, as packages of tasks define them."""

from __future__ import annotations

from typing import Any

from girder_worker.docker import transforms
from girder_worker.utils.transform import Transform


class SentTo(Transform):
    """The standard output or error of a container, sent to an address in chunks.

    Parameters
    ----------
    stream
        ``'ContainerStdOut'`` or ``'ContainerStdErr'``.
    url
        The address.
    """

    def __init__(self, stream: str, url: str) -> None:
        self.stream = stream
        self.url = url

    def transform(self, **kwargs: Any) -> Any:
        """Return the connection of both, which ``docker_run`` takes among its connectors."""
        from girder_worker.docker.io import FDReadStreamConnector

        target = transforms.ChunkedTransferEncodingStream(self.url).transform(**kwargs)
        return FDReadStreamConnector(getattr(transforms, self.stream)(), target)
