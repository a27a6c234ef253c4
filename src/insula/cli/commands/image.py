# SPDX-License-Identifier: Apache-2.0
"""`insula image ls|import|build|rm|inspect`."""

from __future__ import annotations

import os

from insula.cli.many import on_each
from insula.cli.parser import UsageError, add_verbs
from insula.cli.render import Column, add_options, ago, short, show
from insula.client.http import quote
from insula.model.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator

    from insula.client.http import Client

HELP = "images: ls, import, build, rm, inspect"
READ_SIZE = 1 << 20

COLUMNS = (
    Column("NAME", lambda row: ", ".join(row.get("names") or ()) or "<none>", shrink=1),
    Column("IMAGE ID", lambda row: short(row["id"])),
    Column("SOURCE", lambda row: str(row.get("source", ""))),
    Column("CREATED", lambda row: ago(row["created_at"]) if row.get("created_at") else "-"),
    Column("SIZE", lambda row: format_size(sum(layer["size_bytes"] for layer in row.get("layers") or ()))),
)


def arguments(parser: ArgumentParser) -> None:
    verbs = add_verbs(
        parser,
        {
            "ls": "list images",
            "import": "make an image of a root file system in a tar (plain, gzip, zstd, xz)",
            "build": "make an image of Debian packages",
            "rm": "remove images",
            "inspect": "print everything known of images as JSON",
        },
    )
    add_options(verbs["ls"], quiet="ids")
    verbs["import"].add_argument("file", metavar="FILE", help="the tar; - for stdin")
    verbs["import"].add_argument(
        "name", metavar="NAME", nargs="?", default="", help="name of the image (default: the file's name)"
    )
    build = verbs["build"].add_argument
    build("--debian", default="bookworm", metavar="RELEASE", help="Debian release (default bookworm)")
    build(
        "--packages",
        action="append",
        default=[],
        metavar="A,B,…",
        help="Debian packages to put into it, besides the smallest system",
    )
    build("--mirror", default="", metavar="URL", help="Debian mirror (default: this host's)")
    build("name", metavar="NAME", help="name of the image")
    verbs["rm"].add_argument("images", metavar="IMAGE", nargs="+", help="name or id")
    from insula.cli.commands.inspect import add_format

    add_format(verbs["inspect"])
    verbs["inspect"].add_argument("images", metavar="IMAGE", nargs="+", help="name or id")


def run(options: Namespace, client: Client) -> int:
    match options.verb:
        case "ls":
            show(client.get("/v1/images"), COLUMNS, options=options)
            return 0
        case "import":
            return _import(options, client)
        case "build":
            return _build(options, client)
        case "rm":
            return on_each(options.images, lambda name: client.call("DELETE", f"/v1/images/{quote(name)}"))
        case _:
            from insula.cli.commands.inspect import inspect

            return inspect(client, options.images, kinds=["image"], form=options.format)


def _import(options: Namespace, client: Client) -> int:
    name = options.name or default_name(options.file)
    if not name:
        raise UsageError(
            "cannot import an image from stdin without a name", hint="insula image import - NAME"
        )
    fd = 0 if options.file == "-" else os.open(options.file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        record = client.upload("POST", "/v1/images/import", query={"name": name}, parts=_parts(fd))
    finally:
        if fd:
            os.close(fd)
    print(record["id"])
    return 0


def default_name(path: str) -> str:
    """Return `rootfs` for `/tmp/rootfs.tar.gz`."""
    return "" if path == "-" else os.path.basename(path).partition(".")[0].lower()


def _parts(fd: int) -> Iterator[bytes]:
    while part := os.read(fd, READ_SIZE):
        yield part


def _build(options: Namespace, client: Client) -> int:
    from insula.cli.progress import watch

    packages = [name for words in options.packages for name in words.replace(",", " ").split()]
    wish = {"name": options.name, "debian": options.debian, "packages": packages}
    if options.mirror:
        wish["mirror"] = options.mirror
    ended = watch(client, client.call("POST", "/v1/images/build", body=wish), title=f"build {options.name}")
    print(ended["result"]["image"])
    return 0
