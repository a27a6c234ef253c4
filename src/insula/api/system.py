# SPDX-License-Identifier: Apache-2.0
"""This host: version and facts."""

import os
from collections import Counter

from aiohttp import web

from insula.api.bodies import HostFacts, Version
from insula.api.call import Call, answer
from insula.model.grant import scope

API_VERSION = 1


async def version(call: Call) -> web.StreamResponse:
    identity = call.api.identity
    return answer(
        Version(version=identity.version, api=API_VERSION, kernel=os.uname().release, host=identity.name)
    )


async def host(call: Call) -> web.StreamResponse:
    return answer(await call.run(_facts, call))


def _facts(call: Call) -> HostFacts:
    identity, store, tenant = call.api.identity, call.api.store, scope(call.grant)
    statuses = Counter(record.status.value for record in store.list_containers(tenant))
    return HostFacts(
        name=identity.name,
        version=identity.version,
        kernel=os.uname().release,
        cpus=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        cgroups=identity.cgroups,
        criu=identity.criu,
        containers=dict(statuses),
        images=len(call.api.verbs.list_images(call.grant)),
        state_folder=identity.state_folder,
        fingerprint=identity.fingerprint,
    )


async def openapi(call: Call) -> web.StreamResponse:
    from insula.api.document import document  # it is made of the routes, among which this is

    return web.Response(body=await call.run(document), content_type="application/json")
