"""The output of containers on the streams of the calling thread, which lead to the job's log."""

from __future__ import annotations

import codecs
import selectors
import sys
from collections.abc import Callable, Iterable
from typing import Protocol

__all__ = ["OutputWriter", "Source", "follow"]

# Seconds between two looks at whether the job is being canceled.
_TICK_S = 0.2


class Source(Protocol):
    """Something that brings bytes of a container."""

    def fileno(self) -> int:
        """Return the descriptor to wait for."""

    def read(self) -> bool:
        """Read what has come. Return False at the end."""


class OutputWriter:
    """Writer of a container's bytes to ``sys.stdout`` and ``sys.stderr``."""

    def __init__(self) -> None:
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}
        #: The number of bytes so far.
        self.nbytes = 0

    def write(self, name: str, data: bytes) -> None:
        """Write bytes to the stream of this name."""
        self.nbytes += len(data)
        stream = getattr(sys, name)
        buffer = getattr(stream, "buffer", None)
        if buffer is not None:
            buffer.write(data)
            buffer.flush()
        elif stream is not None:  # such as io.StringIO
            stream.write(self._decoder(name).decode(data))

    def _decoder(self, name: str) -> codecs.IncrementalDecoder:
        if name not in self._decoders:
            self._decoders[name] = codecs.getincrementaldecoder("utf-8")("replace")
        return self._decoders[name]


def follow(
    sources: Iterable[Source], also: Iterable[Source], on_tick: Callable[[], object]
) -> None:
    """Read from sources until all of them have ended.

    Parameters
    ----------
    sources
        The sources to wait for.
    also
        Sources to read meanwhile, whose end is not waited for.
    on_tick
        Called several times a second.
    """
    waiting = set(sources)
    others = list(also)
    with selectors.DefaultSelector() as selector:
        for source in [*waiting, *others]:
            selector.register(source, selectors.EVENT_READ, source)
        while waiting:
            on_tick()
            for key, _ in selector.select(_TICK_S):
                if not key.data.read():
                    selector.unregister(key.fileobj)
                    waiting.discard(key.data)
        for source in others:  # what the container has written last
            source.read()
