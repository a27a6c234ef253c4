# SPDX-License-Identifier: Apache-2.0
"""An insulad on another machine: TLS 1.3, both ends known by pinned certificates.

The identity file is what `insula user add --remote` printed there: this user's key and certificate, and the certificate
of that host, the only one that is taken for it.  Who has a token and no identity names the host by $INSULA_PIN, the
SHA-256 of its certificate.  Imported only when a host is named `tls://…`: `ssl` costs as much as all the rest of the CLI.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import select
import socket
import ssl
import stat
import threading
from _socket import socket as RawSocket  # noqa: N812

from insula.model.errors import BadRequest, DaemonUnreachable, Denied, InsulaError, Unauthenticated

CONNECT_S = 10.0
BUFFER_BYTES = 64 << 10
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)
_ADDRESS = re.compile(r"^# insula-host: (\S+)$", re.MULTILINE)
_PIN = re.compile(r"[0-9a-f]{64}")


class Identity:
    """What an identity file holds."""

    def __init__(self, path: str) -> None:
        """Raises: BadRequest if it is none, or others may read it."""
        try:
            with open(path, encoding="ascii") as file:
                mode = os.fstat(file.fileno()).st_mode
                text = file.read(1 << 20)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no text"
            raise BadRequest(f"cannot read identity `{path}`: {reason}") from error
        certificates = _CERTIFICATE.findall(text)
        if "PRIVATE KEY-----" not in text or len(certificates) < 2:
            raise BadRequest(
                f"cannot use identity `{path}`: it does not hold a key and two certificates",
                hint="it is what `insula user add NAME --remote` printed, whole",
            )
        if stat.S_IMODE(mode) & 0o077:
            raise BadRequest(
                f"cannot use identity `{path}`: others may read the key", hint=f"chmod 600 {path}"
            )
        self.path = path
        self.host_certificate = certificates[-1]
        found = _ADDRESS.search(text)
        self.address = found[1] if found else ""


class Door:
    """How connections to one host are made."""

    def __init__(self, address: str, *, identity: Identity | None, pin: str) -> None:
        """address: HOST:PORT; empty: the identity's.  Raises: BadRequest."""
        if identity is None and not _PIN.fullmatch(pin):
            raise BadRequest(
                f"cannot trust host `{address}`: nothing tells its certificate",
                hint="--identity FILE, or with a token $INSULA_PIN, which `insula host info` there prints",
            )
        self._address = address or (identity.address if identity else "")
        if not self._address:
            raise BadRequest(
                "cannot reach insulad: nothing tells where it is",
                hint="--host tls://HOST:PORT, or $INSULA_HOST",
            )
        self._where = _split(self._address)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.check_hostname = False  # the pin below says more than a name
        if identity is None:
            self._context.verify_mode = ssl.CERT_NONE
            self._pin = pin
            return
        try:
            self._context.load_cert_chain(identity.path)
            self._context.load_verify_locations(cadata=identity.host_certificate)
            der = ssl.PEM_cert_to_DER_cert(identity.host_certificate)
        except (ssl.SSLError, ValueError) as error:
            raise BadRequest(
                f"cannot use identity `{identity.path}`: its key or certificates are damaged"
            ) from error
        self._pin = hashlib.sha256(der).hexdigest()

    def connect(self) -> ssl.SSLSocket:
        """Connect, the host proven.  Raises: DaemonUnreachable; Denied if it is not the pinned one."""
        try:
            plain = socket.create_connection(self._where, timeout=CONNECT_S)
        except OSError as error:
            raise DaemonUnreachable(
                f"cannot reach insulad at `{self._address}`: {_reason(error)}",
                hint="is it there, and does it listen (`insula daemon --listen`)?",
            ) from None
        try:
            secured = self._context.wrap_socket(plain)
        except ssl.SSLCertVerificationError:
            plain.close()
            raise self._other_host() from None
        except OSError as error:
            plain.close()
            raise self.explain(error) from None
        shown = hashlib.sha256(secured.getpeercert(binary_form=True) or b"").hexdigest()
        if not hmac.compare_digest(shown, self._pin):
            secured.close()
            raise self._other_host()
        secured.settimeout(None)
        return secured

    def _other_host(self) -> Denied:
        return Denied(
            f"cannot trust insulad at `{self._address}`: it shows another certificate than the pinned one",
            hint="if that host was made anew, its admin gives you a new identity",
        )

    def explain(self, error: OSError) -> InsulaError:
        """Return what a failure of a connection means.

        In TLS 1.3 a server judges our certificate after our side of the handshake, so it is told late.
        """
        if isinstance(error, ssl.SSLError) and "alert" in str(error).lower():
            return Unauthenticated(
                f"cannot use insulad at `{self._address}`: it does not take this certificate",
                hint="it may be over, or another host's: ask its admin for a new one",
            )
        return DaemonUnreachable(f"lost the connection to insulad at `{self._address}`: {_reason(error)}")


def plain_end(secured: RawSocket) -> socket.socket:
    """Return a plain socket that stands for an encrypted stream: a thread carries what goes through, both ways."""
    if not isinstance(secured, ssl.SSLSocket):
        raise TypeError("not a connection of this door")
    near, far = socket.socketpair()
    threading.Thread(target=_carry, args=(secured, far), name="tls", daemon=True).start()
    return near


def _carry(secured: ssl.SSLSocket, far: socket.socket) -> None:
    try:
        with secured, far:
            secured.settimeout(CONNECT_S)  # of one record, once it has begun to come
            while True:
                ready = [secured] if secured.pending() else select.select([secured, far], [], [])[0]
                for source, sink in ((secured, far), (far, secured)):
                    if source not in ready:
                        continue
                    data = source.recv(BUFFER_BYTES)
                    if not data:
                        return
                    sink.sendall(data)
    except OSError:
        return  # either end has gone; the other sees the end of its stream


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) <= 65535):
        raise BadRequest(
            f"cannot use host `tls://{address}`: not HOST:PORT", hint="for example tls://10.0.0.2:7443"
        )
    return host.strip("[]"), int(port)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
