# SPDX-License-Identifier: Apache-2.0
"""Follow a long operation to its end.  Showing it is `cli/progress.py`'s part."""

from __future__ import annotations

from insula.client.http import Client, Json
from insula.model.errors import Cancelled, DaemonUnreachable, InsulaError, from_code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

ENDED = ("done", "failed", "cancelled")


def follow(client: Client, operation: Json) -> Iterator[Json]:
    """Yield the operation's records as it goes on; the last one has ended.

    Raises: DaemonUnreachable if the daemon goes away first.
    """
    identifier = str(operation["id"])
    last = operation
    yield last
    if last["status"] in ENDED:
        return
    for record in client.follow(f"/v1/operations/{identifier}/follow"):
        last = record
        yield last
        if last["status"] in ENDED:
            return
    raise DaemonUnreachable(
        f"lost the connection to insulad while operation `{identifier}` goes on",
        hint="see how it ended with `insula operation ls`",
    )


def cancel(client: Client, identifier: str) -> None:
    """Ask for the operation's end."""
    client.call("DELETE", f"/v1/operations/{identifier}")


def failure(record: Json) -> InsulaError | None:
    """Return the error of an ended operation, None if it succeeded."""
    if record["status"] == "done":
        return None
    error = record.get("error")
    if record["status"] == "cancelled" and not error:
        return Cancelled(f"operation `{record['id']}` was cancelled")
    error = error or {}
    message = str(error.get("message") or f"operation `{record['id']}` failed")
    return from_code(str(error.get("code", "internal")), message, hint=str(error.get("hint", "")))
