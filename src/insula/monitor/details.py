# SPDX-License-Identifier: Apache-2.0
"""What a call was asked to do, in words, out of its arguments.  Pure.

Sources: the man pages open(2), setresuid(2), unshare(2), setns(2), ptrace(2), bpf(2), wait(2), signal(7), capabilities(7);
`include/uapi/linux/bpf.h`, `ptrace.h`, `sched.h`.
"""

import os
import signal
from collections.abc import Callable, Mapping
from functools import lru_cache

from insula.kernel import caps, namespace
from insula.monitor.layout import Kind, Raw

_ACCESS = {os.O_RDONLY: "O_RDONLY", os.O_WRONLY: "O_WRONLY", os.O_RDWR: "O_RDWR"}
_FLAGS = tuple(
    (getattr(os, name), name)
    for name in (
        "O_CREAT", "O_EXCL", "O_TRUNC", "O_APPEND", "O_NONBLOCK", "O_DIRECTORY", "O_NOFOLLOW", "O_TMPFILE", "O_PATH",
    )
)  # fmt: skip
FLAGS_AT = {"open": 1, "openat": 2, "openat2": 2}
"""Place of the flags among the arguments, from 0."""
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}
_IDS = {
    "setuid": 1, "setgid": 1, "setreuid": 2, "setregid": 2, "setresuid": 3, "setresgid": 3, "setfsuid": 1, "setfsgid": 1,
}  # fmt: skip
"""How many ids a call is given."""
_NAMESPACES = {
    value: name for name, value in vars(namespace).items() if name.startswith("CLONE_NEW") and isinstance(value, int)
}  # fmt: skip
_NAMESPACES_AT = {"unshare": 0, "setns": 1}
_PTRACE = {
    0: "PTRACE_TRACEME", 1: "PTRACE_PEEKTEXT", 2: "PTRACE_PEEKDATA", 3: "PTRACE_PEEKUSER", 4: "PTRACE_POKETEXT",
    5: "PTRACE_POKEDATA", 6: "PTRACE_POKEUSER", 7: "PTRACE_CONT", 8: "PTRACE_KILL", 9: "PTRACE_SINGLESTEP",
    12: "PTRACE_GETREGS", 13: "PTRACE_SETREGS", 16: "PTRACE_ATTACH", 17: "PTRACE_DETACH", 24: "PTRACE_SYSCALL",
    0x4200: "PTRACE_SETOPTIONS", 0x4206: "PTRACE_SEIZE", 0x4207: "PTRACE_INTERRUPT",
}  # fmt: skip
_BPF = (
    "MAP_CREATE", "MAP_LOOKUP_ELEM", "MAP_UPDATE_ELEM", "MAP_DELETE_ELEM", "MAP_GET_NEXT_KEY", "PROG_LOAD", "OBJ_PIN",
    "OBJ_GET", "PROG_ATTACH", "PROG_DETACH",
)  # fmt: skip
_PID_FIRST = frozenset({"process_vm_readv", "process_vm_writev"})


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


@lru_cache(maxsize=256)
def open_flags(flags: int) -> str:
    """Return the flags of open(2) in words, how it may be used first."""
    return "|".join([_ACCESS.get(flags & 3, "?"), *(name for bit, name in _FLAGS if flags & bit == bit)])


def _ids(raw: Raw, call: str) -> str:
    """Of setuid(2) and its like the ids, -1: left as it is; of unshare(2) and setns(2) the namespaces."""
    if call in _NAMESPACES_AT:
        flags = raw.arguments[_NAMESPACES_AT[call]]
        return "|".join(name for bit, name in sorted(_NAMESPACES.items()) if flags & bit)
    ids = (each & 0xFFFFFFFF for each in raw.arguments[: _IDS.get(call, 0)])
    return " ".join("-1" if each == 0xFFFFFFFF else str(each) for each in ids)


def _kernel(raw: Raw, call: str) -> str:
    first, second = raw.arguments[0], raw.arguments[1] & 0xFFFFFFFF
    if call == "ptrace":
        return _PTRACE.get(first, f"request {first}") + (f" of {second}" if second else "")
    if call == "bpf":
        return "BPF_" + _BPF[first] if first < len(_BPF) else f"command {first}"
    return f"of {first & 0xFFFFFFFF}" if call in _PID_FIRST else ""


_WORDS: Mapping[int, Callable[[Raw, str], str]] = {
    Kind.EXIT: lambda raw, _: end_of(raw.result),
    Kind.SIGNAL: lambda raw, _: f"{signal_name(raw.arguments[0])} to {raw.arguments[1]}",
    Kind.FORK: lambda raw, _: f"child {raw.arguments[0]}",
    Kind.CAPABILITY: lambda raw, _: (
        f"{capability_name(raw.arguments[0])} {'granted' if raw.result == 0 else 'refused'}"
    ),
    Kind.FILE: lambda raw, call: open_flags(raw.arguments[FLAGS_AT[call]]) if call in FLAGS_AT else "",
    Kind.NETWORK: lambda raw, _: _PROTOCOLS.get(raw.protocol, ""),
    Kind.IDENTITY: _ids,
    Kind.KERNEL: _kernel,
}


def detail_of(raw: Raw, call: str) -> str:
    """Return what an event's arguments say that its other fields do not; empty for most."""
    words = _WORDS.get(raw.kind)
    return words(raw, call) if words is not None else ""
