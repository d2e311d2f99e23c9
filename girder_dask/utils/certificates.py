"""X.509 certificates of a private authority: created, renewed, read.

A key is written to a file that its owner alone can read, before the certificate that names it.
Both are written beside their place and then moved there, so that no reader finds half of one.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from girder_dask.errors import GirderDaskError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

__all__ = [
    "CertificateInfo",
    "create_authority",
    "issue_certificate",
    "read_certificate",
    "write_private",
    "write_public",
]

# A clock that is behind may not find a new certificate invalid.
_CLOCK_TOLERANCE = timedelta(minutes=5)


@dataclass(frozen=True)
class CertificateInfo:
    """What a certificate says.

    Attributes
    ----------
    path
        Its file.
    name, issuer
        The common names of its subject and of its authority.
    hosts
        The host names and addresses that it is for.
    not_after
        When it expires, in UTC.
    is_authority
        Whether it is the certificate of an authority.
    is_server
        Whether a process that listens may use it.
    """

    path: Path
    name: str
    issuer: str
    hosts: tuple[str, ...]
    not_after: datetime
    is_authority: bool
    is_server: bool

    def days_left(self, now: datetime | None = None) -> float:
        """Return the days until it expires; negative if it has expired."""
        return (self.not_after - (now or datetime.now(timezone.utc))) / timedelta(days=1)


def create_authority(certificate: Path, key: Path, *, name: str, days: float) -> None:
    """Create an authority: a self-signed certificate and its key.

    An authority whose key exists keeps it, so that the certificates it has issued stay valid.
    """
    from cryptography import x509

    private = _read_key(key) if key.exists() else _new_key(key)
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    subject = _name(name)
    builder = (
        _builder(subject, private, days)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    write_public(certificate, _signed(builder, private))


def issue_certificate(
    authority: Path,
    authority_key: Path,
    *,
    certificate: Path,
    key: Path,
    name: str,
    hosts: Sequence[str],
    is_server: bool,
    days: float,
) -> None:
    """Issue a certificate with a new key.

    Parameters
    ----------
    authority, authority_key
        The files of the authority.
    certificate, key
        The files to write.
    name
        The common name.
    hosts
        Host names and addresses.
    is_server
        Whether a process that listens may use it. Every certificate may be used to connect.
    days
        Days until it expires, at most those of the authority.

    Raises
    ------
    GirderDaskError
        If a file of the authority cannot be read, or the authority has expired.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    issuer, signer = _load(authority), _read_key(authority_key)
    left = (issuer.not_valid_after_utc - datetime.now(timezone.utc)) / timedelta(days=1)
    if left <= 0:
        raise GirderDaskError(
            f"The authority {authority} has expired. Renew it with 'girder-dask certs renew "
            f"--authority {authority.parent}', and copy it to every host."
        )
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
    purposes += [ExtendedKeyUsageOID.SERVER_AUTH] if is_server else []
    private = _new_key(key)
    known = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(_name(name), private, min(days, left))
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known), critical=False
        )
    )
    if hosts:
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
    write_public(certificate, _signed(builder, signer))


def read_certificate(path: Path) -> CertificateInfo:
    """Return what a certificate says.

    Raises
    ------
    GirderDaskError
        If the file cannot be read or holds no certificate.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    found = _load(path)
    extensions = {extension.oid: extension.value for extension in found.extensions}
    names = extensions.get(x509.SubjectAlternativeName.oid)
    basic = extensions.get(x509.BasicConstraints.oid)
    purposes = extensions.get(x509.ExtendedKeyUsage.oid)
    return CertificateInfo(
        path=path,
        name=_common_name(found.subject),
        issuer=_common_name(found.issuer),
        hosts=tuple(str(name.value) for name in names)
        if isinstance(names, x509.SubjectAlternativeName)
        else (),
        not_after=found.not_valid_after_utc,
        is_authority=isinstance(basic, x509.BasicConstraints) and basic.ca,
        is_server=not isinstance(purposes, x509.ExtendedKeyUsage)
        or ExtendedKeyUsageOID.SERVER_AUTH in purposes,
    )


def write_private(path: Path, content: bytes) -> None:
    """Write a file that its owner alone can read."""
    _write(path, content, 0o600)


def write_public(path: Path, content: bytes) -> None:
    """Write a file that everyone can read."""
    _write(path, content, 0o644)


def _write(path: Path, content: bytes, mode: int) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as f:
        os.fchmod(f.fileno(), mode)
        f.write(content)
    partial.replace(path)


def _load(path: Path) -> x509.Certificate:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as e:
        raise GirderDaskError(f"The certificate {path} cannot be read: {e.strerror}.") from e
    except ValueError as e:
        raise GirderDaskError(f"{path} holds no certificate in PEM format.") from e


def _read_key(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as e:
        raise GirderDaskError(f"The key {path} cannot be read: {e.strerror}.") from e
    except (TypeError, ValueError) as e:
        raise GirderDaskError(f"{path} holds no key in PEM format without a password.") from e
    if not isinstance(key, EllipticCurvePrivateKey):
        raise GirderDaskError(f"{path} is not a key that 'girder-dask certs' has created.")
    return key


def _new_key(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    write_private(
        path,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    return key


def _builder(
    subject: x509.Name, key: EllipticCurvePrivateKey, days: float
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # One that is issued expired, as tests do, begins before its end.
        .not_valid_before(now - _CLOCK_TOLERANCE + timedelta(days=min(days, 0)))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _signed(builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import hashes, serialization

    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _common_name(name: x509.Name) -> str:
    from cryptography.x509.oid import NameOID

    return next((str(a.value) for a in name.get_attributes_for_oid(NameOID.COMMON_NAME)), "")


def _general_name(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
