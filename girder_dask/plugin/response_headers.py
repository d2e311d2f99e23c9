"""Response headers for files of users: a browser may show them but never runs them.

Girder's pages and the files of users have the same origin. A page among these files could act as
anyone who opens it.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any
from urllib.parse import quote

from girder.api.rest import setResponseHeader

__all__ = [
    "INLINE_MEDIA_TYPES",
    "content_disposition",
    "forbid_scripts",
    "is_media_type",
    "set_headers",
]

#: The media types that a browser may show. SVG and PDF can contain scripts.
INLINE_MEDIA_TYPES = frozenset({"image/gif", "image/jpeg", "image/png", "image/webp", "text/plain"})

_OPAQUE_MEDIA_TYPE = "application/octet-stream"
_MEDIA_TYPE = re.compile(
    r"[\w!#$&^.+-]{1,100}/[\w!#$&^.+-]{1,100}([ \t]*;[\x20-\x7e]{0,200})?", re.ASCII
)
_MAX_NAME_CHARS = 255


def forbid_scripts() -> None:
    """Forbid the browser to run scripts of this answer, and to guess another media type."""
    setResponseHeader("X-Content-Type-Options", "nosniff")
    setResponseHeader("Content-Security-Policy", "sandbox; default-src 'none'")


def set_headers(name: str, mime_type: Any, wanted: str) -> None:
    """Set the headers for the media type and the name of a file, and whether it is shown.

    Parameters
    ----------
    name
        The name of the file; it may hold any characters.
    mime_type
        The media type that the owner of the file has given.
    wanted
        ``inline`` or ``attachment``. ``inline`` takes effect only for harmless media types.
    """
    kind = mime_type if is_media_type(mime_type) else _OPAQUE_MEDIA_TYPE
    bare = kind.partition(";")[0].strip().lower()
    is_shown = wanted == "inline" and bare in INLINE_MEDIA_TYPES
    setResponseHeader("Content-Type", kind)
    setResponseHeader("Content-Disposition", content_disposition(name, inline=is_shown))


def is_media_type(text: Any) -> bool:
    """Return True if a text is a media type, such as ``text/plain;charset=utf-8``.

    >>> is_media_type("image/png"), is_media_type("text/html\\r\\nSet-Cookie: a=b")
    (True, False)
    """
    return isinstance(text, str) and _MEDIA_TYPE.fullmatch(text) is not None


def content_disposition(name: str, *, inline: bool) -> str:
    r"""Return the header ``Content-Disposition`` for the last part of a name (RFC 6266).

    >>> content_disposition('plots/Straße "1".png', inline=False)
    'attachment; filename="Strae _1_.png"; filename*=UTF-8\'\'Stra%C3%9Fe%20%221%22.png'
    """
    last = name.rpartition("/")[2].encode("utf-8", "replace").decode()[-_MAX_NAME_CHARS:] or "file"
    plain = unicodedata.normalize("NFKD", last).encode("ascii", "ignore").decode()
    plain = re.sub(r'["\\%\x00-\x1f\x7f]', "_", plain) or "file"
    shown = f'{"inline" if inline else "attachment"}; filename="{plain}"'
    return shown if plain == last else f"{shown}; filename*=UTF-8''{quote(last, safe='')}"
