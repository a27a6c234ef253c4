# SPDX-License-Identifier: Apache-2.0
"""The small authority of remote users: it signs their certificates, so that TLS lets them in at all.

Its word counts for nothing else: who a certificate is, is decided by its exact pin in the store (`api/auth.py`), so a
user who was removed is nobody at once, whatever its certificate says.  STATE/pki/users.{key,crt}, made when first needed.
Out of scope: hosts, whose certificates are their own (`pki.py`).
"""

import datetime
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from insula.daemon.pki import (
    Pki,
    certificate_builder,
    fingerprint_of_pem,
    private_pem,
    unique_name,
    write_private,
)

VALIDITY = datetime.timedelta(days=20 * 365)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A new key and its certificate, PEM."""

    key: str
    certificate: str
    fingerprint: str


class UserAuthority:
    """Issues certificates of remote users."""

    def __init__(self, pki: Pki) -> None:
        self._pki = pki
        self._key_path, self._path = pki.folder / "users.key", pki.folder / "users.crt"
        if self._path.exists():
            pki.trust_users(self._path.read_text())

    def issue(self, name: str, *, seconds: int) -> Issued:
        """Make a key and a certificate that a remote user proves itself by."""
        authority_key, authority = self._load()
        key = ec.generate_private_key(ec.SECP256R1())
        validity = datetime.timedelta(seconds=seconds)
        builder = certificate_builder(unique_name(name), issuer=authority.subject, key=key, validity=validity)
        signed = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
            .sign(authority_key, hashes.SHA256())
        )
        pem = signed.public_bytes(serialization.Encoding.PEM).decode()
        return Issued(key=private_pem(key).decode(), certificate=pem, fingerprint=fingerprint_of_pem(pem))

    def _load(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        if not (self._key_path.exists() and self._path.exists()):
            self._make()
        key = serialization.load_pem_private_key(self._key_path.read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{self._key_path} holds another kind of key than insulad writes")
        return key, x509.load_pem_x509_certificate(self._path.read_bytes())

    def _make(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = unique_name("insula users")
        certificate = (
            certificate_builder(subject, issuer=subject, key=key, validity=VALIDITY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        write_private(self._key_path, private_pem(key))
        write_private(self._path, certificate.public_bytes(serialization.Encoding.PEM))
        self._pki.trust_users(self._path.read_text())
