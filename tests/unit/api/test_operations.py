# SPDX-License-Identifier: Apache-2.0
"""Operations over a real socket: whose a token for one container may follow and cancel."""

import asyncio
import os
import pwd
import threading
import time
from pathlib import Path

import aiohttp

from api_double import serving
from insula.api.call import Api
from insula.api.verbs import Reporter, Result
from insula.daemon.operations import OperationRegistry
from insula.model.grant import Action
from insula.model.record import OperationRecord
from insula.model.users import TokenRecord
from insula.runtime.store import Store
from insula.tenant import identity
from records import container_record
from waiting import DEADLINE_S

MINE, OLDER = "a" * 64, "b" * 64
"""Ids of the token's container and of one that was called so before."""


def me() -> str:
    return identity.user_name(os.getuid(), pwd.getpwuid(os.getuid()).pw_name)


def token_for_one_container(store: Store) -> str:
    """Make one to follow and cancel what is done to MINE.  Returns: its text."""
    token_id, text, digest = identity.new_token()
    record = TokenRecord(
        id=token_id,
        owner=me(),
        uid=os.getuid(),
        tenant=me(),
        scopes=(Action.CONTROL, Action.READ),
        container=MINE,
        expires_at=time.time() + 60,
    )
    store.save_api_token(record, digest=digest, now=time.time())
    return text


def test_a_token_for_one_container_reaches_nothing_else_that_is_called_so(tmp_path: Path) -> None:
    may_end = threading.Event()

    def begin(api: Api, kind: str, *, container: str) -> OperationRecord:
        def work(_reporter: Reporter) -> Result:
            may_end.wait(DEADLINE_S)
            return {}

        return api.operations.start(
            work, kind=kind, tenant=me(), asker=me(), subject="web", container=container, may_cancel=True
        )

    async def test() -> None:
        store = Store(tmp_path / "db.sqlite")
        store.add_container(container_record(id=MINE, name="web", tenant=me()))
        operations = OperationRegistry(store, asyncio.get_running_loop())
        async with (
            asyncio.timeout(DEADLINE_S),
            serving(tmp_path, store=store, operations=operations) as (api, path),
        ):
            headers = {"Authorization": f"Bearer {token_for_one_container(store)}"}
            own = begin(api, "migrate", container=MINE)
            others = (begin(api, "migrate", container=OLDER), begin(api, "image-build", container=""))
            connector = aiohttp.UnixConnector(str(path))
            async with aiohttp.ClientSession(
                "http://insula", connector=connector, headers=headers
            ) as session:

                async def status(method: str, operation: OperationRecord) -> int:
                    async with session.request(method, f"/v1/operations/{operation.id}") as answer:
                        return answer.status

                for method in ("GET", "DELETE"):
                    assert await status(method, own) == 200
                    assert [await status(method, each) for each in others] == [404, 404], method
            may_end.set()
            for each in (own, *others):
                assert [step async for step in operations.follow(None, each.id)][-1].status != "running"

    asyncio.run(test())
