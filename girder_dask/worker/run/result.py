"""The result of a run: the value for Dask, and the same packed for Girder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dask.sizeof import sizeof

from girder_dask.errors import JobInterrupted
from girder_dask.protocol.error_text import summary
from girder_dask.protocol.payload import (
    PACKING_OVERHEAD_BYTES,
    NotOpened,
    Unpicklable,
    is_plain,
    open_value,
    pack_value,
)
from girder_dask.protocol.redaction import Secrets

__all__ = ["PackedResult", "pack_result"]


@dataclass(frozen=True, slots=True)
class PackedResult:
    """The result of a run. ``data`` is None if Girder does not store it; ``note`` explains why."""

    value: Any
    data: bytes | None = None
    note: str | None = None


def pack_result(value: Any, *, max_bytes: int, secrets: Secrets) -> PackedResult:
    """Pack the value of a function, without the secrets of its job.

    Parameters
    ----------
    max_bytes
        Size of the largest result that Girder stores with a job.
    secrets
        Secrets to blank in the result.
    """
    if isinstance(value, Unpicklable):
        return PackedResult(value, note=value.reason)
    try:
        data = pack_value(value)
        if not is_plain(data):
            sizeof(value)  # Dask calls it too, where SystemExit would end the worker
    except JobInterrupted:
        raise
    except BaseException as e:  # noqa: BLE001 - a __reduce__ may raise anything
        # Dask could not send it anywhere, and each part of Dask would log a traceback.
        reason = f"it cannot be pickled ({summary(e)})"
        return PackedResult(Unpicklable(reason), note=reason)
    if len(data) > max_bytes + PACKING_OVERHEAD_BYTES:
        note = (
            f"it takes {len(data):,} bytes, more than the {max_bytes:,} that are kept with a job "
            "(girder.worker.max-result)"
        )
        return PackedResult(value, note=note)
    cleaned = secrets.clean_data(data)
    if cleaned == data:
        return PackedResult(value, data)
    try:
        return PackedResult(open_value(cleaned, unpickle=True), cleaned)
    except NotOpened as e:
        reason = f"it held a secret of the job, and without it {e}"
        return PackedResult(Unpicklable(reason), cleaned)
