# SPDX-License-Identifier: Apache-2.0
"""CRIU's images on their way: some forty small files as one message and one stream, because each message costs both hosts time
in the pause.

Out of scope: what is in them, and shared memory (`shared.py`).
"""

import os
import re
from collections.abc import Iterable, Iterator

from insula.migrate.wire import Wire
from insula.model.errors import ProtocolError
from insula.model.migration import Files
from insula.runtime.dump import IMAGE_MODE, INVENTORY, INVENTORY_KEPT

_PIECE = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def send_images(wire: Wire, folder: int, names: Iterable[str]) -> None:
    """Send files of a folder that nobody writes to any more.  Raises: MigrationFailed."""
    files = tuple((name, os.stat(name, dir_fd=folder, follow_symlinks=False).st_size) for name in names)
    if files:
        wire.send(Files(files=files))
        wire.send_stream(piece for name, _size in files for piece in _pieces(folder, name))


def _pieces(folder: int, name: str) -> Iterator[bytes]:
    with os.fdopen(os.open(name, _READ, dir_fd=folder), "rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            yield piece


def receive_images(
    message: Files, stream: Iterable[bytes | bytearray], folder: int, *, is_inventory_kept: bool
) -> None:
    """Write what comes into a folder; what has come before, for a freeze that was given up, is replaced.

    is_inventory_kept: CRIU waits for the inventory already (`runtime/dump.py`).  Raises: ProtocolError.
    """
    for name, size in message.files:
        if not _NAME.fullmatch(name) or size < 0:
            raise ProtocolError(f"cannot take image `{name[:80]}`: no plain name, or no size")
    left = iter(stream)
    rest = memoryview(b"")
    for name, size in message.files:
        kept = INVENTORY_KEPT if is_inventory_kept and name == INVENTORY else name
        with os.fdopen(os.open(kept, _CREATE, IMAGE_MODE, dir_fd=folder), "wb", buffering=0) as file:
            while size > 0:
                rest = rest or memoryview(next(left, b""))
                if not rest:
                    raise ProtocolError(f"cannot take image `{name[:80]}`: it is cut short")
                written = file.write(rest[:size])
                size -= written
                rest = rest[written:]
    if rest or any(left):
        raise ProtocolError("cannot take images: more bytes than were announced")
