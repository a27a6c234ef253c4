# SPDX-License-Identifier: Apache-2.0
"""`--key-file`: the key of a checkpoint, read here, where the caller's own rights hold, and sent along."""

from __future__ import annotations

import base64

from insula.model.errors import BadRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

MAX_BYTES = 4096


def add_key_option(parser: ArgumentParser, *, meaning: str) -> None:
    """Add the option."""
    parser.add_argument(
        "--key-file",
        default="",
        metavar="FILE",
        help=meaning,
    )


def key_of(options: Namespace) -> dict[str, str | bool]:
    """Return what a wish says of the key.  Raises: BadRequest."""
    if not options.key_file:
        return {}
    try:
        with open(options.key_file, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadRequest(
            f"cannot read key file `{options.key_file}`: {(error.strerror or '').lower()}"
        ) from error
    return {"key": base64.b64encode(data).decode()}
