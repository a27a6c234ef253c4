# SPDX-License-Identifier: Apache-2.0
"""What containers used during the last hour."""

from typing import Annotated

import msgspec
from aiohttp import web

from insula.api.bodies import Query
from insula.api.call import Call, answer
from insula.model.history import KEPT_S

Seconds = Annotated[float, msgspec.Meta(gt=0, le=KEPT_S)]


class SpanQuery(Query, kw_only=True, frozen=True):
    seconds: Seconds = KEPT_S
    """The last so many."""


class HistoryQuery(SpanQuery, kw_only=True, frozen=True):
    step: Annotated[float, msgspec.Meta(ge=0, le=KEPT_S)] = 0.0
    """Added up to one figure for so many seconds each; 0: as they were sampled."""


async def one(call: Call) -> web.StreamResponse:
    """In spans, in order."""
    query = call.query(HistoryQuery)
    usage = call.api.history.usage
    return answer(await call.run(usage, call.grant, call.ref, seconds=query.seconds, step_s=query.step))


async def every(call: Call) -> web.StreamResponse:
    """All that the caller may see, one figure each."""
    seconds = call.query(SpanQuery).seconds
    return answer(await call.run(call.api.history.totals, call.grant, seconds=seconds))
