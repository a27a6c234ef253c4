# SPDX-License-Identifier: Apache-2.0
"""What a container changed, as the API tells it: redacted, in a thread, and with a word if there is more."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from api_double import serving
from insula.model.record import ChangedPath
from insula.runtime.diff import Difference
from insula.tenant.redaction import Redaction
from records import container_record

FOUND = (ChangedPath(kind="C", path="/srv"), *(ChangedPath(kind="A", path=f"/srv/{n}") for n in range(3)))


class Sight:
    """Hides what is in /srv, and notes in which threads."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def of_reader(self, _principal: object, _tenant: str) -> Redaction:
        self.threads.add(threading.get_ident())
        return Redaction(paths=("/srv",))


def ask(folder: Path, found: Difference, sight: Sight) -> tuple[list[dict[str, str]], Any]:
    record = container_record()
    store = SimpleNamespace(find_container=lambda *_: record, close=lambda: None)
    verbs = SimpleNamespace(diff=lambda *_: found)

    async def go() -> tuple[list[dict[str, str]], Any]:
        async with (
            serving(folder, store=store, verbs=verbs, sight=sight) as (_, path),
            aiohttp.ClientSession("http://insula", connector=aiohttp.UnixConnector(str(path))) as session,
            session.get("/v1/containers/web/diff") as answer,
        ):
            return await answer.json(), answer.headers

    return asyncio.run(go())


@pytest.mark.parametrize("is_complete", [True, False])
def test_that_there_is_more_stands_in_a_header(tmp_path: Path, is_complete: bool) -> None:
    told, headers = ask(tmp_path, Difference(changes=FOUND, is_complete=is_complete), Sight())
    assert told == [{"kind": "C", "path": "/srv"}, {"kind": "A", "path": "/srv/[hidden]"}]
    assert ("X-Insula-Incomplete" in headers) is not is_complete


def test_many_paths_are_redacted_beside_the_loop(tmp_path: Path) -> None:
    sight = Sight()
    ask(tmp_path, Difference(changes=FOUND, is_complete=True), sight)
    assert threading.get_ident() not in sight.threads
    assert sight.threads
