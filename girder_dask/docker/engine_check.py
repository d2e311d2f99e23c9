"""The container engine of this process, for ``girder-dask doctor``."""

from __future__ import annotations

from typing import Any

from girder_dask.docker import apptainer, engines
from girder_dask.docker.engine_api import EngineApi
from girder_dask.docker.settings import ContainerSettings
from girder_dask.errors import GirderDaskError

__all__ = ["describe_engine"]


def describe_engine() -> dict[str, Any]:
    """Return which container engine this process uses, or why it has none.

    Returns
    -------
    dict
        ``name``: the engine and its version, or None. ``problem``: why there is none. ``expected``:
        whether a setting says that there is one.
    """
    expected = True
    try:
        settings = ContainerSettings.read()
        expected = settings.engine not in ("auto", "none")
        choice = engines.choose(settings.engine)
        if choice.program is not None:
            name = apptainer.version(choice.program)
        else:
            name = engines.describe(EngineApi(str(choice.socket))).name
    except GirderDaskError as e:
        return {"name": None, "problem": str(e), "expected": expected}
    return {"name": name, "problem": None, "expected": expected}
