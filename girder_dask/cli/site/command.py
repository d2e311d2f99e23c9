"""The command ``girder-dask init``: writes the files of a site, and certificates for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from girder_dask.errors import GirderDaskError

if TYPE_CHECKING:
    from girder_dask.cli.site.files import Site

__all__ = ["init", "write_site"]

_LOCAL = "127.0.0.1"


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--hosts",
    default=_LOCAL,
    show_default=True,
    help="The hosts of Girder, of the scheduler and of workers: GIRDER,SCHEDULER,WORKER[,WORKER…]. "
    "The last also stands for those that are missing.",
)
@click.option(
    "--tls/--no-tls",
    "tls",
    default=None,
    help="Use TLS between Dask's processes, and issue certificates.  [default: unless all hosts "
    "are this one]",
)
@click.option("--girder-url", help="Girder's address for other hosts, such as that of its proxy.")
@click.option(
    "--prefix",
    default="/etc/girder_dask",
    show_default=True,
    help="Where the folders of the roles will be on the hosts.",
)
@click.option(
    "--state", default="/var/lib/girder_dask", show_default=True, help="Where data will be."
)
@click.option(
    "--programs",
    default="/opt/girder_dask/bin",
    show_default=True,
    help="The directory of the programs dask and girder on the hosts.",
)
@click.option("--girder-port", type=click.IntRange(1, 65535), default=8080, show_default=True)
@click.option("--scheduler-port", type=click.IntRange(1, 65535), default=8786, show_default=True)
@click.option("--dashboard-port", type=click.IntRange(1, 65535), default=8787, show_default=True)
@click.option("--keep", is_flag=True, help="Keep files that were changed, and write the others.")
def init(directory: Path, hosts: str, tls: bool | None, keep: bool, **options: Any) -> None:
    """Write the files of a site to DIRECTORY: one folder for each role on each host.

    A folder has the settings of its role, Dask's configuration, a systemd unit, an account and the
    command that starts it. README.md says where each goes. No file that exists with another
    content is overwritten, except copies of certificates.
    """
    from girder_dask.cli.site.files import Site, is_loopback

    names = [host.strip() for host in hosts.split(",")]
    girder, scheduler, *workers = [*names, names[-1]] if len(names) > 1 else [names[0]] * 3
    workers = names[2:] or workers
    if tls is None:
        tls = not all(is_loopback(host) for host in names)
    site = Site(girder, scheduler, tuple(dict.fromkeys(workers)), tls, **options)
    written = write_site(site, directory, keep=keep)
    for path in written:
        click.echo(f"Wrote {path}")
    click.echo(f"{directory / 'README.md'} says what goes where.")


def write_site(site: Site, directory: Path, *, keep: bool = False) -> list[Path]:
    """Write the files of a site, and return those that were written.

    Parameters
    ----------
    site
        What they are filled in with.
    directory
        Where to write them. Certificates that its authority has issued are used.
    keep
        Keep files that exist with another content. Otherwise nothing is written if there are any.

    Raises
    ------
    GirderDaskError
        If a file exists with another content, or cannot be written.
    """
    files = {directory / file.path: file for file in site.files()}
    differ = [p for p, file in files.items() if p.exists() and p.read_text() != file.text]
    if differ and not keep:
        raise GirderDaskError(
            f"Nothing was written, since these files exist with another content: "
            f"{', '.join(map(str, differ))}. Keep them with --keep, give the same options as "
            "before, or choose another directory."
        )
    written = []
    try:
        for path, file in files.items():
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            if not path.exists():
                path.touch(mode=0o600)
                path.write_text(file.text)
                written.append(path)
            path.chmod(file.mode)
        if site.tls:
            written += _write_certificates(site, directory)
    except OSError as e:
        raise GirderDaskError(f"{directory} cannot be written: {e}.") from e
    return written


def _write_certificates(site: Site, directory: Path) -> Iterator[Path]:
    """Issue the certificates that are missing, and copy each to the folder of its role."""
    from girder_dask.standalone.authority import Authority
    from girder_dask.utils.certificates import write_private, write_public

    authority = Authority(directory / "authority")
    if not authority.exists:
        authority.create(name=f"girder_dask {site.scheduler}")
    for role, host, folder in site.folders():
        issued = authority.directory / f"{folder}.pem"
        if not issued.exists():
            authority.issue(role, [host] if host else [], name=folder)
        for source, name, write in (
            (authority.certificate, "ca.pem", write_public),
            (issued.with_suffix(".key"), f"{role}.key", write_private),
            (issued, f"{role}.pem", write_public),
        ):
            target, content = directory / folder / name, source.read_bytes()
            if not target.exists() or target.read_bytes() != content:
                write(target, content)
                yield target
