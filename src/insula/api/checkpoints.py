# SPDX-License-Identifier: Apache-2.0
"""Checkpoint, restore, migrate: long actions on one container, each an operation."""

from typing import Protocol, TypeVar

from aiohttp import web
from msgspec.structs import replace

from insula.api.call import Call, answer, empty
from insula.api.verbs import Reporter, Result
from insula.model.grant import Grant
from insula.model.spec import CheckpointWish, MigrateWish, ResolveWish, RestoreWish

WishType = TypeVar("WishType", contravariant=True)

ACCEPTED = 202


async def list_all(call: Call) -> web.StreamResponse:
    record = await call.find()
    hidden = call.redaction(record.tenant)
    found = await call.run(call.api.verbs.list_checkpoints, call.grant, record.id)
    return answer([replace(each, profile=hidden.applied(each.profile)) for each in found])


async def delete(call: Call) -> web.StreamResponse:
    name = call.request.match_info["name"]
    await call.run(call.api.verbs.delete_checkpoint, call.grant, call.ref, name=name)
    return empty()


async def checkpoint(call: Call) -> web.StreamResponse:
    wish = await call.body(CheckpointWish, may_be_empty=True)
    return await _begin(call, call.api.verbs.checkpoint, wish=wish, kind="checkpoint")


async def restore(call: Call) -> web.StreamResponse:
    wish = await call.body(RestoreWish, may_be_empty=True)
    return await _begin(call, call.api.verbs.restore, wish=wish, kind="restore")


async def migrate(call: Call) -> web.StreamResponse:
    wish = await call.body(MigrateWish)
    await call.run(call.api.store.get_host, wish.target)
    return await _begin(call, call.api.verbs.migrate, wish=wish, kind="migrate", may_cancel=True)


async def resolve(call: Call) -> web.StreamResponse:
    wish = await call.body(ResolveWish)
    await call.run(call.api.verbs.resolve, call.grant, call.ref, wish=wish)
    return empty()


class _Verb(Protocol[WishType]):
    def __call__(self, grant: Grant, ref: str, /, *, wish: WishType, reporter: Reporter) -> Result: ...


async def _begin(
    call: Call, verb: _Verb[WishType], *, wish: WishType, kind: str, may_cancel: bool = False
) -> web.StreamResponse:
    record = await call.find()

    def work(reporter: Reporter) -> Result:
        return verb(call.grant, record.id, wish=wish, reporter=reporter)

    operation = call.api.operations.start(
        work,
        kind=kind,
        tenant=record.tenant,
        asker=call.grant.principal.tenant,
        subject=record.name,
        container=record.id,
        may_cancel=may_cancel,
    )
    return answer(operation, status=ACCEPTED)
