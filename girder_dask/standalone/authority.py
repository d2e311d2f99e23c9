"""The site's own certificate authority, in a directory: for TLS between Dask's processes.

The directory holds ``ca.pem`` and ``ca.key``, and a certificate and a key for each role and host:
``scheduler-dask.example.org.pem``, ``worker-node1.pem``, ``client.pem``. ``ca.key`` stays on the
machine on which certificates are issued. Every host needs ``ca.pem`` and its own two files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from girder_dask.errors import GirderDaskError
from girder_dask.utils.certificates import (
    CertificateInfo,
    create_authority,
    issue_certificate,
    read_certificate,
)

__all__ = ["AUTHORITY_DAYS", "CERTIFICATE_DAYS", "ROLES", "Authority", "tls_environment"]

#: What a process is, and whether it listens with its certificate.
ROLES = {"scheduler": True, "worker": True, "girder": False, "client": False}
#: Days until a new authority expires.
AUTHORITY_DAYS = 3650.0
#: Days until a new certificate expires.
CERTIFICATE_DAYS = 397.0

# A certificate that expires within this time is renewed at the next start.
_RENEWAL_DAYS = 30.0

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.:-]{0,251}[A-Za-z0-9_])?")


class Authority:
    """A certificate authority in a directory.

    Parameters
    ----------
    directory
        Its directory.

    Examples
    --------
    >>> import tempfile
    >>> authority = Authority(Path(tempfile.mkdtemp()) / "authority")
    >>> authority.create()
    >>> authority.issue("scheduler", ["dask.example.org", "192.0.2.7"]).name
    'scheduler-dask.example.org.pem'
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)

    @property
    def certificate(self) -> Path:
        """The certificate of the authority, which every host needs."""
        return self.directory / "ca.pem"

    @property
    def key(self) -> Path:
        """The key of the authority, which leaves its directory for no host."""
        return self.directory / "ca.key"

    @property
    def exists(self) -> bool:
        """Whether there is an authority in the directory."""
        return self.certificate.exists() and self.key.exists()

    def create(self, *, name: str = "girder_dask", days: float = AUTHORITY_DAYS) -> None:
        """Create the authority.

        Raises
        ------
        GirderDaskError
            If the directory has one, or cannot be written.
        """
        for path in (self.certificate, self.key):
            if path.exists():
                raise GirderDaskError(
                    f"{path} exists. A new authority makes all certificates of the present one "
                    f"invalid. To extend it, run 'girder-dask certs renew --authority "
                    f"{self.directory}'; to start afresh, choose another directory."
                )
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            create_authority(self.certificate, self.key, name=name, days=days)
        except OSError as e:
            raise GirderDaskError(
                f"The authority cannot be created in {self.directory}: {e.strerror}."
            ) from e

    def issue(
        self,
        role: str,
        hosts: Sequence[str] = (),
        *,
        name: str | None = None,
        days: float = CERTIFICATE_DAYS,
    ) -> Path:
        """Issue a certificate for a role, and return its file. The key is beside it.

        Parameters
        ----------
        role
            One of :data:`ROLES`. Only the certificates of schedulers and workers let a process
            listen.
        hosts
            The names and addresses of the host.
        name
            The name of the file without its suffix, by default the role and the first host.
        days
            Days until it expires.

        Raises
        ------
        GirderDaskError
            If there is no authority, the file exists, or a name is not valid.
        """
        self._require()
        if role not in ROLES:
            raise GirderDaskError(f"There is no role {role!r}: {', '.join(ROLES)}.")
        stem = name or "-".join([role, *hosts[:1]])
        for text in (stem, *hosts):
            if not _HOST.fullmatch(text):
                raise GirderDaskError(f"{text!r} is not the name or the address of a host.")
        path = self.directory / f"{stem}.pem"
        if path.exists() or path.with_suffix(".key").exists() or stem == "ca":
            raise GirderDaskError(
                f"{path} exists. Renew it with 'girder-dask certs renew {self.directory} {stem}', "
                "or choose another --name."
            )
        self._issue(path, hosts, is_server=ROLES[role], days=days)
        return path

    def renew(self, names: Sequence[str] = (), *, days: float = CERTIFICATE_DAYS) -> list[Path]:
        """Issue certificates again, with new keys, for the same hosts, by the same authority.

        Parameters
        ----------
        names
            The names of their files without the suffix, by default all.
        days
            Days until they expire.

        Returns
        -------
        list of Path
            The files. The old certificates stay valid until they expire.

        Raises
        ------
        GirderDaskError
            If there is no authority, or no such certificate.
        """
        self._require()
        known = {info.path.stem: info for info in self.certificates() if not info.is_authority}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise GirderDaskError(
                f"{self.directory} has no certificate {', '.join(unknown)}. It has: "
                f"{', '.join(known) or 'none'}."
            )
        chosen = [known[name] for name in names or known]
        for info in chosen:
            self._issue(info.path, info.hosts, is_server=info.is_server, days=days)
        return [info.path for info in chosen]

    def ensure(self, role: str, hosts: Sequence[str] = ()) -> Path:
        """Return a certificate named as its role that is valid for a month or more.

        It is issued if it is missing, and renewed if it expires soon or is for other hosts. The
        same holds for the authority.
        """
        if not self.exists:
            self.create()
        elif read_certificate(self.certificate).days_left() < CERTIFICATE_DAYS:
            self.renew_authority()
        path = self.directory / f"{role}.pem"
        if not (path.exists() and path.with_suffix(".key").exists()):
            path.unlink(missing_ok=True)
            path.with_suffix(".key").unlink(missing_ok=True)
            return self.issue(role, hosts, name=role)
        found = read_certificate(path)
        if found.days_left() < _RENEWAL_DAYS or found.hosts != tuple(hosts):
            self._issue(path, hosts, is_server=ROLES[role], days=CERTIFICATE_DAYS)
        return path

    def renew_authority(self, *, days: float = AUTHORITY_DAYS) -> None:
        """Extend the authority with the same key: what it has issued stays valid.

        Copy ``ca.pem`` to every host before the old one expires.
        """
        self._require()
        name = read_certificate(self.certificate).name
        create_authority(self.certificate, self.key, name=name, days=days)

    def certificates(self) -> Iterator[CertificateInfo]:
        """Yield the certificates of the directory, that of the authority first."""
        self._require()
        yield read_certificate(self.certificate)
        for path in sorted(self.directory.glob("*.pem")):
            if path != self.certificate:
                yield read_certificate(path)

    def _issue(self, path: Path, hosts: Sequence[str], *, is_server: bool, days: float) -> None:
        try:
            issue_certificate(
                self.certificate,
                self.key,
                certificate=path,
                key=path.with_suffix(".key"),
                name=path.stem,
                hosts=hosts,
                is_server=is_server,
                days=days,
            )
        except OSError as e:
            raise GirderDaskError(f"{path} cannot be written: {e.strerror}.") from e

    def _require(self) -> None:
        if not self.exists:
            raise GirderDaskError(
                f"There is no authority in {self.directory}. Create one with 'girder-dask certs "
                f"init {self.directory}'."
            )


def tls_environment(authority: Path, certificate: Path) -> dict[str, str]:
    """Return Dask's settings for TLS with one certificate, as environment variables."""
    names = {"cert": certificate, "key": certificate.with_suffix(".key")}
    prefix = "DASK_DISTRIBUTED__COMM__"
    return {
        f"{prefix}REQUIRE_ENCRYPTION": "true",
        f"{prefix}TLS__CA_FILE": str(authority),
        **{
            f"{prefix}TLS__{role}__{what.upper()}": str(path)
            for role in ("SCHEDULER", "WORKER", "CLIENT")
            for what, path in names.items()
        },
    }
