"""Girder's log contains no credentials."""

from __future__ import annotations

import contextlib
import io
import logging
import secrets
import stat
from pathlib import Path
from typing import Any

import pytest
import requests
from uvicorn.logging import AccessFormatter

from girder_dask.plugin.girder_log import _AuditFilter, _Factory
from girder_dask.protocol.redaction import clean_headers
from tests.support.deadline import until


def log_of(stack: Any) -> Path:
    (part,) = [part for part in stack.parts if part.name == "girder"]
    return Path(part.log)


def spoil(folder_id: str) -> None:
    """Give a folder metadata that Girder cannot send as JSON."""
    from bson import ObjectId
    from girder.models.folder import Folder

    change = {"$set": {"meta": {"n": float("nan")}}}
    Folder().collection.update_one({"_id": ObjectId(folder_id)}, change)


def test_what_is_logged_with_an_error_of_500(girder_stack, girder_user):
    token = girder_user.client.token
    made_up = {name: secrets.token_hex(16) for name in ("cookie", "password", "header", "basic")}
    girder_stack.call(spoil, girder_user.folder["_id"])
    before = log_of(girder_stack).stat().st_size
    answer = requests.get(
        f"{girder_stack.api}/folder/{girder_user.folder['_id']}?token={token}",
        headers={
            "Girder-Token": made_up["header"],
            "Cookie": f"girderToken={token}; session={made_up['cookie']}",
            "Authorization": f"Basic {made_up['basic']}",
            "X-Api-Key": made_up["password"],
            "X-Plain": "is-kept",
        },
        timeout=10,
    )
    assert answer.status_code == 500

    def logged() -> str:
        with log_of(girder_stack).open("rb") as log:
            log.seek(before)
            text = log.read().decode()
        return text if "?token=***" in text else ""

    text = until(logged)  # the access log has the request when it is answered
    assert "Request Headers" in text
    assert "x-plain: is-kept" in text.lower()
    for secret in (token, *made_up.values()):
        assert secret not in text


def test_nobody_else_can_read_what_the_stack_keeps(girder_stack):
    top = Path(girder_stack.directory)
    assert stat.S_IMODE(top.stat().st_mode) & 0o077 == 0
    for path in top.iterdir():
        if path.is_dir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    logs = list((top / "logs").iterdir())
    assert len(logs) >= 5
    kept = [*logs, *(p for p in top.iterdir() if p.is_file())]
    kept += [p for name in ("dask", "mongo", "redis") for p in (top / name).rglob("*")]
    for path in kept:
        with contextlib.suppress(FileNotFoundError):  # MongoDB makes and removes some
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@contextlib.contextmanager
def logging_to(formatter: logging.Formatter):
    text = io.StringIO()
    handler, make = logging.StreamHandler(text), logging.getLogRecordFactory()
    handler.setFormatter(formatter)
    logger = logging.getLogger("tests.girder_log")
    logger.addHandler(handler)
    logging.setLogRecordFactory(_Factory(make))
    try:
        yield logger, text
    finally:
        logging.setLogRecordFactory(make)
        logger.removeHandler(handler)


def test_tracebacks_and_arguments():
    with logging_to(logging.Formatter("%(message)s")) as (logger, text):
        try:
            raise ValueError({"Girder-Token": "5f3c5f3c", "Host": "girder"})
        except ValueError:
            logger.exception("sent %s", {"Authorization": "Bearer 5f3c5f3c", "Host": "girder"})
        logger.error("%d coins in %s", 7, "a box")
    said = text.getvalue()
    assert "5f3c5f3c" not in said
    assert "'Host': 'girder'" in said
    assert "ValueError" in said
    assert "7 coins in a box\n" in said


def test_access_log_of_uvicorn():
    with logging_to(AccessFormatter("%(request_line)s %(status_code)s")) as (logger, text):
        logger.warning(
            '%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", "/x?token=5f3c5f3c&a=1", "1.1", 200
        )
    assert text.getvalue() == "GET /x?token=********&a=1 HTTP/1.1 200 OK\n"


def test_audit_log():
    record = logging.LogRecord("girder_audit", logging.INFO, "", 0, "rest.request", (), None)
    params = {"password": "5f3c", "limit": "5"}
    record.details = {"method": "PUT", "params": params}
    assert _AuditFilter().filter(record)
    assert record.details == {"method": "PUT", "params": {"password": "***", "limit": "5"}}
    assert params["password"] == "5f3c", "the request goes on with it"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  GIRDER-TOKEN: abc\n  HOST: x", "  GIRDER-TOKEN: ***\n  HOST: x"),
        ("{'Cookie': 'a=1; b=2', 'Host': 'x'}", "{'Cookie': '***', 'Host': 'x'}"),
        ('[(b"authorization", b"Basic abc")]', '[(b"authorization", b"***")]'),
        ("Set-Cookie: girderToken=abc; Path=/", "Set-Cookie: ***"),
        ("sent girderToken=abc;", "sent girderToken=***;"),
        ("A cookie, and coins", "A cookie, and coins"),
    ],
)
def test_headers(text, expected):
    assert clean_headers(text) == expected
