# SPDX-License-Identifier: Apache-2.0
"""What each part of the intruder uses: the list of checks, and ways to try something that has to fail.

Everything in this folder runs inside a container: Python's standard library only, any uid, any host.  `told` is what the host
has to say: words that must be seen nowhere, pids, listeners and sockets that must not be reached.
"""

import ctypes
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Told:
    """What the host knows and a container must not."""

    words: list[str] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    listeners: list[list] = field(default_factory=list)
    abstract: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    descriptors: set[int] = field(default_factory=set)
    """Of this program itself, when it began."""


told = Told()
CHECKS: dict[str, Callable[[], str]] = {}
DENIED = (errno.EPERM, errno.ENOSYS, errno.EACCES)
_LIBC = ctypes.CDLL(None, use_errno=True)


class Broke(Exception):
    """An attempt came through."""


def check(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register a check under its number and name."""

    def register(act: Callable[[], str]) -> Callable[[], str]:
        CHECKS[name] = act
        return act

    return register


def each(number: str, things: dict, act: Callable[..., str]) -> None:
    """Register one check for each named thing."""
    for name, thing in things.items():
        CHECKS[f"{number}-{name}"] = lambda thing=thing: act(thing)


def named(paths: tuple[str, ...]) -> dict[str, str]:
    """Return names, good for a test's id, of paths."""
    return {path.strip("/").replace("/", "."): path for path in paths}


def must_fail(act: Callable[[], object], *wanted: int) -> str:
    """Try; it must fail, with one of these errors if any are named.  Returns: the error's name."""
    try:
        result = act()
    except OSError as error:
        if wanted and error.errno not in wanted:
            raise Broke(f"not the error that was due: {error}") from None
        return errno.errorcode.get(error.errno or 0, str(error))
    raise Broke(f"it came through: {result!r}")


def write(path: str, data: bytes) -> None:
    """Write to a file that is there."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def is_root() -> bool:
    return os.geteuid() == 0


def call(number: int, *arguments: int) -> int:
    """Make a system call.  Raises: OSError."""
    ctypes.set_errno(0)
    words = [ctypes.c_long(word) for word in (number, *arguments, *(0,) * (6 - len(arguments)))]
    result = _LIBC.syscall(*words)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def address(data: bytes | bytearray) -> int:
    """Return where bytes lie in memory."""
    if isinstance(data, bytearray):
        return ctypes.addressof((ctypes.c_char * len(data)).from_buffer(data))
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


def in_child(act: Callable[[], str]) -> str:
    """Act in a child; a signal that ends it is an answer, too."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, b"+" + act().encode())
        except BaseException as error:
            os.write(writing, b"-" + repr(error).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        said = file.read().decode()
    _, status = os.waitpid(child, 0)
    if said.startswith("-"):
        raise Broke(said[1:])
    return said[1:] or f"ended by signal {os.WTERMSIG(status)}"


def listed(path: str) -> list[str]:
    """Return the names in a folder, none if it cannot be read."""
    try:
        return os.listdir(path)
    except OSError:
        return []


def shows_nothing(path: str) -> str:
    """Read a file or folder, which must be absent, closed or empty."""
    try:
        if os.path.isdir(path):
            found: object = os.listdir(path)
        else:
            with open(path, "rb") as file:
                found = file.read(64)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "")
    if found:
        raise Broke(f"{path}: {str(found)[:200]}")
    return "empty"
