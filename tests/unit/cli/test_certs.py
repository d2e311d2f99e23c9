"""``girder-dask certs`` on a terminal."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from girder_dask.cli import certs, main
from girder_dask.standalone import authority


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["certs", *map(str, arguments)])


def test_certs_init_issue_renew_and_show(tmp_path: Path) -> None:
    directory = tmp_path / "authority"
    assert run("init", directory).exit_code == 0
    assert run("issue", directory, "scheduler", "dask.example.org", "192.0.2.7").exit_code == 0
    assert run("issue", directory, "client", "--name", "alice", "--days", "9").exit_code == 0
    shown = run("show", directory)
    assert shown.exit_code == 0
    assert "alice.pem: expires SOON in 9 days" in shown.output
    assert "scheduler-dask.example.org.pem: expires in 397 days" in shown.output
    assert "(dask.example.org, 192.0.2.7)" in shown.output
    assert "alice.pem" in run("renew", directory, "alice").output
    rows = {Path(r["file"]).name: r for r in json.loads(run("show", directory, "--json").output)}
    assert round(rows["alice.pem"]["days_left"]) == 397
    assert rows["scheduler-dask.example.org.pem"]["hosts"] == ["dask.example.org", "192.0.2.7"]
    assert "Copy it to every host" in run("renew", "--authority", directory).output


def test_certs_show_has_an_exit_code_for_the_expired(tmp_path: Path) -> None:
    site = authority.Authority(tmp_path)
    site.create()
    site.issue("client", days=-1)
    shown = run("show", tmp_path)
    assert shown.exit_code == 1
    assert "client.pem: EXPIRED" in shown.output


def test_certs_explain_what_is_refused(tmp_path: Path) -> None:
    missing = run("issue", tmp_path / "none", "client")
    assert missing.exit_code == 1
    assert "Create one with 'girder-dask certs init" in missing.output
    for wrong in (["issue", tmp_path, "king"], ["init", tmp_path, "--days", "-1"]):
        assert run(*wrong).exit_code == 2
    assert not list(tmp_path.iterdir())


def test_certs_options_are_those_of_the_authority() -> None:
    assert sorted(certs.commands) == ["init", "issue", "renew", "show"]
    from girder_dask.cli.certs import _AUTHORITY_DAYS, _CERTIFICATE_DAYS, _ROLES

    assert set(_ROLES) == set(authority.ROLES)
    assert _AUTHORITY_DAYS == authority.AUTHORITY_DAYS
    assert _CERTIFICATE_DAYS == authority.CERTIFICATE_DAYS
