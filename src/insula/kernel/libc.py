# SPDX-License-Identifier: Apache-2.0
"""The one door to the C library: prototypes, and nothing else.

Every call raises `OSError` whose `filename` slot is free for callers and whose message begins with the name of the
system call.  Policy (what to mount, whom to map) is out of scope: that stands in the modules beside this one.
Standard library only: `boot` imports this in an interpreter started with `-SI`.

Sources: the man page of each call, section 2; `include/uapi/asm-generic/unistd.h` for numbers from 424 on, which are
the same on every architecture.
"""

import ctypes
import errno
import mmap
import os
import platform
from collections.abc import Callable
from ctypes import c_char_p, c_int, c_long, c_size_t, c_uint, c_ulong, c_void_p

_library = ctypes.CDLL(None, use_errno=True)
_syscall = _library.syscall
_syscall.restype = c_long

#: System calls older than the unified table differ by architecture: name → number.
_OLD_NUMBERS = {
    "x86_64": {
        "rt_sigaction": 13,
        "pivot_root": 155,
        "seccomp": 317,
        "userfaultfd": 323,
        "ptrace": 101,
        "close": 3,
        "keyctl": 250,
        "bpf": 321,
        "mmap": 9,
        "munmap": 11,
        "setgroups": 116,
    },
    "aarch64": {
        "rt_sigaction": 134,
        "pivot_root": 41,
        "seccomp": 277,
        "userfaultfd": 282,
        "ptrace": 117,
        "close": 57,
        "keyctl": 219,
        "bpf": 280,
        "mmap": 222,
        "munmap": 215,
        "setgroups": 159,
    },
}
_UNIFIED_NUMBERS = {
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "quotactl_fd": 443,
}


class MissingSystemCall(OSError):
    """This processor's table of system calls is not known here."""


def number_of(name: str) -> int:
    """Return the number of a system call on this machine's architecture.

    Raises: MissingSystemCall where the architecture is unknown.
    """
    if name in _UNIFIED_NUMBERS:
        return _UNIFIED_NUMBERS[name]
    try:
        return _OLD_NUMBERS[platform.machine()][name]
    except KeyError:
        raise MissingSystemCall(38, f"{name}: not known on {platform.machine()}") from None


def _raise_errno(name: str) -> None:
    code = ctypes.get_errno()
    raise OSError(code, f"{name}: {os.strerror(code)}")


def function(name: str, *argtypes: object) -> Callable[..., int]:
    """Declare a function of the C library that answers -1 and errno on failure.

    Returns: a callable that gives the result, or raises OSError naming the call.
    """
    raw = getattr(_library, name)
    raw.argtypes = list(argtypes)
    raw.restype = c_int

    def call(*arguments: object) -> int:
        result: int = raw(*arguments)
        if result == -1:
            _raise_errno(name)
        return result

    call.__name__ = name
    return call


def system_call(name: str, *argtypes: object) -> Callable[..., int]:
    """Declare a system call that the C library has no wrapper for.  As `function`, by number."""
    number: int | None = None

    def call(*arguments: object) -> int:
        nonlocal number
        if number is None:
            number = number_of(name)
        typed = [kind(value) for kind, value in zip(argtypes, arguments, strict=True)]  # type: ignore[operator]
        result: int = _syscall(c_long(number), *typed)
        if result == -1:
            _raise_errno(name)
        return result

    call.__name__ = name
    return call


#: Of `foreign`: int, unsigned int, pointer, text, nothing.
_KINDS = {"i": c_int, "u": c_uint, "p": c_void_p, "s": c_char_p, "v": None}


def foreign(library: str, name: str, arguments: str, *, answer: str) -> Callable[..., int]:
    """Declare a function of another shared library, which is opened at the first call; kinds as in `_KINDS`.

    One that answers `i` tells a failure by a negative errno, one that answers `p` by NULL and errno.
    Returns: a callable that gives the result, or raises OSError naming the function (ENOSYS: no such library here).
    """
    raw: Callable[..., int | None] | None = None

    def call(*values: object) -> int:
        nonlocal raw
        if raw is None:
            try:
                found = getattr(ctypes.CDLL(library, use_errno=True), name)
            except (OSError, AttributeError) as error:
                raise OSError(errno.ENOSYS, f"{name}: {error}") from None
            found.argtypes = [_KINDS[each] for each in arguments]
            found.restype = _KINDS[answer]
            raw = found
        result = raw(*values)
        code = ctypes.get_errno() if result is None and answer == "p" else max(0, -(result or 0))
        if code:
            raise OSError(code, f"{name}: {os.strerror(code)}")
        return result or 0

    call.__name__ = name
    return call


def address_of(buffer: bytearray | mmap.mmap | bytes) -> int:
    """Return the address of a buffer's first byte.  The caller keeps the buffer alive during the call."""
    if not isinstance(buffer, bytes):
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    pointer = ctypes.cast(ctypes.c_char_p(buffer), c_void_p).value
    if pointer is None:
        raise ValueError("cannot take the address of an empty buffer")
    return pointer


def bytes_at(address: int, size: int) -> bytes:
    """Copy what a foreign function has left at an address.  The caller keeps it alive during the call."""
    return ctypes.string_at(address, size)


mount = function("mount", c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
umount2 = function("umount2", c_char_p, c_int)
setns = function("setns", c_int, c_int)
unshare = function("unshare", c_int)
prctl = function("prctl", c_int, c_ulong, c_ulong, c_ulong, c_ulong)
sethostname = function("sethostname", c_char_p, c_size_t)
setdomainname = function("setdomainname", c_char_p, c_size_t)
capset = function("capset", c_void_p, c_void_p)
capget = function("capget", c_void_p, c_void_p)
setfsuid = function("setfsuid", c_uint)
setfsgid = function("setfsgid", c_uint)
process_vm_readv = function("process_vm_readv", c_int, c_void_p, c_ulong, c_void_p, c_ulong, c_ulong)
fallocate = function("fallocate", c_int, c_int, c_long, c_long)
inotify_init1 = function("inotify_init1", c_int)
inotify_add_watch = function("inotify_add_watch", c_int, c_char_p, c_uint)
inotify_rm_watch = function("inotify_rm_watch", c_int, c_int)

pivot_root = system_call("pivot_root", c_char_p, c_char_p)
rt_sigaction = system_call("rt_sigaction", c_int, c_void_p, c_void_p, c_size_t)
keyctl = system_call("keyctl", c_int, c_size_t, c_size_t, c_size_t, c_size_t)
seccomp = system_call("seccomp", c_uint, c_uint, c_void_p)
pidfd_getfd = system_call("pidfd_getfd", c_int, c_int, c_uint)
#: Of the calling thread only; the library's own setgroups changes all threads.  See setfsuid(2), "VERSIONS".
setfsuid = function("setfsuid", c_uint)
setfsgid = function("setfsgid", c_uint)
setgroups = system_call("setgroups", c_size_t, c_void_p)
open_tree = system_call("open_tree", c_int, c_char_p, c_uint)
move_mount = system_call("move_mount", c_int, c_char_p, c_int, c_char_p, c_uint)
fsopen = system_call("fsopen", c_char_p, c_uint)
fsconfig = system_call("fsconfig", c_int, c_uint, c_char_p, c_char_p, c_int)
fsmount = system_call("fsmount", c_int, c_uint, c_uint)
mount_setattr = system_call("mount_setattr", c_int, c_char_p, c_uint, c_void_p, c_size_t)
openat2 = system_call("openat2", c_int, c_char_p, c_void_p, c_size_t)
clone3 = system_call("clone3", c_void_p, c_size_t)
close_range = system_call("close_range", c_uint, c_uint, c_uint)
pidfd_getfd = system_call("pidfd_getfd", c_int, c_int, c_uint)
bpf = system_call("bpf", c_int, c_void_p, c_uint)
userfaultfd = system_call("userfaultfd", c_int)
quotactl_fd = system_call("quotactl_fd", c_uint, c_uint, c_uint, c_void_p)
ptrace = system_call("ptrace", c_long, c_long, c_void_p, c_void_p)
