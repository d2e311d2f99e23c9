"""Decoding of UTF-8 that arrives in pieces."""

from __future__ import annotations

import codecs
from collections.abc import Hashable

__all__ = ["Utf8Decoder", "encodable"]


class Utf8Decoder:
    """Decoder of UTF-8 from several sources, each of which may split its characters.

    Examples
    --------
    >>> decoder = Utf8Decoder()
    >>> decoder.decode("a", "é".encode()[:1])
    ''
    >>> decoder.decode("b", b"other")
    'other'
    >>> decoder.decode("a", "é".encode()[1:])
    'é'
    """

    def __init__(self) -> None:
        #: Sources that are in the middle of a character; nearly always none.
        self.pending: dict[Hashable, codecs.IncrementalDecoder] = {}

    def decode(self, source: Hashable, data: str | bytes) -> str:
        """Return the characters that ``data`` completes. Invalid bytes become U+FFFD."""
        if isinstance(data, str):
            return self.end(source) + data
        decoder = self.pending.pop(source, None)
        if decoder is None:
            try:
                return data.decode("utf-8")
            except UnicodeDecodeError:
                decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        text = decoder.decode(data)
        if decoder.getstate()[0]:
            self.pending[source] = decoder
        return text

    def end(self, source: Hashable) -> str:
        """Return U+FFFD if ``source`` is in the middle of a character, else nothing."""
        decoder = self.pending.pop(source, None)
        return "" if decoder is None else decoder.decode(b"", final=True)

    def end_all(self) -> str:
        """End every source."""
        return "".join(self.end(source) for source in list(self.pending))


def encodable(text: str) -> str:
    r"""Return text that can be encoded in UTF-8: lone surrogates become ``\udcxx``.

    >>> encodable("7 coins\ud800")
    '7 coins\\ud800'
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text
