# SPDX-License-Identifier: Apache-2.0
"""Rules over events: what counts, is this right, read them again."""

from aiohttp import web

from insula.api.bodies import PolicyText
from insula.api.call import Call, answer


async def list_all(call: Call) -> web.StreamResponse:
    return answer(call.api.rules.rules)


async def check(call: Call) -> web.StreamResponse:
    wish = await call.body(PolicyText)
    return answer(await call.run(call.api.rules.check, wish.text, file=wish.file[:200]))


async def reload(call: Call) -> web.StreamResponse:
    return answer(await call.run(call.api.rules.reload))
