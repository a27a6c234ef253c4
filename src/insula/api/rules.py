# SPDX-License-Identifier: Apache-2.0
"""Rules over events: what counts, is this right, read them again."""

from aiohttp import web

from insula.api.bodies import PolicyText
from insula.api.call import Call, answer, empty
from insula.monitor.rules import read_rules


async def list_all(call: Call) -> web.StreamResponse:
    return answer(call.api.rules.rules)


async def check(call: Call) -> web.StreamResponse:
    wish = await call.body(PolicyText)
    await call.run(read_rules, wish.text, file=wish.file[:200])
    return empty()


async def reload(call: Call) -> web.StreamResponse:
    await call.run(call.api.rules.reload)
    return answer(call.api.rules.rules)
