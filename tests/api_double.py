# SPDX-License-Identifier: Apache-2.0
"""The API's real application with parts left out: what a test does not name is None."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from insula.api.call import Api, HostIdentity
from insula.api.changes import Changes
from insula.api.gate import Gate
from insula.api.routes import ROUTES, Route
from insula.api.server import build
from insula.api.standing import Standing
from insula.daemon.rights import PolicyFile
from insula.daemon.sight import Sight
from insula.model.quota import Unlimited
from insula.runtime.store import Store
from insula.tenant.audit import Audit


def api_of(folder: Path, *, streams: Any = None, **parts: Any) -> Api:
    """Build an API of the parts given and the usual ones; called in the loop."""
    loop = asyncio.get_running_loop()
    given = {
        "identity": HostIdentity(name="alpha", version="1", cgroups="v2", criu="", state_folder=str(folder)),
        "changes": Changes(loop),
        "audit": Audit(folder / "audit.log"),
        "standing": Standing(loop, streams=streams),
        "gate": Gate(Unlimited(), held=frozenset),
        "sight": Sight(PolicyFile(folder / "policy.toml")),
        **parts,
    }
    if "store" not in given:
        given["store"] = Store(folder / "db.sqlite")
    needed = [
        each.name
        for each in dataclasses.fields(Api)
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    ]
    return Api(**{name: given.get(name) for name in needed})


@contextlib.asynccontextmanager
async def serving(
    folder: Path, *, routes: Sequence[Route] = ROUTES, streams: Any = None, **parts: Any
) -> AsyncIterator[tuple[Api, Path]]:
    """Serve on a unix socket in a folder.  Yields: the API and the socket's path."""
    api = api_of(folder, streams=streams, **parts)
    runner = build(api, routes=routes)
    await runner.setup()
    path = folder / "api.sock"
    await web.UnixSite(runner, str(path)).start()
    try:
        yield api, path
    finally:
        await runner.cleanup()
        api.close()
        api.audit.close()
        api.store.close()
