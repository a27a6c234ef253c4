# SPDX-License-Identifier: Apache-2.0
"""`insula cp`: copy files between a container and here, by docker's rules for folders and trailing slashes.

SRC a file     → DEST there is a folder: into it; a file: over it; nothing: DEST is its new name (its folder must exist)
SRC a folder   → DEST there is a folder: into it, contents only if SRC ends with `/.`; nothing: DEST becomes its copy
`-`            → a tar from stdin or to stdout
"""

from __future__ import annotations

import json
import os
import sys

from insula.cli.parser import UsageError
from insula.client.http import quote
from insula.model.errors import NotFound, PathNotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator

    from insula.client.http import Client

HELP = "copy files into or out of a container"
READ_SIZE = 1 << 20


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-a", "--archive", action="store_true", help="keep owners (default: root there, you here)"
    )
    parser.add_argument("-L", "--follow-link", action="store_true", help="copy what local links point to")
    parser.add_argument("source", metavar="SOURCE", help="PATH, CONTAINER:PATH, or - for a tar from stdin")
    parser.add_argument("target", metavar="TARGET", help="CONTAINER:PATH, PATH, or - for a tar to stdout")


def run(options: Namespace, client: Client) -> int:
    source, target = split(options.source), split(options.target)
    if bool(source[0]) == bool(target[0]):
        raise UsageError(
            "cannot copy: one side must be in a container, the other here",
            hint="insula cp CONTAINER:PATH PATH",
        )
    if source[0]:
        return _from_container(options, client, where=source, target=target[1])
    return _to_container(options, client, source=source[1], where=target)


def split(text: str) -> tuple[str, str]:
    """Return container and path of `CONTAINER:PATH`; no container for a local path (`./a:b`, `/a:b` are local)."""
    name, colon, path = text.partition(":")
    if not colon or not name or "/" in name or name in (".", "..", "-"):
        return "", text
    return name, path or "/"


def plan(source: str, target: str, *, is_source_folder: bool, target_kind: str) -> tuple[str, str]:
    """Return the folder to unpack in and the new first name (`.`: contents only).

    target_kind: folder, file or "" if there is nothing.
    Raises: UsageError, as docker refuses.
    """
    own_name = os.path.basename(source.rstrip("/").removesuffix("/.")) or "."
    wants_contents = source.endswith("/.") or source == "."
    wants_folder = target.endswith(("/", "/."))
    bare = target.removesuffix("/.").rstrip("/") or "/"
    if target_kind == "folder":
        return bare, "." if is_source_folder and wants_contents else own_name
    if is_source_folder and target_kind == "file":
        raise UsageError(f"cannot copy folder `{source}` to `{target}`: that is a file")
    if not is_source_folder and wants_folder:
        raise UsageError(f"cannot copy `{source}` to `{target}`: no such folder", hint="create it first")
    return os.path.dirname(bare) or ".", os.path.basename(bare)


def _to_container(options: Namespace, client: Client, *, source: str, where: tuple[str, str]) -> int:
    from insula.cli import archive

    name, target = where
    target = target if target.startswith("/") else f"/{target}"
    address = f"/v1/containers/{quote(name)}/archive"
    if source == "-":
        client.upload("PUT", address, query={"path": target}, parts=_stdin())
        return 0
    if not os.path.lexists(source):
        raise PathNotFound(f"cannot copy `{source}`: no such file or folder")
    is_folder = os.path.isdir(source) and (not os.path.islink(source) or source.endswith(("/", "/.")))
    is_folder = is_folder or (options.follow_link and os.path.isdir(source))
    kind = _kind_there(client, address, target)
    folder, first = plan(source, target, is_source_folder=is_folder, target_kind=kind)
    parts = archive.pack(source, first, follow_links=options.follow_link, keep_owner=options.archive)
    client.upload("PUT", address, query={"path": folder}, parts=parts)
    return 0


def _kind_there(client: Client, address: str, path: str) -> str:
    try:
        with client.open("GET", address, query={"path": path}) as answer:
            facts = json.loads(answer.headers.get("x-insula-path-stat", "{}"))
    except PathNotFound:
        return ""
    return "folder" if facts.get("is_directory") else "file"


def _from_container(options: Namespace, client: Client, *, where: tuple[str, str], target: str) -> int:
    from insula.cli import archive
    from insula.client.attach import write_all

    name, path = where
    with client.open("GET", f"/v1/containers/{quote(name)}/archive", query={"path": path}) as answer:
        if target == "-":
            for part in answer.chunks():
                write_all(1, part)
            return 0
        facts = json.loads(answer.headers.get("x-insula-path-stat", "{}"))
        kind = "folder" if os.path.isdir(target) else "file" if os.path.lexists(target) else ""
        folder, first = plan(path, target, is_source_folder=bool(facts.get("is_directory")), target_kind=kind)
        if not os.path.isdir(folder):
            raise NotFound(f"cannot copy to `{target}`: no such folder `{folder}`", hint="create it first")
        skipped = archive.unpack(answer.chunks(), folder, name=first, keep_owner=options.archive)
    if skipped:
        print(f"insula: skipped {skipped} devices, FIFOs or broken links", file=sys.stderr)
    return 0


def _stdin() -> Iterator[bytes]:
    while part := os.read(0, READ_SIZE):
        yield part
