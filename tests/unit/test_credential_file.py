"""The file of a secret: who may read it, and who may write it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from girder_dask import credential
from girder_dask.errors import GirderError

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="files of other accounts need root")
OTHER_ACCOUNT = 61_234


def test_written_file_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "key"
    credential.write(path, "first")
    credential.write(path, "second")
    assert path.read_text() == "second\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@needs_root
def test_replaced_file_stays_that_of_its_account(tmp_path: Path) -> None:
    path = tmp_path / "key"
    credential.write(path, "first")
    os.chown(path, OTHER_ACCOUNT, OTHER_ACCOUNT + 1)
    credential.write(path, "second")
    found = path.stat()
    assert (found.st_uid, found.st_gid) == (OTHER_ACCOUNT, OTHER_ACCOUNT + 1)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert path.read_text() == "second\n"


def test_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GirderError, match="there is no directory"):
        credential.check_writable(tmp_path / "nowhere" / "key")
    credential.check_writable(tmp_path / "key")


@needs_root
def test_file_of_another_account_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    path.write_text("theirs\n")
    credential.check_writable(path)  # root may
    monkeypatch.setattr(os, "getuid", lambda: OTHER_ACCOUNT)
    with pytest.raises(GirderError, match="another account's"):
        credential.check_writable(path)
    assert path.read_text() == "theirs\n"
