"""Which container engine a worker uses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from girder_dask.docker.engines import choose
from girder_dask.errors import ContainerError


def test_choose_passes_a_directory_that_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /run/user is in a unit of systemd with ProtectHome."""
    stat = os.stat

    def refuse(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if str(path).endswith(".sock"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(ContainerError, match="a socket at"):
        choose("auto", {"PATH": str(tmp_path)})
