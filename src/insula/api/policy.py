# SPDX-License-Identifier: Apache-2.0
"""The policy: what counts, is this right, read it again."""

from aiohttp import web

from insula.api.bodies import PolicyText
from insula.api.call import Call, answer, empty


async def show(call: Call) -> web.StreamResponse:
    return answer(call.api.policy.view())


async def check(call: Call) -> web.StreamResponse:
    wish = await call.body(PolicyText)
    await call.run(call.api.policy.check, wish.text)
    return empty()


async def reload(call: Call) -> web.StreamResponse:
    return answer(await call.run(call.api.policy.reload))
