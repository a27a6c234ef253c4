# SPDX-License-Identifier: Apache-2.0
"""Users, tokens, and who the caller is."""

from aiohttp import web

from insula.api.call import Call, answer, empty
from insula.model.users import (
    Identity,
    TokenMade,
    TokenWish,
    UserAdded,
    UserChange,
    UserWish,
)
from insula.tenant.check import rights, rights_everywhere


async def whoami(call: Call) -> web.StreamResponse:
    who = call.grant.principal
    return answer(
        Identity(
            name=who.name,
            tenant=who.tenant,
            kind=who.kind,
            role=who.role if who.is_user else None,
            actions=tuple(sorted(rights(who))),
            everywhere=tuple(sorted(rights_everywhere(who))),
            uid=who.uid,
            token=who.token,
            container=who.container,
        )
    )


async def list_users(call: Call) -> web.StreamResponse:
    return answer(await call.run(call.api.users.list_users))


async def add_user(call: Call) -> web.StreamResponse:
    wish = await call.body(UserWish)
    added = await call.run(call.api.users.add_user, wish)
    call.deed.creates(added.user.name)
    return secret(added)


async def change_user(call: Call) -> web.StreamResponse:
    change = await call.body(UserChange)
    return answer(await call.run(call.api.users.change_user, call.ref, change))


async def remove_user(call: Call) -> web.StreamResponse:
    await call.run(call.api.users.remove_user, call.ref)
    return empty()


async def list_tokens(call: Call) -> web.StreamResponse:
    return answer(await call.run(call.api.users.list_tokens, call.grant))


async def create_token(call: Call) -> web.StreamResponse:
    wish = await call.body(TokenWish)
    made = await call.run(call.api.users.create_token, call.grant, wish)
    call.deed.creates(made.token.id)
    return secret(made)


async def delete_token(call: Call) -> web.StreamResponse:
    await call.run(call.api.users.delete_token, call.grant, call.ref)
    return empty()


def secret(value: UserAdded | TokenMade) -> web.Response:
    """Answer with what is shown once and kept by nobody on the way."""
    made = answer(value, status=201)
    made.headers["Cache-Control"] = "no-store"
    return made
