# SPDX-License-Identifier: Apache-2.0
"""This host's key and certificate, the pins of paired hosts, and TLS contexts made of them.  With `authority.py` the only
`cryptography` of this package.

There is no authority: each host signs its own certificate, and pairing (`pairing.py`) tells each side the SHA-256 of
the other's.  OpenSSL checks that the peer has the key of a certificate we know; after the handshake the fingerprint is
compared too.  TLS 1.3 only.
"""

import datetime
import hashlib
import os
import secrets
import socket
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from insula.model.errors import BadRequest, Denied, TargetUnreachable
from insula.model.migration import PROTOCOL
from insula.model.record import HostRecord

VALIDITY = datetime.timedelta(days=3650)
CLOCK_SKEW = datetime.timedelta(days=1)
HANDSHAKE_S = 10.0


def fingerprint(der: bytes) -> str:
    """Return the pin of a certificate."""
    return hashlib.sha256(der).hexdigest()


def fingerprint_of_pem(pem: str) -> str:
    """Return the pin of a certificate in PEM.

    Raises: BadRequest.
    """
    try:
        return fingerprint(
            x509.load_pem_x509_certificate(pem.encode()).public_bytes(serialization.Encoding.DER)
        )
    except ValueError as error:
        raise BadRequest("cannot read the certificate: not PEM") from error


def unique_name(common: str) -> x509.Name:
    """Return a subject that no other certificate has.

    OpenSSL looks for a certificate's issuer by its subject, and takes the first of two with the same one, so a host that
    comes back under its name with new keys would not be known again.
    """
    unique = x509.NameAttribute(NameOID.SERIAL_NUMBER, secrets.token_hex(16))
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64]), unique])


def certificate_builder(
    subject: x509.Name, *, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, validity: datetime.timedelta
) -> x509.CertificateBuilder:
    """Begin a certificate of a key, valid from now on."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + validity)
    )


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key in PEM, in clear."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Pki:
    """The folder STATE/pki: `host.key`, `host.crt`, `peers/<fingerprint>.crt`."""

    def __init__(self, folder: Path, *, name: str) -> None:
        self._folder = folder
        self._peers = folder / "peers"
        self._peers.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        self._key, self._certificate = folder / "host.key", folder / "host.crt"
        if not (self._key.exists() and self._certificate.exists()):
            self._make(name)
        self.certificate_pem = self._certificate.read_text()
        self.fingerprint = fingerprint_of_pem(self.certificate_pem)
        self._server: ssl.SSLContext | None = None
        self._users = ""
        """Certificate of the authority of remote users, PEM; empty: there is none yet."""

    @property
    def folder(self) -> Path:
        return self._folder

    def trust_users(self, pem: str) -> None:
        """Let those in whose certificates that authority has signed; who they are is asked of the store."""
        self._users = pem
        if self._server is not None:
            self._server.load_verify_locations(cadata=pem)

    def _make(self, name: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = unique_name(name)
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            certificate_builder(subject, issuer=subject, key=key, validity=VALIDITY)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_private(self._key, private_pem(key))
        write_private(self._certificate, certificate.public_bytes(serialization.Encoding.PEM))

    def trust(self, pem: str) -> str:
        """Remember a peer's certificate and accept it from now on.  Returns its pin."""
        pin = fingerprint_of_pem(pem)
        write_private(self._peers / f"{pin}.crt", pem.encode())
        if self._server is not None:
            # Contexts share their store with all connections yet to come: no listener needs a restart.
            self._server.load_verify_locations(cadata=pem)
        return pin

    def distrust(self, pin: str) -> None:
        """Forget a peer's certificate.

        A running server may still shake hands with it; `api/auth.py` asks the store on each request and finds nobody.
        """
        (self._peers / f"{pin}.crt").unlink(missing_ok=True)

    def server_context(self) -> ssl.SSLContext:
        """Return the context of the listener: known certificates or none (for pairing) are let in."""
        if self._server is None:
            context = self._context(ssl.PROTOCOL_TLS_SERVER)
            context.verify_mode = ssl.CERT_OPTIONAL
            context.set_alpn_protocols([PROTOCOL])
            context.num_tickets = 0  # nobody resumes, and a client may hang up without having read them
            for path in sorted(self._peers.glob("*.crt")):
                context.load_verify_locations(cadata=path.read_text())
            if self._users:
                context.load_verify_locations(cadata=self._users)
            self._server = context
        return self._server

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self._certificate, self._key)
        return context

    def open_stream(
        self, host: HostRecord, *, timeout_s: float = HANDSHAKE_S, protocol: str = ""
    ) -> ssl.SSLSocket:
        """Connect to a paired host, both sides proven.  Blocking; the caller closes it and sets later timeouts.

        protocol: what is to be spoken (ALPN); empty for HTTP.
        Raises: TargetUnreachable; Denied if another certificate is shown.
        """
        context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        if protocol:
            context.set_alpn_protocols([protocol])
        try:
            context.load_verify_locations(cadata=(self._peers / f"{host.fingerprint}.crt").read_text())
        except FileNotFoundError as error:
            raise Denied(
                f"cannot trust host `{host.name}`: its certificate is lost", hint="pair again"
            ) from error
        return connect(host.address, context=context, pin=host.fingerprint, timeout_s=timeout_s)

    def open_first_contact(self, address: str, *, pin: str) -> ssl.SSLSocket:
        """Connect to a host that we only know the pin of, showing no certificate of ours.

        Raises: TargetUnreachable; Denied if another certificate is shown.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the pin below is the check
        return connect(address, context=context, pin=pin, timeout_s=HANDSHAKE_S)


def connect(address: str, *, context: ssl.SSLContext, pin: str, timeout_s: float) -> ssl.SSLSocket:
    """Open a TLS connection and compare the certificate with the pin.

    Raises: TargetUnreachable, Denied, BadRequest.
    """
    try:
        plain = socket.create_connection(split_address(address), timeout=timeout_s)
    except OSError as error:
        raise TargetUnreachable(f"cannot reach host at `{address}`: {reason(error)}") from error
    try:
        secured = context.wrap_socket(plain)
    except ssl.SSLCertVerificationError as error:
        plain.close()
        raise Denied(
            f"cannot trust host at `{address}`: it has another certificate than when paired"
        ) from error
    except OSError as error:
        plain.close()
        raise TargetUnreachable(f"cannot reach host at `{address}`: {reason(error)}") from error
    shown = secured.getpeercert(binary_form=True) or b""
    if not secrets.compare_digest(fingerprint(shown), pin):
        secured.close()
        raise Denied(f"cannot trust host at `{address}`: its certificate is not the one of the pin")
    return secured


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[v6]:port`.

    Raises: BadRequest.
    """
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise BadRequest(f"cannot use address `{address}`: not HOST:PORT", hint="for example 10.0.0.2:7443")
    return host.strip("[]"), int(port)


def reason(error: OSError) -> str:
    """Return what went wrong, for a message."""
    return (error.strerror or str(error)).lower()


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only root may read, wholly or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
