"""Arguments of a call as a job shows them: plain values of bounded size."""

from __future__ import annotations

import itertools
import math
import reprlib
from collections.abc import Mapping
from datetime import date
from typing import Any

from girder_dask.protocol.job_fields import MAX_FIELD_LEVELS
from girder_dask.protocol.payload import Dependency
from girder_dask.protocol.redaction import clean_text
from girder_dask.protocol.transform_types import is_transform

__all__ = ["readable"]


class _Short(reprlib.Repr):
    """Short representations, without an address for objects whose ``repr`` fails."""

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
_JSON_TYPES = (str, int, bool, type(None))
_MAX_TEXT_CHARACTERS = 10_000
_MAX_ITEMS = 1_000
_MAX_INT64 = 2**63


def readable(value: Any) -> Any:
    """Return ``value`` as a job shows it: plain values, transforms as ``_repr_model_``.

    >>> from girder_dask.transforms import GirderFileId
    >>> readable([GirderFileId('5f3c'), 2, {'k': {3}}])
    ["GirderFileId('5f3c')", 2, {'k': '{3}'}]
    """
    return _readable(value, 0)


def _readable(value: Any, level: int) -> Any:
    if level > MAX_FIELD_LEVELS and isinstance(value, (Mapping, list, tuple)):
        return "…"
    if isinstance(value, Mapping):
        shown = dict(itertools.islice(value.items(), _MAX_ITEMS))
        return {str(k): _readable(v, level + 1) for k, v in shown.items()}
    if isinstance(value, (list, tuple)):
        items = [_readable(v, level + 1) for v in value[:_MAX_ITEMS]]
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
        return text if len(text) <= _MAX_TEXT_CHARACTERS else text[:_MAX_TEXT_CHARACTERS] + "…"
    if isinstance(value, int) and abs(value) >= _MAX_INT64:
        return repr(value)
    if type(value) in _JSON_TYPES or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, date):
        return value.isoformat()
    return clean_text(_short.repr(value))
