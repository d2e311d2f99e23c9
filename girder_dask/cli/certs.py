"""``girder-dask certs``: the site's own certificate authority, for TLS between Dask's processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["certs"]

_F = TypeVar("_F", bound=Callable[..., Any])

_AUTHORITY_DAYS = 3650.0
_CERTIFICATE_DAYS = 397.0
_ROLES = ("scheduler", "worker", "girder", "client")
_SOON_DAYS = 30.0

_directory = click.argument("directory", type=click.Path(file_okay=False, path_type=Path))


_DAYS = click.FloatRange(min=0, min_open=True, max=36500)


def _days(default: float) -> Callable[[_F], _F]:
    return click.option(
        "--days", type=_DAYS, default=default, show_default=True, help="Days until it expires."
    )


@click.group()
def certs() -> None:
    """Certificates for TLS between Dask's processes, from an authority of the site.

    DIRECTORY holds the authority and what it has issued. ca.key stays there. Each host needs
    ca.pem, and the certificate and the key of its role.
    """


@certs.command()
@_directory
@click.option("--name", default="girder_dask", show_default=True, help="The authority's name.")
@_days(_AUTHORITY_DAYS)
def init(directory: Path, name: str, days: float) -> None:
    """Create the authority: ca.pem and ca.key."""
    from girder_dask.standalone.authority import Authority

    authority = Authority(directory)
    authority.create(name=name, days=days)
    click.echo(f"Created {authority.certificate} and {authority.key}. Keep the key on this host.")


@certs.command()
@_directory
@click.argument("role", type=click.Choice(_ROLES))
@click.argument("hosts", nargs=-1)
@click.option("--name", help="The name of the files. Default: the role and the first host.")
@_days(_CERTIFICATE_DAYS)
def issue(
    directory: Path, role: str, hosts: tuple[str, ...], name: str | None, days: float
) -> None:
    """Issue a certificate and a key for a ROLE on a host with these names and addresses."""
    from girder_dask.standalone.authority import Authority

    path = Authority(directory).issue(role, hosts, name=name, days=days)
    click.echo(f"Issued {path} and {path.with_suffix('.key')}.")


@certs.command()
@_directory
@click.argument("names", nargs=-1)
@click.option("--authority", "is_authority", is_flag=True, help="Extend the authority instead.")
@click.option("--days", type=_DAYS, help="Days until they expire.")
def renew(directory: Path, names: tuple[str, ...], is_authority: bool, days: float | None) -> None:
    """Issue certificates again, with new keys. Default: all of DIRECTORY.

    The old ones stay valid until they expire. With --authority, extend the authority with the same
    key: everything that it has issued stays valid.
    """
    from girder_dask.standalone.authority import Authority

    authority = Authority(directory)
    if is_authority:
        if names:
            raise click.UsageError("--authority takes no names.")
        authority.renew_authority(days=_AUTHORITY_DAYS if days is None else days)
        click.echo(f"Extended {authority.certificate}. Copy it to every host.")
        return
    renewed = authority.renew(names, days=_CERTIFICATE_DAYS if days is None else days)
    for path in renewed:
        click.echo(f"Renewed {path} and {path.with_suffix('.key')}.")
    if not renewed:
        click.echo(f"{directory} has no certificates but the authority's.")


@certs.command()
@_directory
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
def show(directory: Path, as_json: bool) -> int:
    """Show the certificates and when they expire. The exit code is 1 if one has expired."""
    from girder_dask.standalone.authority import Authority

    found = list(Authority(directory).certificates())
    if as_json:
        rows = [
            {
                "file": str(info.path),
                "name": info.name,
                "hosts": info.hosts,
                "expires": info.not_after.isoformat(),
                "days_left": round(info.days_left(), 2),
            }
            for info in found
        ]
        click.echo(json.dumps(rows, indent=2))
    else:
        for info in found:
            state = _state(info.days_left())
            hosts = f"  ({', '.join(info.hosts)})" if info.hosts else ""
            click.echo(f"{info.path.name}: {state}, {info.not_after:%Y-%m-%d %H:%M} UTC{hosts}")
    return 1 if any(info.days_left() <= 0 for info in found) else 0


def _state(days_left: float) -> str:
    if days_left <= 0:
        return "EXPIRED"
    soon = "expires SOON" if days_left < _SOON_DAYS else "expires"
    return f"{soon} in {days_left:.0f} days"
