"""Redaction of the secrets of runs in logs, results and errors.

A run has :class:`Secrets`: the token of its job, and other credentials that it was given. Each
character is replaced by an asterisk, so that JSON and pickles stay valid. Parts of a secret that
was cut are blanked from 31 characters on; shorter parts leave more than half of a token unknown.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Secrets", "clean_data", "clean_headers", "clean_text", "clean_urls", "secrets_in"]

# A shorter one occurs in ordinary text, and can be guessed.
_MIN_SECRET_CHARACTERS = 12
# The length of the pieces by which a cut secret is found. A search for shorter ones is slower.
_PIECE_CHARACTERS = 16
# The attributes of a session that hold credentials.
_CREDENTIAL_ATTRIBUTES = ("auth", "headers", "cookies", "params", "proxies")

# Credentials in a URL: parameters, and a user's password. Only characters of URLs match, so that
# no other part of a pickle is taken for a URL.
_SIGNATURE = re.compile(
    r"(?i)([?&;](?:(?:access_?|auth_?)?token|api_?key|password|passwd|secret|sig|signature"
    r"|x-amz-(?:credential|signature|security-token))=|api_key/token\?(?:[\w.~%&=-]*&)?key=)"
    r"([\w.~%+/=-]+)|(://[\w.~%-]*:)([\w.~%!$&'()*+,;=-]+)(?=@)",
    re.ASCII,
)

_NAME = r"(?:girder-token|(?:proxy-)?authorization|(?:set-)?cookie|x-[\w-]*(?:token|key|secret))"
# A header as sent, and in the repr of a mapping or a pair; a cookie alone.
_HEADER = re.compile(
    rf"(?im)(\b{_NAME}[ \t]*[:=][ \t]*)([^\r\n]+)"
    rf"|(b?[\"']{_NAME}[\"']\s*[:,]\s*b?)(\"[^\"\r\n]*\"|'[^'\r\n]*')"
    r"|(\bgirderToken=)([\w.~%-]+)"
)

_lock = threading.Lock()
_known: tuple[Secrets, ...] = ()


class _Form:
    """One encoding of a secret, as text or as bytes."""

    __slots__ = ("_pieces", "blank", "fill", "whole")

    def __init__(self, whole: Any, fill: Any) -> None:
        self.whole = whole
        self.fill = fill
        self.blank = fill * len(whole)
        self._pieces: list[tuple[int, Any]] | None = None

    @property
    def pieces(self) -> list[tuple[int, Any]]:
        """Parts of the secret, each with its offset."""
        if self._pieces is None:
            last = max(1, len(self.whole) - _PIECE_CHARACTERS + 1)
            self._pieces = [
                (at, self.whole[at : at + _PIECE_CHARACTERS])
                for at in range(0, last, _PIECE_CHARACTERS)
            ]
        return self._pieces

    def clean(self, value: Any, *, cut: bool) -> Any:
        """Blank this form of the secret, and with ``cut`` its parts as well."""
        value = value.replace(self.whole, self.blank)
        if cut and len(self.whole) > _PIECE_CHARACTERS:
            for at, piece in self.pieces:
                if piece in value:
                    value = self._without(value, at, piece)
        return value

    def _without(self, value: Any, at: int, piece: Any) -> Any:
        kept, done = [], 0
        start = value.find(piece)
        while start >= 0:
            begin, end = self._extent(value, start, at)
            kept += [value[done : max(begin, done)], self.fill * (end - max(begin, done))]
            done = end
            start = value.find(piece, done)
        return value[:0].join([*kept, value[done:]])

    def _extent(self, value: Any, start: int, at: int) -> tuple[int, int]:
        """Return where the part of the secret around a piece begins and ends."""
        begin, first = start, at
        while begin and first and value[begin - 1] == self.whole[first - 1]:
            begin, first = begin - 1, first - 1
        end, last = start, at
        while end < len(value) and last < len(self.whole) and value[end] == self.whole[last]:
            end, last = end + 1, last + 1
        return begin, end


def _texts(secret: str) -> Iterator[tuple[str, str]]:
    """Yield the encodings of a secret, each with its replacement character."""
    yield secret, "*"
    if (quoted := quote(secret, safe="")) != secret:
        yield quoted, "*"
    for shift in range(3):  # base64 depends on the number of bytes before
        code = base64.b64encode(b"\0" * shift + secret.encode("utf-8", "surrogatepass")).decode()
        # Without characters that hold bits of the bytes before and after.
        yield code[(0, 2, 3)[shift] : (len(secret) + shift) * 8 // 6], "A"


class Secrets:
    """The secrets of one run, which this process redacts until they are closed.

    Examples
    --------
    >>> with Secrets('0123456789abcdef') as secrets:
    ...     secrets.clean_text('token=0123456789abcdef&limit=1')
    'token=****************&limit=1'
    """

    def __init__(self, *secrets: str | None) -> None:
        self._values: set[str] = set()
        self._texts: list[_Form] = []
        self._datas: list[_Form] = []
        self._before = ""
        self.add(*secrets)
        _register(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._values)}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, *secrets: str | None) -> None:
        """Add secrets. Strings that are too short are ignored."""
        for secret in secrets:
            if secret is None or len(secret) < _MIN_SECRET_CHARACTERS or secret in self._values:
                continue
            self._values.add(secret)
            for whole, fill in _texts(secret):
                data = whole.encode("utf-8", "surrogatepass")
                self._texts.append(_Form(whole, fill))
                self._datas.append(_Form(data, fill.encode()))

    def close(self) -> None:
        """Stop the redaction of these secrets in the output of other runs."""
        _unregister(self)

    def clean_text(self, text: str) -> str:
        """Return text of the run without its secrets and those of other runs."""
        for other in _known:
            text = other.blank_text(text, cut=other is self)
        return text if self in _known else self.blank_text(text, cut=True)

    def clean_data(self, data: bytes) -> bytes:
        """Return a packed value of the run without secrets."""
        for other in _known:
            data = other.blank_data(data, cut=False)
        return data

    def clean_log(self, text: str) -> str:
        """Return the next piece of the run's log without secrets, even those cut between pieces."""
        before, self._before = self._before, (self._before + text)[-self._reach :]
        return self.clean_text(before + text)[len(before) :]

    @property
    def _reach(self) -> int:
        return max((len(form.whole) for form in self._texts), default=1)

    def blank_text(self, text: str, *, cut: bool) -> str:
        """Blank these secrets in text; with ``cut`` also parts of them."""
        for form in self._texts:
            text = form.clean(text, cut=cut and form.fill == "*")
        return text

    def blank_data(self, data: bytes, *, cut: bool) -> bytes:
        """Blank these secrets in bytes; with ``cut`` also parts of them."""
        for form in self._datas:
            data = form.clean(data, cut=cut and form.fill == b"*")
        return data


def _register(secrets: Secrets) -> None:
    global _known
    with _lock:
        _known = (*_known, secrets)


def _unregister(secrets: Secrets) -> None:
    global _known
    with _lock:
        _known = tuple(other for other in _known if other is not secrets)


def clean_text(text: str) -> str:
    """Return text without the secrets of the runs in this process.

    >>> clean_text('nothing runs here')
    'nothing runs here'
    """
    for secrets in _known:
        text = secrets.blank_text(text, cut=True)
    return text


def clean_data(data: bytes) -> bytes:
    """Return bytes, such as a pickle, without the secrets of the runs in this process.

    For small data: it searches for credentials in URLs as well.
    """
    for secrets in _known:
        data = secrets.blank_data(data, cut=True)
    return clean_urls(data.decode("latin-1")).encode("latin-1")


def clean_urls(text: str) -> str:
    """Return text with the credentials in its URLs blanked.

    >>> clean_urls('GET http://me:secret@girder/user/me?token=abc&limit=5')
    'GET http://me:******@girder/user/me?token=***&limit=5'
    """
    # Most texts have none, and this check is a hundred times faster.
    if not ("=" in text and any(each in text for each in "?&;")) and "://" not in text:
        return text
    return _SIGNATURE.sub(_blanked, text)


def clean_headers(text: str) -> str:
    """Return text with the credentials in its headers and URLs blanked.

    >>> clean_headers("GIRDER-TOKEN: 5f3c\\nHOST: girder")
    'GIRDER-TOKEN: ***\\nHOST: girder'
    """
    return clean_urls(_HEADER.sub(_without_value, text))


def _without_value(found: re.Match[str]) -> str:
    name = found[1] or found[3] or found[5]
    value = found[2] or found[4] or found[6]
    quote = value[0] if found[3] else ""
    return f"{name}{quote}***{quote}"


def _blanked(found: re.Match[str]) -> str:
    name, value = (found[1], found[2]) if found[1] else (found[3], found[4])
    return name + "*" * len(value)


def secrets_in(session: Mapping[str, Any] | None) -> list[str]:
    """Return the credentials in the attributes of a session.

    >>> secrets_in({'verify': '/etc/ca.pem', 'headers': {'X-Key': 'abcdefghijklm'}})
    ['abcdefghijklm']
    >>> secrets_in({'proxies': {'https': 'http://me:a%20secret@proxy'}})
    ['http://me:a%20secret@proxy', 'a%20secret', 'a secret']
    """
    texts = [
        text for name in _CREDENTIAL_ATTRIBUTES for text in _strings((session or {}).get(name))
    ]
    return [each for text in texts for each in (text, *_passwords(text))]


def _passwords(url: str) -> list[str]:
    """Return the password in a URL, as written and as sent."""
    found = re.search(r"://[^/?#]*?:([^/?#]*)@", url)
    return [] if found is None else list(dict.fromkeys((found[1], unquote(found[1]))))


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for each in value.values() for text in _strings(each)]
    if isinstance(value, (list, tuple)):
        return [text for each in value for text in _strings(each)]
    return []
