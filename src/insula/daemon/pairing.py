# SPDX-License-Identifier: Apache-2.0
"""Pair two hosts by a one-time token.

    A: insula host token            B: insula host add A ADDRESS TOKEN
      │ prints TOKEN = insula1.<128 random bits>.<A's pin>   (carried by a person)
      │◄──────── TLS; B compares A's certificate with the pin in TOKEN, shows none itself
      │◄──────── POST /v1/peer/pair {name, address, token: the random bits, certificate: B's}
      │ takes the token (once, within 15 minutes), pins B, stores it as a host
      │ ────────► {name, certificate: A's}
      │                               B compares it with the pin again, pins A, stores it under the user's name

Only a digest of the token is stored.  From then on both show their certificates (`pki.py`).
"""

import hashlib
import http.client
import re
import secrets
import ssl
import time

import msgspec

from insula.api.bodies import Failure, PairAnswer, PairingToken, PairRequest
from insula.daemon.peers import post
from insula.daemon.pki import HANDSHAKE_S, Pki, fingerprint_of_pem, reason, split_address
from insula.model.errors import (
    BadRequest,
    Denied,
    InsulaError,
    NameTaken,
    ProtocolError,
    TargetUnreachable,
    from_code,
)
from insula.model.record import HostRecord
from insula.model.spec import HostWish
from insula.runtime.ledger import Ledger

LIFETIME_S = 15 * 60
SECRET_BYTES = 16
MAX_ANSWER_BYTES = 1 << 16
PING_S = 2.0

_TOKEN = re.compile(r"insula1\.([0-9a-f]{32})\.([0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_ANYWHERE = frozenset({"", "0.0.0.0", "::"})


class PairingDesk:
    """This host's side of pairing, as giver (`issue_token`, `accept`) and as taker (`join`) of a token."""

    def __init__(self, store: Ledger, pki: Pki, *, name: str, address: str) -> None:
        self._store = store
        self._pki = pki
        self._name = name
        self._address = address
        """Of our TLS listener; empty if there is none."""

    def issue_token(self) -> PairingToken:
        """Make a token for one other host.

        Raises: BadRequest if no other host can reach this one.
        """
        self._require_listener()
        secret = secrets.token_hex(SECRET_BYTES)
        self._store.add_token(_digest(secret), expires_at=time.time() + LIFETIME_S)
        return PairingToken(
            token=f"insula1.{secret}.{self._pki.fingerprint}",
            address=self._address,
            fingerprint=self._pki.fingerprint,
            expires_s=LIFETIME_S,
        )

    def _require_listener(self) -> None:
        if not self._address:
            raise BadRequest(
                "cannot pair: this insulad listens to no other host", hint="insula daemon --listen HOST:PORT"
            )

    def accept(self, request: PairRequest, *, remote: str) -> PairAnswer:
        """Pair with the host that brought a token of ours.

        Raises: Denied for a token that is wrong, used or too old; NameTaken, BadRequest.
        """
        _check_name(request.name)
        pin = fingerprint_of_pem(request.certificate)
        host, port = split_address(request.address)
        address = f"{_bracket(remote if host in _ANYWHERE else host)}:{port}"
        self._refuse_other_of_that_name(request.name, pin=pin)
        if not self._take(request.token):
            raise Denied(
                "cannot pair: the token is wrong, used or too old", hint="make a new one: insula host token"
            )
        self._pki.trust(request.certificate)
        self._store.save_host(
            HostRecord(name=request.name, address=address, fingerprint=pin, added_at=time.time())
        )
        return PairAnswer(name=self._name, certificate=self._pki.certificate_pem)

    def _take(self, secret: str) -> bool:
        wanted = _digest(secret)
        for digest in self._store.list_tokens(now=time.time()):
            if secrets.compare_digest(digest, wanted):
                return self._store.take_token(digest)
        return False

    def _refuse_other_of_that_name(self, name: str, *, pin: str) -> None:
        for known in self._store.list_hosts():
            if known.name == name and known.fingerprint != pin:
                raise NameTaken(
                    f"cannot pair with host `{name}`: another host has that name",
                    hint=f"remove it first: insula host rm {name}",
                )

    def join(self, wish: HostWish) -> HostRecord:
        """Pair with the host that printed the token.

        Raises: BadRequest, Denied, NameTaken, TargetUnreachable, ProtocolError.
        """
        self._require_listener()
        _check_name(wish.name)
        match = _TOKEN.fullmatch(wish.token.strip())
        if match is None:
            raise BadRequest("cannot read the token", hint="copy it whole, from: insula host token")
        secret, pin = match[1], match[2]
        self._refuse_other_of_that_name(wish.name, pin=pin)
        request = PairRequest(
            name=self._name, address=self._address, token=secret, certificate=self._pki.certificate_pem
        )
        with self._pki.open_first_contact(wish.address, pin=pin) as connection:
            answer = _ask(connection, request, address=wish.address)
        if not secrets.compare_digest(fingerprint_of_pem(answer.certificate), pin):
            raise Denied(f"cannot trust host `{wish.name}`: it answered with another certificate")
        self._pki.trust(answer.certificate)
        host = HostRecord(name=wish.name, address=wish.address, fingerprint=pin, added_at=time.time())
        self._store.save_host(host)
        return host

    def remove(self, name: str) -> None:
        """Trust a host no longer.

        Raises: HostNotFound.
        """
        host = self._store.get_host(name)
        self._store.delete_host(name)
        self._pki.distrust(host.fingerprint)

    def is_reachable(self, host: HostRecord) -> bool:
        """Tell whether a paired host answers now."""
        try:
            self._pki.open_stream(host, timeout_s=PING_S).close()
        except InsulaError:
            return False
        return True


def _ask(connection: ssl.SSLSocket, request: PairRequest, *, address: str) -> PairAnswer:
    connection.settimeout(HANDSHAKE_S)
    try:
        response = post(connection, "/v1/peer/pair", msgspec.json.encode(request))
        data = response.read(MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        text = reason(error) if isinstance(error, OSError) else "no HTTP answer"
        raise TargetUnreachable(f"cannot pair with host at `{address}`: {text}") from error
    try:
        if response.status == http.HTTPStatus.OK:
            return msgspec.json.decode(data, type=PairAnswer)
        failure = msgspec.json.decode(data, type=Failure).error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"cannot pair with host at `{address}`: its answer makes no sense") from error
    raise from_code(failure.code, failure.message, hint=failure.hint)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise BadRequest(f"cannot name a host `{name}`", hint="letters, digits, `_`, `.`, `-`, at most 63")
