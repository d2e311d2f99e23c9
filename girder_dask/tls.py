"""TLS of Dask's processes: certificates that are replaced while a process runs, and their expiry.

Dask reads the certificate of a process when that starts. Here it is loaded again when its file
changes, so that a renewal restarts nothing. New connections use it; open ones continue.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from girder_dask.errors import GirderDaskError
from girder_dask.utils.background import Guard, repeat

__all__ = [
    "EXPIRY_METRIC",
    "RELOAD_INTERVAL_S",
    "CertificateReloader",
    "ExpiryMetric",
    "certificate_facts",
    "keep_certificate",
]

logger = logging.getLogger(__name__)

#: Seconds between two looks at the files of a certificate. The documentation promises a minute,
#: also on a busy host.
RELOAD_INTERVAL_S = 30.0

#: The name of the metric of Dask workers that :class:`ExpiryMetric` computes.
EXPIRY_METRIC = "girder_dask_certificate"


class CertificateReloader:
    """Loads the certificate of a process again when its files have changed.

    Parameters
    ----------
    authority, certificate, key
        The files.
    contexts
        The TLS contexts that use them.
    """

    def __init__(
        self, authority: Path, certificate: Path, key: Path, contexts: Sequence[ssl.SSLContext]
    ) -> None:
        self._authority = authority
        self._certificate = certificate
        self._key = key
        self._contexts = list(contexts)
        self._loaded = self._versions()

    def step(self) -> None:
        """Load the files if they have changed.

        Raises
        ------
        OSError
            If they cannot be read, or certificate and key do not belong together, as while one of
            them is copied. The present certificate stays in use.
        """
        versions = self._versions()
        if versions == self._loaded:
            return
        # An error must not leave half of the pair in a context that is in use.
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for context in (trial, *self._contexts):
            context.load_cert_chain(self._certificate, self._key)
            context.load_verify_locations(self._authority)
        self._loaded = versions
        logger.info("New connections use the certificate %s as it is now", self._certificate)

    def _versions(self) -> list[tuple[int, int] | None]:
        return [_version(path) for path in (self._authority, self._certificate, self._key)]


async def keep_certificate(server: Any, role: str) -> None:
    """Load the certificate of a Dask server again whenever its files change.

    Returns at once for a server without TLS, and otherwise goes on until cancelled.

    Parameters
    ----------
    server
        A scheduler, worker or nanny that listens.
    role
        Its role in Dask's configuration, ``'scheduler'`` or ``'worker'``.
    """
    tls = server.security.get_tls_config_for_role(role)
    files = [tls["ca_file"], tls["cert"], tls["key"] or tls["cert"]]
    if any(not name or "\n" in name for name in files):  # none, or certificates in memory
        return
    listening = (getattr(listener, "server_args", {}) for listener in server.listeners)
    contexts = [server.connection_args.get("ssl_context")]
    contexts += [arguments.get("ssl_options") for arguments in listening]
    found = [context for context in contexts if isinstance(context, ssl.SSLContext)]
    authority, certificate, key = map(Path, files)
    reloader = CertificateReloader(authority, certificate, key, found)
    guard = Guard(logger, "Loading the renewed certificate", expected=(OSError,))
    await repeat(reloader.step, guard, interval_s=RELOAD_INTERVAL_S)


def certificate_facts() -> list[dict[str, Any]]:
    """Return the certificates in the Dask configuration of this process.

    Returns
    -------
    list of dict
        For each the ``file``, its ``name``, when it expires (``not_after``, in ISO 8601), in how
        many days (``days_left``) and whether it ``is_authority``, or the ``error`` of reading it.

    Examples
    --------
    >>> certificate_facts()
    []
    """
    found: list[dict[str, Any]] = []
    for path in dict.fromkeys(_configured()):
        try:
            # Its import takes a tenth of a second, which a process without TLS need not wait for.
            from girder_dask.utils.certificates import read_certificate

            info = read_certificate(path)
        except (GirderDaskError, ImportError) as e:
            found.append({"file": str(path), "error": str(e)})
            continue
        found.append(
            {
                "file": str(path),
                "name": info.name,
                "not_after": info.not_after.isoformat(),
                "days_left": round(info.days_left(), 2),
                "is_authority": info.is_authority,
                "error": None,
            }
        )
    return found


class ExpiryMetric:
    """The first certificate of this process to expire: its file name and when, as Dask's metric.

    A worker sends it with each heartbeat, so the files are read from time to time only.
    """

    def __init__(self) -> None:
        self._value: tuple[str, float] | None = None
        self._read_at: float | None = None

    async def __call__(self, server: Any) -> tuple[str, float] | None:  # noqa: ARG002 - Dask's
        """Return the name and the time in seconds since the epoch, None without certificates."""
        now = time.monotonic()
        if self._read_at is None or now - self._read_at >= RELOAD_INTERVAL_S:
            self._read_at = now
            self._value = await asyncio.to_thread(_first_to_expire)
        return self._value


def _first_to_expire() -> tuple[str, float] | None:
    expiries = (
        (Path(each["file"]).name, datetime.fromisoformat(each["not_after"]).timestamp())
        for each in certificate_facts()
        if each["error"] is None
    )
    return min(expiries, key=lambda each: each[1], default=None)


def _configured() -> Iterator[Path]:
    import dask.config

    keys = ["ca-file", *(f"{role}.cert" for role in ("scheduler", "worker", "client"))]
    for key in keys:
        value = dask.config.get(f"distributed.comm.tls.{key}", None)
        if value and "\n" not in str(value):
            yield Path(value)


def _version(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino
