# SPDX-License-Identifier: Apache-2.0
"""Numbers of the kernel into words: an event as a person reads it.  Pure.

Sources: the man pages open(2), ip(7), ipv6(7), unix(7), wait(2), signal(7), capabilities(7).
"""

import errno
import ipaddress
import os
import signal
import struct
from collections.abc import Callable, Mapping

from insula.kernel import caps
from insula.model.monitor import Event, EventKind
from insula.monitor.layout import Kind, Raw

_KINDS = {kind: EventKind(kind.name.lower()) for kind in Kind}
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_FAMILY = struct.Struct("=H")
_PORT = struct.Struct(">H")
_ACCESS = {os.O_RDONLY: "O_RDONLY", os.O_WRONLY: "O_WRONLY", os.O_RDWR: "O_RDWR"}
_FLAGS = tuple(
    (getattr(os, name), name)
    for name in (
        "O_CREAT", "O_EXCL", "O_TRUNC", "O_APPEND", "O_NONBLOCK", "O_DIRECTORY", "O_NOFOLLOW", "O_TMPFILE", "O_PATH",
    )
)  # fmt: skip
_FLAGS_AT = {"open": 1, "openat": 2, "openat2": 2}
"""Place of the flags among the arguments, from 0."""
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}
_LOW = 0xFFFFFFFF
"""Of a descriptor: the kernel takes an int."""


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


def signal_name(number: int) -> str:
    """Return `SIGTERM` for 15, `SIGRTMIN+3` and the like for real-time signals."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}" if number > signal.SIGRTMIN else f"signal {number}"


def capability_name(bit: int) -> str:
    """Return `NET_ADMIN` for 12."""
    return caps.NAMES[bit] if bit < len(caps.NAMES) else f"capability {bit}"


def end_of(status: int) -> str:
    """Say how a process ended, from its wait(2) status."""
    if status & 0x7F:
        return f"killed by {signal_name(status & 0x7F)}" + (", core dumped" if status & 0x80 else "")
    return f"exit code {status >> 8 & 0xFF}"


def _flags(raw: Raw, call: str) -> str:
    if call not in _FLAGS_AT:
        return ""
    flags = raw.arguments[_FLAGS_AT[call]]
    return "|".join([_ACCESS.get(flags & 3, "?"), *(name for bit, name in _FLAGS if flags & bit == bit)])


def _detail(raw: Raw, call: str) -> str:
    match raw.kind:
        case Kind.EXIT:
            return end_of(raw.result)
        case Kind.SIGNAL:
            return f"{signal_name(raw.arguments[0])} to {raw.arguments[1]}"
        case Kind.FORK:
            return f"child {raw.arguments[0]}"
        case Kind.CAPABILITY:
            return f"{capability_name(raw.arguments[0])} {'granted' if raw.result == 0 else 'refused'}"
        case Kind.FILE:
            return _flags(raw, call)
        case Kind.NETWORK:
            return _PROTOCOLS.get(raw.protocol, "")
        case _:
            return ""


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
    kind = Kind(raw.kind)
    is_call = kind >= Kind.SECCOMP
    call = calls.get(raw.number, f"syscall {raw.number}") if is_call else ""
    is_address = kind is Kind.NETWORK
    folder = folder_of(raw.folder)
    is_exec = kind is Kind.EXEC
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
        path=text_of(raw.other) if is_exec else "" if is_address else _path_of(text_of(raw.text), folder),
        other_path="" if is_exec else _path_of(text_of(raw.other), folder if _is_in_same(raw, call) else ""),
        address=address_of(raw.text) if is_address else "",
        arguments=tuple(text_of(word) for word in raw.text.removesuffix(b"\0").split(b"\0"))
        if is_exec
        else (),
        detail=_detail(raw, call),
        port=raw.port if is_address and call not in ("accept", "accept4") else 0,
    )


def folder_of(names: bytes) -> str:
    """Return a folder's path from its names, innermost first."""
    found = [text_of(each) for each in names.split(b"\0")[:-1]]
    return "/" + "/".join(reversed(found)) if names else ""


def _path_of(path: str, folder: str) -> str:
    return os.path.join(folder, path) if path and folder else path


def _is_in_same(raw: Raw, call: str) -> bool:
    """Tell whether the second path of a call begins in the same folder as the first; what a link says begins in none."""
    if call.startswith("symlink"):
        return False
    return call in ("rename", "link") or raw.arguments[0] & _LOW == raw.arguments[2] & _LOW


def is_writing(event: Event, *, is_tried: bool = False) -> bool:
    """Tell whether an event of kind `file` has changed a file or a folder, or would have if it had not failed."""
    if event.kind is not EventKind.FILE or (event.error and not is_tried):
        return False
    if not event.call.startswith("open"):
        return True
    flags = event.detail.split("|")
    return flags[0] != "O_RDONLY" or "O_CREAT" in flags or "O_TRUNC" in flags
