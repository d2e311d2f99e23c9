"""The files, the addresses and the administrator of a stack."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from girder_dask.errors import StackError
from girder_dask.standalone.directory import StackDirectory
from girder_dask.standalone.plan import Plan

__all__ = ["StackInfo"]


class StackInfo:
    """The files, the addresses and the administrator of a stack.

    Parameters
    ----------
    directory
        Where data, logs and secrets are kept.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = StackDirectory(directory)
        self._planned: Plan | None = None
        self._state: dict[str, Any] = {}

    @property
    def directory(self) -> Path:
        """Where data, logs and secrets are kept."""
        return self._directory.path

    @property
    def stack_file(self) -> Path:
        """The JSON file that describes what runs now."""
        return self._directory.stack_file

    @property
    def credential_file(self) -> Path:
        """The file that holds the scheduler's API key."""
        return self._directory.credential_file

    @property
    def girder(self) -> str:
        """Girder's web page."""
        return self._plan.girder

    @property
    def api(self) -> str:
        """Girder's REST API."""
        return self._plan.api

    @property
    def mongo(self) -> str:
        """The URI of Girder's database."""
        return self._plan.mongo

    @property
    def redis(self) -> str:
        """The URL of the broker of Girder's notifications."""
        return self._plan.redis

    @property
    def scheduler(self) -> str:
        """The address of the Dask scheduler."""
        return self._plan.scheduler

    @property
    def dashboard(self) -> str:
        """Dask's dashboard."""
        return f"{self._plan.dashboard}/status"

    @property
    def tls_files(self) -> dict[str, str] | None:
        """The files that a client of the scheduler needs (``ca``, ``cert``, ``key``), if any."""
        authority = self._plan.authority
        if authority is None:
            return None
        certificate = self._plan.certificates["client"]
        return {
            "ca": str(authority.certificate),
            "cert": str(certificate),
            "key": str(certificate.with_suffix(".key")),
        }

    @property
    def api_key(self) -> str:
        """A key with all rights of the administrator."""
        return str(self._state["api_key"])

    @property
    def login(self) -> str:
        """The administrator's name."""
        return str(self._state["login"])

    @property
    def password(self) -> str:
        """The administrator's password."""
        return str(self._state["password"])

    @property
    def _plan(self) -> Plan:
        if self._planned is None:
            raise StackError(f"The stack in {self.directory} was not started.")
        return self._planned
