# SPDX-License-Identifier: Apache-2.0
"""The caller's own terminal: raw mode and back, its size, the keys that detach."""

from __future__ import annotations

import os
import termios
import tty

from insula.model.errors import BadRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

DEFAULT_KEYS = "ctrl-p,ctrl-q"
_CONTROL = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def is_terminal(fd: int) -> bool:
    return os.isatty(fd)


def size(fd: int) -> tuple[int, int]:
    """Return rows and columns, (0, 0) where they are unknown."""
    try:
        found = os.get_terminal_size(fd)
    except OSError:
        return 0, 0
    return found.lines, found.columns


def parse_keys(text: str) -> bytes:
    """Return the bytes that `ctrl-p,ctrl-q` stands for.  An empty text: no such keys.

    Raises: BadRequest.
    """
    keys = bytearray()
    for word in text.split(",") if text else ():
        name = word.removeprefix("ctrl-")
        if name == word and len(word) == 1 and word.isascii():
            keys += word.encode()
        elif name != word and len(name) == 1 and name.isascii() and name.isalpha():
            keys.append(ord(name.lower()) - 96)
        elif name != word and name in _CONTROL:
            keys.append(_CONTROL[name])
        else:
            raise BadRequest(
                f"cannot use detach keys `{text}`: `{word}` is no key", hint="for example ctrl-p,ctrl-q"
            )
    return bytes(keys)


class DetachKeys:
    """Watches typed bytes for the sequence that detaches; a beginning of it is held back until it is clear."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """Return what to forward, and whether the sequence is complete."""
        if not self._keys:
            return typed, False
        out = bytearray()
        for byte in typed:
            while self._matched and byte != self._keys[self._matched]:
                out += self._shift()
            if byte != self._keys[self._matched]:
                out.append(byte)
                continue
            self._matched += 1
            if self._matched == len(self._keys):
                self._matched = 0
                return bytes(out), True
        return bytes(out), False

    # The longest proper border of what was matched stays matched; what is before it goes out.
    def _shift(self) -> bytes:
        held = self._keys[: self._matched]
        border = next(n for n in range(len(held) - 1, -1, -1) if held[len(held) - n :] == held[:n])
        self._matched = border
        return held[: len(held) - border]


class RawMode:
    """Set the terminal raw within the context; it is given back however the context is left."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before: list[int | list[bytes | int]] | None = None

    def __enter__(self) -> RawMode:
        self._before = termios.tcgetattr(self._fd)
        tty.setraw(self._fd, termios.TCSADRAIN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is None:
            return
        try:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
        except termios.error:
            pass  # the terminal is gone
