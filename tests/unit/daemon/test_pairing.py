# SPDX-License-Identifier: Apache-2.0
"""Pairing over real TLS on the loopback interface: the right token, wrong, used, too old; the pins."""

import asyncio
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from api_double import api_of
from insula.api import server
from insula.api.call import Api, HostIdentity
from insula.daemon import pairing
from insula.daemon.operations import OperationRegistry
from insula.daemon.pairing import PairingDesk
from insula.daemon.pki import Pki
from insula.model.errors import BadRequest, Denied, InsulaError, NameTaken, TargetUnreachable
from insula.model.record import HostRecord
from insula.model.spec import HostWish
from insula.runtime.store import Store


@dataclass
class Served:
    """As much of a daemon as pairing needs: no spawner, nothing of the kernel."""

    api: Api
    pki: Pki


@dataclass
class Host:
    daemon: Served
    address: str

    @property
    def desk(self) -> Any:
        return self.daemon.api.pairing


@asynccontextmanager
async def host(folder: Path, *, name: str) -> AsyncIterator[Host]:
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    (folder / name).mkdir()
    loop = asyncio.get_running_loop()
    store = Store(folder / name / "db.sqlite")
    pki = Pki(folder / name / "pki", name=name)
    identity = HostIdentity(
        name=name, version="0", cgroups="v2", criu="", state_folder=str(folder / name), admins=frozenset()
    )
    api = api_of(
        folder / name,
        identity=identity,
        store=store,
        operations=OperationRegistry(store, loop),
        pairing=PairingDesk(store, pki, name=name, address=address),
    )
    runner = server.build(api)
    await runner.setup()
    await web.SockSite(runner, listener, ssl_context=pki.server_context()).start()
    yield Host(Served(api, pki), address)
    await runner.cleanup()
    api.close()
    api.audit.close()
    store.close()


def run(test: Callable[[Host, Host], Any], tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            asyncio.timeout(20),
            host(tmp_path, name="alpha") as alpha,
            host(tmp_path, name="beta") as beta,
        ):
            await asyncio.to_thread(test, alpha, beta)

    asyncio.run(main())


def status(stream: ssl.SSLSocket, path: str) -> int:
    stream.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    return int(stream.recv(4096).split()[1])


def test_after_pairing_both_sides_prove_themselves(tmp_path: Path) -> None:
    def test(alpha: Host, beta: Host) -> None:
        token = alpha.desk.issue_token()
        record = beta.desk.join(HostWish(name="alpha", address=alpha.address, token=token.token))
        assert record.fingerprint == alpha.daemon.pki.fingerprint
        (back,) = alpha.daemon.api.store.list_hosts()
        assert (back.name, back.address) == ("beta", beta.address)
        for desk, other in ((beta.desk, record), (alpha.desk, back)):
            assert desk.is_reachable(other)
        # A paired host is no user; what it may do is tested in test_door.py.
        for path, expected in (("/v1/hosts/token", 403), ("/v1/containers", 403)):
            with beta.daemon.pki.open_stream(record) as stream:
                assert status(stream, path) == expected
                assert stream.version() == "TLSv1.3"

    run(test, tmp_path)


def test_a_token_works_once_and_not_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def test(alpha: Host, beta: Host) -> None:
        token = alpha.desk.issue_token().token
        _, secret, pin = token.split(".")

        def join(word: str) -> HostRecord:
            record: HostRecord = beta.desk.join(HostWish(name="alpha", address=alpha.address, token=word))
            return record

        with pytest.raises(Denied, match="token"):
            join(f"insula1.{'0' * 32}.{pin}")
        with pytest.raises(Denied, match="pin"):
            join(f"insula1.{secret}.{'0' * 64}")
        with pytest.raises(BadRequest):
            join(token[:-1])
        assert alpha.daemon.api.store.list_hosts() == []
        join(token)
        with pytest.raises(Denied, match="used"):
            join(token)
        monkeypatch.setattr(pairing, "LIFETIME_S", -1)
        with pytest.raises(Denied, match="too old"):
            join(alpha.desk.issue_token().token)

    run(test, tmp_path)


def test_another_certificate_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    def test(alpha: Host, beta: Host) -> None:
        record = beta.desk.join(
            HostWish(name="a", address=alpha.address, token=alpha.desk.issue_token().token)
        )
        false = HostRecord(name="a", address=beta.address, fingerprint=record.fingerprint)
        with pytest.raises(Denied, match="another certificate"):
            beta.daemon.pki.open_stream(false)
        assert not beta.desk.is_reachable(false)
        with pytest.raises(NameTaken):
            alpha.desk.join(
                HostWish(name="beta", address=alpha.address, token=alpha.desk.issue_token().token)
            )
        with pytest.raises(TargetUnreachable):
            beta.desk.join(HostWish(name="b", address="127.0.0.1:1", token=alpha.desk.issue_token().token))
        plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        plain.check_hostname, plain.verify_mode = False, ssl.CERT_NONE
        plain.load_cert_chain(tmp_path / "beta/pki/host.crt", tmp_path / "beta/pki/host.key")
        plain.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            pytest.raises(ssl.SSLError),
            socket.create_connection(("127.0.0.1", int(alpha.address[10:]))) as raw,
        ):
            plain.wrap_socket(raw)

    run(test, tmp_path)


def test_keys_are_kept_and_private(tmp_path: Path) -> None:
    first = pairing.Pki(tmp_path / "pki", name="alpha")
    assert pairing.Pki(tmp_path / "pki", name="alpha").fingerprint == first.fingerprint
    assert stat.S_IMODE((tmp_path / "pki/host.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "pki").stat().st_mode) == 0o700
    with pytest.raises(InsulaError):
        pairing.fingerprint_of_pem("nonsense")
