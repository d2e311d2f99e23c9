"""Arguments of a call as a job shows them: bounded, and plain."""

from __future__ import annotations

import itertools
import math
import reprlib
from collections.abc import Mapping
from datetime import date
from typing import Any

from girder_dask.protocol.job_fields import MOST_LEVELS
from girder_dask.protocol.payload import Dependency
from girder_dask.protocol.redaction import clean_text
from girder_dask.protocol.transform_types import is_transform

__all__ = ["readable"]


class _Short(reprlib.Repr):
    """Short representations, without addresses for objects whose own one fails."""

    def repr_instance(self, x: Any, level: int) -> str:  # noqa: ARG002
        try:
            text = repr(x)
        except Exception as e:  # noqa: BLE001 - a foreign __repr__ may raise anything
            return f"<{type(x).__qualname__} whose repr raised {type(e).__name__}>"
        half = (self.maxother - 1) // 2
        return text if len(text) <= self.maxother else f"{text[:half]}…{text[-half:]}"


_short = _Short()
_short.maxstring = _short.maxother = 200
_short.maxlist = _short.maxtuple = _short.maxdict = 20
_SHOWN_AS_IS = (str, int, bool, type(None))
_MOST_CHARACTERS = 10_000
_MOST_ITEMS = 1_000
_MOST_INT = 2**63


def readable(value: Any) -> Any:
    """Return ``value`` as it is shown on a job: plain values, transforms as ``_repr_model_``.

    >>> from girder_dask.transforms import GirderFileId
    >>> readable([GirderFileId('5f3c'), 2, {'k': {3}}])
    ["GirderFileId('5f3c')", 2, {'k': '{3}'}]
    """
    return _readable(value, 0)


def _readable(value: Any, level: int) -> Any:
    if level > MOST_LEVELS and isinstance(value, (Mapping, list, tuple)):
        return "…"
    if isinstance(value, Mapping):
        shown = dict(itertools.islice(value.items(), _MOST_ITEMS))
        return {str(k): _readable(v, level + 1) for k, v in shown.items()}
    if isinstance(value, (list, tuple)):
        items = [_readable(v, level + 1) for v in value[:_MOST_ITEMS]]
        more = len(value) - len(items)
        return [*items, f"… and {more:,} more"] if more else items
    return _readable_leaf(value)


def _readable_leaf(value: Any) -> Any:
    if isinstance(value, Dependency):
        return f"JobResult('{value.job_id}')"
    if is_transform(value):
        describe = getattr(value, "_repr_model_", None)
        return clean_text(str(describe() if callable(describe) else type(value).__name__))
    if isinstance(value, str):
        text = clean_text(value)
        return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "…"
    if isinstance(value, int) and abs(value) >= _MOST_INT:
        return repr(value)
    if type(value) in _SHOWN_AS_IS or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, date):
        return value.isoformat()
    return clean_text(_short.repr(value))
