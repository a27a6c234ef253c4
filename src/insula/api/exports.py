# SPDX-License-Identifier: Apache-2.0
"""What leaves the host unasked: where it goes and how much went, is this list right, read it again."""

from aiohttp import web

from insula.api.bodies import PolicyText
from insula.api.call import Call, answer, empty


async def list_all(call: Call) -> web.StreamResponse:
    return answer(call.api.exports.counts())


async def check(call: Call) -> web.StreamResponse:
    wish = await call.body(PolicyText)
    await call.run(call.api.exports.check, wish.text)
    return empty()


async def reload(call: Call) -> web.StreamResponse:
    await call.run(call.api.exports.reload)
    return answer(call.api.exports.counts())
