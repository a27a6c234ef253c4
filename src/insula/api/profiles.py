# SPDX-License-Identifier: Apache-2.0
"""Profiles: recorded, kept, compared, and what a container is held to."""

from aiohttp import web

from insula.api.bodies import Query
from insula.api.call import Call, answer, empty
from insula.model.profile import ApplyWish, SaveWish
from insula.monitor.oci_seccomp import OciRuntime, seccomp_list


class SeccompQuery(Query, kw_only=True, frozen=True):
    runtime: OciRuntime = OciRuntime.ANY
    """Whose own start the list leaves room for."""


async def record(call: Call) -> web.StreamResponse:
    await call.run(call.api.profiles.record, call.grant, call.ref)
    return empty()


async def recorded(call: Call) -> web.StreamResponse:
    return answer(await call.run(call.api.profiles.recorded, call.grant, call.ref))


async def save(call: Call) -> web.StreamResponse:
    wish = await call.body(SaveWish)
    return answer(await call.run(call.api.profiles.save, call.grant, call.ref, name=wish.name))


async def apply(call: Call) -> web.StreamResponse:
    wish = await call.body(ApplyWish)
    return answer(await call.run(call.api.profiles.apply, call.grant, call.ref, wish=wish))


async def release(call: Call) -> web.StreamResponse:
    return answer(await call.run(call.api.profiles.release, call.grant, call.ref))


async def drift(call: Call) -> web.StreamResponse:
    return answer(await call.run(call.api.drifts.drifts, call.grant, call.ref))


async def list_all(call: Call) -> web.StreamResponse:
    return answer(await call.run(call.api.profiles.list, call.grant))


async def inspect(call: Call) -> web.StreamResponse:
    return answer(await call.run(call.api.profiles.get, call.grant, call.ref))


async def seccomp(call: Call) -> web.StreamResponse:
    """The system calls of a profile, for other managers."""
    runtime = call.query(SeccompQuery).runtime
    found = await call.run(call.api.profiles.get, call.grant, call.ref)
    return answer(seccomp_list(found.calls, refused=found.refused_calls, runtime=runtime))


async def put(call: Call) -> web.StreamResponse:
    text = await call.request.read()
    return answer(await call.run(call.api.profiles.put, call.grant, call.ref, text=text))


async def delete(call: Call) -> web.StreamResponse:
    await call.run(call.api.profiles.delete, call.grant, call.ref)
    return empty()
