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


def test_choose_says_that_an_address_on_the_network_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda _path: False)
    environment = {"PATH": str(tmp_path), "DOCKER_HOST": "tcp://docker.example.org:2376"}
    with pytest.raises(ContainerError, match=r"DOCKER_HOST is the address .*, which is not used"):
        choose("auto", environment)
    with pytest.raises(ContainerError) as error:
        choose("podman", environment)
    assert "DOCKER_HOST" not in str(error.value)
