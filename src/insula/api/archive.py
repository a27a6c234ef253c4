# SPDX-License-Identifier: Apache-2.0
"""Copy files into and out of a container (`insula cp`)."""

from aiohttp import web

from insula.api.bodies import PathQuery
from insula.api.call import Call, empty, encoded
from insula.api.transfer import download, upload


async def read(call: Call) -> web.StreamResponse:
    path = call.query(PathQuery).path
    verbs = call.api.verbs
    stat = await call.run(verbs.stat_path, call.grant, call.ref, path=path)
    headers = {"Content-Type": "application/x-tar", "X-Insula-Path-Stat": _ascii(stat)}
    return await download(
        call,
        lambda output: verbs.read_archive(call.grant, call.ref, path=path, output=output),
        headers=headers,
    )


def _ascii(value: object) -> str:
    # Names may hold any character; a header may not, JSON's escapes do.
    text = encoded(value).decode()
    return "".join(c if c < "\x7f" else "".join(f"\\u{unit:04x}" for unit in _utf16(c)) for c in text)


def _utf16(character: str) -> list[int]:
    raw = character.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(raw[at : at + 2], "big") for at in range(0, len(raw), 2)]


async def write(call: Call) -> web.StreamResponse:
    path = call.query(PathQuery).path
    verb = call.api.verbs.write_archive
    await upload(call, lambda source: verb(call.grant, call.ref, path=path, source=source))
    return empty()
