# SPDX-License-Identifier: Apache-2.0
"""Checkpoint, restore, migrate: long actions on one container, each an operation."""

from aiohttp import web

from insula.api.call import Call, answer, empty
from insula.api.verbs import Reporter, Result
from insula.model.spec import CheckpointWish, MigrateWish, RestoreWish

ACCEPTED = 202


async def list_all(call: Call) -> web.StreamResponse:
    return answer(await call.run(call.api.verbs.list_checkpoints, call.grant, call.ref))


async def delete(call: Call) -> web.StreamResponse:
    name = call.request.match_info["name"]
    await call.run(call.api.verbs.delete_checkpoint, call.grant, call.ref, name=name)
    return empty()


async def checkpoint(call: Call) -> web.StreamResponse:
    wish = await call.body(CheckpointWish, may_be_empty=True)
    record = await call.find()

    def work(reporter: Reporter) -> Result:
        return call.api.verbs.checkpoint(call.grant, record.id, wish=wish, reporter=reporter)

    operation = call.api.operations.start(
        work, kind="checkpoint", tenant=record.tenant, subject=record.name, may_cancel=False
    )
    return answer(operation, status=ACCEPTED)


async def restore(call: Call) -> web.StreamResponse:
    wish = await call.body(RestoreWish, may_be_empty=True)
    record = await call.find()

    def work(reporter: Reporter) -> Result:
        return call.api.verbs.restore(call.grant, record.id, wish=wish, reporter=reporter)

    operation = call.api.operations.start(
        work, kind="restore", tenant=record.tenant, subject=record.name, may_cancel=False
    )
    return answer(operation, status=ACCEPTED)


async def migrate(call: Call) -> web.StreamResponse:
    wish = await call.body(MigrateWish)
    record = await call.find()
    await call.run(call.api.store.get_host, wish.target)

    def work(reporter: Reporter) -> Result:
        return call.api.verbs.migrate(call.grant, record.id, wish=wish, reporter=reporter)

    operation = call.api.operations.start(
        work, kind="migrate", tenant=record.tenant, subject=record.name, may_cancel=True
    )
    return answer(operation, status=ACCEPTED)
