"""Certificate authorities that Girder's certificate is checked against, and failed checks."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from girder_dask import config
from girder_dask.http.redirects import ExplainedRequestError
from girder_dask.http.request_errors import certificate_error

__all__ = [
    "AuthoritiesUnreadable",
    "TrustingSession",
    "certificate_advice",
    "certificate_refusal",
    "https_expiry",
    "trusted_authorities",
]

_PEM_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
# What OpenSSL answers for certificates that no change of authorities makes valid.
_NOT_YET_VALID, _EXPIRED = 9, 10
_OTHER_HOST, _OTHER_ADDRESS = 62, 64
_HTTPS_PORT = 443


class AuthoritiesUnreadable(ExplainedRequestError):
    """The file of ``girder.ca-file`` cannot be read, or holds no certificate."""


class TrustingSession(requests.Session):
    """A session that checks certificates against ``girder.ca-file``.

    An attribute ``verify`` of the session takes precedence, and both take precedence over
    ``REQUESTS_CA_BUNDLE``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.verify = trusted_authorities()

    def merge_environment_settings(
        self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any
    ) -> Any:
        """Return the settings of a request. The environment does not replace the authorities."""
        if verify is None and self.verify is not True:
            verify = self.verify
        return super().merge_environment_settings(url, proxies, stream, verify, cert)


def trusted_authorities() -> str | bool:
    """Return the file of ``girder.ca-file``, or True for the authorities that requests trusts.

    Raises
    ------
    AuthoritiesUnreadable
        If the file cannot be read, or holds no certificate.
    """
    path = config.get("ca-file")
    if not path:
        return True
    found = Path(str(path)).expanduser()
    try:
        has_certificate = _PEM_CERTIFICATE in found.read_bytes()
    except OSError as e:
        raise AuthoritiesUnreadable(
            f"girder.ca-file is {path} in Dask's configuration, which cannot be read "
            f"({e.strerror}). Set it to a file with the certificates of the authorities that may "
            "sign Girder's certificate."
        ) from None
    if not has_certificate:
        raise AuthoritiesUnreadable(
            f"girder.ca-file is {path} in Dask's configuration, which holds no certificate in "
            "PEM form (-----BEGIN CERTIFICATE-----)."
        )
    return str(found)


def certificate_advice(error: BaseException) -> str | None:
    """Return why a certificate is refused, and what to do; None if the error has another reason.

    Examples
    --------
    >>> print(certificate_advice(OSError("Connection refused")))
    None
    """
    refused = certificate_error(error)
    if refused is None:
        return None
    return f"{refused.verify_message.rstrip('.')}. {_remedy(refused)}"


def certificate_refusal(error: BaseException, url: str) -> str | None:
    """Return the sentence for a Girder whose certificate is refused; None for another error.

    Examples
    --------
    >>> print(certificate_refusal(OSError("Connection refused"), "https://girder.example"))
    None
    """
    advice = certificate_advice(error)
    return None if advice is None else f"The certificate of Girder at {url} is refused: {advice}"


def https_expiry(url: str, *, timeout_s: float) -> float | None:
    """Return when the certificate of an https server expires, in seconds since the epoch.

    Returns
    -------
    float or None
        None for another scheme, and if the server is not reached directly or its certificate is
        refused, which a request to it explains.

    Examples
    --------
    >>> print(https_expiry("http://girder.example/api/v1", timeout_s=1.0))
    None
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        return None
    try:
        trusted = trusted_authorities()
        file = trusted if isinstance(trusted, str) else requests.utils.DEFAULT_CA_BUNDLE_PATH
        context = ssl.create_default_context(cafile=file)
        address = parts.hostname, parts.port or _HTTPS_PORT
        with (
            socket.create_connection(address, timeout=timeout_s) as connection,
            context.wrap_socket(connection, server_hostname=parts.hostname) as secure,
        ):
            certificate = secure.getpeercert()
    except (OSError, ValueError):  # errors of TLS and of requests are errors of the system
        return None
    expires = (certificate or {}).get("notAfter")
    if not isinstance(expires, str):
        return None
    return float(ssl.cert_time_to_seconds(expires))


def _remedy(refused: ssl.SSLCertVerificationError) -> str:
    code = refused.verify_code
    if code == _EXPIRED:
        return "Renew it on the host that serves https."
    if code == _NOT_YET_VALID:
        return "Compare the clocks of both hosts."
    if code in (_OTHER_HOST, _OTHER_ADDRESS):
        return "Use an address that the certificate names, or have one made for this address."
    return (
        "If an authority of the site has signed it, set girder.ca-file (DASK_GIRDER__CA_FILE) here "
        "to a file with the certificate of that authority."
    )
