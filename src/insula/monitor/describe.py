# SPDX-License-Identifier: Apache-2.0
"""Numbers of the kernel into words: an event as a person reads it.  Pure.

Sources: the man pages ip(7), ipv6(7), unix(7).
"""

import errno
import ipaddress
import os
import struct
from collections.abc import Callable, Mapping

from insula.kernel import syscalls
from insula.model.folders import CUT
from insula.model.monitor import Event, EventKind
from insula.monitor.details import FLAGS_AT, detail_of
from insula.monitor.layout import ARGUMENTS_AT, NAMED, NAMED_AT, RESULT_AT, TEXT_BYTES, Kind, Raw
from insula.monitor.shapes import SHAPES, WORKING_FOLDER, Shape

_KINDS: Mapping[int, EventKind] = {kind: EventKind(kind.name.lower()) for kind in Kind}
_ADDRESSED = frozenset(name for name, shape in SHAPES.items() if shape.kind is Kind.NETWORK)
"""Calls of which the text is a struct sockaddr."""
_AT_FDCWD = -100
_MOUNT_FLAGS_AT = 3
_MS_REMOUNT, _MS_BIND, _MS_MOVE = 32, 4096, 8192
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_FAMILY = struct.Struct("=H")
_PORT = struct.Struct(">H")
_WITH_ARGUMENTS = frozenset({Kind.IDENTITY, Kind.KERNEL})
_NO_PLACE = slice(0, 0)


def _places_of(call: str) -> list[tuple[int, int]]:
    if call in FLAGS_AT:
        return [(FLAGS_AT[call], FLAGS_AT[call] + 1)]
    if call == "mount":
        return [(_MOUNT_FLAGS_AT, _MOUNT_FLAGS_AT + 1)]
    return [(0, 3)] if call in SHAPES and SHAPES[call].other_folder not in (0, WORKING_FOLDER) else []


_PLACES = {
    number: slice(ARGUMENTS_AT + 8 * first, ARGUMENTS_AT + 8 * last)
    for name, number in syscalls.numbers(os.uname().machine).items()
    for first, last in _places_of(name)
}
"""Number of a call that is told with paths → where those of its arguments stand that are put into words."""
_LOW = 0xFFFFFFFF
"""Of a descriptor: the kernel takes an int."""


EXECUTING = frozenset({"execve", "execveat"})


def call_names(numbers: Mapping[str, int]) -> dict[int, str]:
    """Return number → name of a processor's system calls."""
    return {number: name for name, number in numbers.items()}


def error_name(result: int) -> str:
    """Return the name of the errno that a negative result is; empty for success."""
    return errno.errorcode.get(-result, str(-result)) if -4096 < result < 0 else ""


def text_of(data: bytes) -> str:
    """Return what a program gave as a path or an argument, up to its NUL; bytes that are not UTF-8 as `\\xff`."""
    return data.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def address_of(data: bytes) -> str:
    """Return a struct sockaddr in words; empty for what is none."""
    if len(data) < _FAMILY.size:
        return ""
    (family,) = _FAMILY.unpack_from(data)
    if family == _AF_INET and len(data) >= 8:
        return f"{ipaddress.IPv4Address(data[4:8])}:{_PORT.unpack_from(data, 2)[0]}"
    if family == _AF_INET6 and len(data) >= 24:
        return f"[{ipaddress.IPv6Address(data[8:24])}]:{_PORT.unpack_from(data, 2)[0]}"
    if family == _AF_UNIX:
        name = data[2:]
        return "unix:" + ("@" + text_of(name[1:]) if name[:1] == b"\0" and len(name) > 1 else text_of(name))
    return f"family {family}"


def describe(
    raw: Raw,
    *,
    container: str,
    name: str,
    calls: Mapping[int, str],
    clock: float,
    inner_user: Callable[[int], int],
) -> Event:
    """Put an event into words.

    clock: when CLOCK_BOOTTIME was 0, in seconds since the epoch.  inner_user: the host's uid → the container's, or -1.
    """
    kind = raw.kind
    is_call = kind >= Kind.SECCOMP
    call = calls.get(raw.number) or f"syscall {raw.number}" if is_call else ""
    is_address = call in _ADDRESSED
    is_exec = kind == Kind.EXEC
    told = b"" if is_address else raw.other if is_exec else raw.text
    path = text_of(told) if told else ""
    begins = raw.other_folder if is_exec else raw.folder
    folder = folder_of(begins) if begins or _is_without_folder(path, call=call, kind=kind) else ""
    return Event(
        at=clock + raw.nanoseconds / 1e9,
        container=container,
        name=name,
        kind=_KINDS[kind],
        call=call,
        pid=raw.pid,
        thread=raw.thread,
        user=inner_user(raw.user),
        command=text_of(raw.command),
        result=raw.result,
        error=error_name(raw.result) if is_call else "",
        path=_path_of(path, folder) if folder else path,
        other_path=_other_path(raw, call, folder=folder) if raw.other else "",
        is_cut=len(told) == TEXT_BYTES or len(raw.folder if is_exec else raw.other) == TEXT_BYTES,
        address=address_of(raw.text) if is_address else "",
        arguments=_arguments(raw.text) if is_exec else (),
        detail=detail_of(raw, call),
        port=raw.port if is_address and call not in ("accept", "accept4") else 0,
    )


def _arguments(text: bytes) -> tuple[str, ...]:
    return tuple(text_of(word) for word in text.removesuffix(b"\0").split(b"\0"))


def folder_of(names: bytes) -> str:
    """Return a folder's path from its names, innermost first; `CUT` stands for those above that found no room."""
    found = [text_of(each) for each in reversed(names.split(b"\0")[:-1]) if each]
    is_whole = names == b"\0" or names.endswith(b"\0\0")
    return ("/" if is_whole else f"{CUT}/") + "/".join(found)


def _is_without_folder(path: str, *, call: str, kind: int) -> bool:
    """Tell whether a path begins in a folder for which there was no room beside it."""
    begins = kind == Kind.EXEC or (call in SHAPES and SHAPES[call].path and SHAPES[call].folder)
    return bool(begins) and path != "" and not path.startswith("/")


def _path_of(path: str, folder: str) -> str:
    """Return a path from the root.  `..` stays: what is above a link is not above it by name."""
    if path.startswith("/"):
        return path
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return folder if path in ("", ".") else os.path.join(folder, path)


def _other_path(raw: Raw, call: str, *, folder: str) -> str:
    if raw.kind == Kind.EXEC:
        return text_of(raw.folder)  # of a script: its interpreter
    path = text_of(raw.other)
    if not path or (call == "mount" and not _is_source_a_path(raw.arguments[_MOUNT_FLAGS_AT])):
        return path
    if SHAPES[call].other_folder == 0:  # it begins in none: what a link says, the old root's place
        return path
    is_in_same = folder and not raw.other_folder and _is_in_same(raw, SHAPES[call])
    # If it is not, and none was told, there was no room for it.
    return _path_of(path, folder if is_in_same else folder_of(raw.other_folder))


def _is_source_a_path(flags: int) -> bool:
    """Tell whether mount(2) takes its source for a path.  Source: fs/namespace.c, `path_mount`."""
    return not flags & _MS_REMOUNT and bool(flags & (_MS_BIND | _MS_MOVE))


def _is_in_same(raw: Raw, shape: Shape) -> bool:
    """Tell whether the second path of a call begins in the same folder as the first."""
    return _folder(raw, shape.folder) == _folder(raw, shape.other_folder)


def _folder(raw: Raw, place: int) -> int:
    return (_AT_FDCWD if place == WORKING_FOLDER else raw.arguments[place - 1]) & _LOW


def is_writing(event: Event, *, is_tried: bool = False) -> bool:
    """Tell whether an event of kind `file` has changed a file or a folder, or would have if it had not failed."""
    if event.kind is not EventKind.FILE or event.call in EXECUTING or (event.error and not is_tried):
        return False
    if not event.call.startswith("open"):
        return True
    flags = event.detail.split("|")
    return flags[0] != "O_RDONLY" or "O_CREAT" in flags or "O_TRUNC" in flags


def same_as(record: bytes) -> bytes:
    """Return what two records have in common whose events differ in their time alone.

    Arguments count only where they are put into words: those of most calls are addresses in the program's memory.
    """
    kind, number = NAMED.unpack_from(record, NAMED_AT)
    if kind < Kind.FILE or kind in _WITH_ARGUMENTS:
        return record[ARGUMENTS_AT:]
    return record[_PLACES.get(number, _NO_PLACE)] + record[RESULT_AT:]
