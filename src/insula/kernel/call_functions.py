# SPDX-License-Identifier: Apache-2.0
"""The kernel's own functions behind system calls, and whether programs can be hung at them (fexit).

Not every kernel lets that be: it takes trampolines (CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS), the result of a function
whatever arguments it has (Linux 5.17), and nobody who forbids it.  So it is tried.  Out of scope: what the programs do
(`monitor/programs/calls.bpf.c`), which calls they are for.

Sources: `include/uapi/linux/btf.h`; `include/uapi/linux/bpf.h` (union bpf_attr); `arch/x86/include/asm/syscall_wrapper.h`;
btf.h of libbpf 1.1.
"""

import errno
import os
import struct
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from insula.kernel import libc
from insula.kernel.bpf import BPF_PROG_LOAD

BPF_TRACE_FEXIT = 25
_BPF_RAW_TRACEPOINT_OPEN = 17
_BPF_PROG_TYPE_TRACING = 26
_BTF_KIND_FUNC = 12
_TRIED_AT = "chroot"
"""Whose function a program is hung at to see whether that can be: a call that is seldom made."""

_PREFIXES = {"x86_64": "__x64_sys_", "aarch64": "__arm64_sys_"}
_OTHERWISE_NAMED = {"umount2": "umount"}
_SYMBOLS = Path("/proc/kallsyms")
#: *(r10 - 8) = 0; r2 = r10 - 8; call bpf_get_func_ret (184); r0 = 0; exit.  Linux before 6.3 has the place written first.
#: struct bpf_insn { __u8 code, registers; __s16 off; __s32 imm; }
_ASK_RESULT = b"".join(
    struct.pack("=BBhi", *instruction)
    for instruction in (
        (0x7A, 10, -8, 0),
        (0xBF, 0xA2, 0, 0),
        (0x07, 2, 0, -8),
        (0x85, 0, 0, 184),
        (0xB7, 0, 0, 0),
        (0x95, 0, 0, 0),
    )
)
#: prog_type, insn_cnt, insns, license; log_…, kern_version, prog_flags, prog_name, prog_ifindex; expected_attach_type;
#: prog_btf_fd, func_info…, line_info…; attach_btf_id.
_LOADED = struct.Struct("=IIQQ 44x I 36x I")
#: { __u64 name; __u32 prog_fd; }
_HUNG = struct.Struct("=QI")
#: struct btf_type { __u32 name_off, info, type; }
_TYPE = struct.Struct("=III")

_load_types = libc.foreign("libbpf.so.1", "btf__load_vmlinux_btf", "", answer="p")
_free_types = libc.foreign("libbpf.so.1", "btf__free", "p", answer="v")
_find_type = libc.foreign("libbpf.so.1", "btf__find_by_name_kind", "psu", answer="i")
_type_by_id = libc.foreign("libbpf.so.1", "btf__type_by_id", "pu", answer="p")


class Function(NamedTuple):
    """A function as the kernel's BTF describes it."""

    name: str
    id: int
    prototype: int
    """Id of its type: one that looks the same may be another."""


def find_call_functions(calls: Iterable[str]) -> dict[str, Function]:
    """Return the functions of those system calls that this kernel has.

    Raises: OSError: ENOSYS without libbpf, or on a processor whose names are not known here; ENOENT: it has one that
    its BTF does not describe.
    """
    prefix = _PREFIXES.get(os.uname().machine)
    if prefix is None:
        raise OSError(errno.ENOSYS, f"functions of system calls are not known on {os.uname().machine}")
    names = {call: prefix + _OTHERWISE_NAMED.get(call, call) for call in calls}
    with ExitStack() as undo:
        types = _load_types()
        undo.callback(_free_types, types)
        found = {call: _find(types, name) for call, name in names.items()}
    absent = [names[call] for call, function in found.items() if function is None]
    symbols = _SYMBOLS.read_bytes() if absent else b""
    for name in absent:
        if f" {name}\n".encode() in symbols:
            raise OSError(errno.ENOENT, f"the kernel's BTF does not describe its function {name}")
    return {call: function for call, function in found.items() if function is not None}


def _find(types: int, name: str) -> Function | None:
    try:
        number = _find_type(types, name.encode(), _BTF_KIND_FUNC)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    _, _, prototype = _TYPE.unpack(libc.bytes_at(_type_by_id(types, number), _TYPE.size))
    return Function(name, number, prototype)


def try_hook() -> None:
    """Hang a program that only asks for the result at a function of the kernel, and take it off.

    Raises: OSError naming what was refused: EPERM: somebody forbids trampolines; ENOTSUPP: the kernel is built without;
    EINVAL: it tells no results (before Linux 5.17).
    """
    for function in find_call_functions([_TRIED_AT]).values():
        licence = b"Apache-2.0\0"
        attributes = _LOADED.pack(
            _BPF_PROG_TYPE_TRACING,
            len(_ASK_RESULT) // 8,
            libc.address_of(_ASK_RESULT),
            libc.address_of(licence),
            BPF_TRACE_FEXIT,
            function.id,
        )
        program = libc.bpf(BPF_PROG_LOAD, libc.address_of(attributes), len(attributes))
        try:
            hung = _HUNG.pack(0, program)
            os.close(libc.bpf(_BPF_RAW_TRACEPOINT_OPEN, libc.address_of(hung), len(hung)))
        finally:
            os.close(program)
