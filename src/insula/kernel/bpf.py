# SPDX-License-Identifier: Apache-2.0
"""The device filter of a cgroup v2: a small eBPF program, assembled here, loaded and attached.

It does what the v1 controller `devices` does; on v2 there is no file for it.  The program stays attached until the
cgroup goes, without a process that holds it.  Out of scope: which devices are harmless (`cgroup/values.py`).

Sources: bpf(2); `Documentation/bpf/standardization/instruction-set.rst`; `include/uapi/linux/bpf.h` (bpf_cgroup_dev_ctx,
union bpf_attr); BPF_PROG_TYPE_CGROUP_DEVICE since Linux 4.15.
"""

import os
import struct
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from insula.kernel import libc

BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6
BPF_DEVCG_ACC_MKNOD = 1
BPF_DEVCG_ACC_READ = 2
BPF_DEVCG_ACC_WRITE = 4
BPF_DEVCG_DEV_BLOCK = 1
BPF_DEVCG_DEV_CHAR = 2

_KINDS = {"b": BPF_DEVCG_DEV_BLOCK, "c": BPF_DEVCG_DEV_CHAR}
_ACCESSES = {"m": BPF_DEVCG_ACC_MKNOD, "r": BPF_DEVCG_ACC_READ, "w": BPF_DEVCG_ACC_WRITE}
_ALL_ACCESS = 7

_LOAD_WORD = 0x61
_MOVE_REGISTER = 0xBF
_MOVE = 0xB7
_AND = 0x57
_SHIFT_RIGHT = 0x77
_JUMP_UNLESS_EQUAL = 0x55
_EXIT = 0x95

#: Registers: the answer; what the kernel gives us; what we keep.
_R0, _CONTEXT, _KIND, _ACCESS, _MAJOR, _MINOR, _BEYOND = range(7)


class Instruction(NamedTuple):
    """struct bpf_insn { __u8 code; __u8 dst_reg:4; __u8 src_reg:4; __s16 off; __s32 imm; }"""

    code: int
    target: int = 0
    source: int = 0
    offset: int = 0
    value: int = 0

    def packed(self) -> bytes:
        return struct.pack("=BBhi", self.code, self.target | self.source << 4, self.offset, self.value)


class Allowed(Protocol):
    """A device that a filter lets through: `cgroup/values.Device`."""

    @property
    def kind(self) -> str: ...
    @property
    def major(self) -> int: ...
    @property
    def minor(self) -> int | None: ...
    @property
    def access(self) -> str: ...


def device_filter(allowed: Iterable[Allowed]) -> bytes:
    """Assemble a filter that allows these devices, and mknod of every device.

    A node alone gives nothing without the right to open it.
    """
    program = [
        # struct bpf_cgroup_dev_ctx { __u32 access_type; /* access << 16 | type */ __u32 major; __u32 minor; }
        Instruction(_LOAD_WORD, _KIND, _CONTEXT, 0),
        Instruction(_LOAD_WORD, _MAJOR, _CONTEXT, 4),
        Instruction(_LOAD_WORD, _MINOR, _CONTEXT, 8),
        Instruction(_MOVE_REGISTER, _ACCESS, _KIND),
        Instruction(_SHIFT_RIGHT, _ACCESS, value=16),
        Instruction(_AND, _KIND, value=0xFFFF),
        *_only_if((_ACCESS, BPF_DEVCG_ACC_MKNOD)),
    ]
    for each in allowed:
        tests = [(_KIND, _KINDS[each.kind]), (_MAJOR, each.major)]
        if each.minor is not None:
            tests.append((_MINOR, each.minor))
        # What is asked for beyond what is allowed has to be nothing.
        beyond = _ALL_ACCESS & ~sum(_ACCESSES[letter] for letter in each.access)
        asked = [Instruction(_MOVE_REGISTER, _BEYOND, _ACCESS), Instruction(_AND, _BEYOND, value=beyond)]
        program += [*asked, *_only_if((_BEYOND, 0), *tests)]
    program += [Instruction(_MOVE, _R0, value=0), Instruction(_EXIT)]
    return b"".join(each.packed() for each in program)


def _only_if(*tests: tuple[int, int]) -> list[Instruction]:
    """Return what answers yes if all these registers have these values, and else goes on behind."""
    block = [Instruction(_MOVE, _R0, value=1), Instruction(_EXIT)]
    for register, value in reversed(tests):
        block.insert(0, Instruction(_JUMP_UNLESS_EQUAL, register, offset=len(block), value=value))
    return block


def load_device_filter(program: bytes) -> int:
    """Load a filter.  Returns: its descriptor, the caller's.  Raises: OSError naming bpf: EPERM, EINVAL, EACCES."""
    licence = b"Apache-2.0\0"
    # prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version, prog_flags
    attributes = struct.pack(
        "=IIQQIIQII",
        BPF_PROG_TYPE_CGROUP_DEVICE,
        len(program) // 8,
        libc.address_of(program),
        libc.address_of(licence),
        0,
        0,
        0,
        0,
        0,
    )
    return libc.bpf(BPF_PROG_LOAD, libc.address_of(attributes), len(attributes))


def attach_to_cgroup(directory: str, program_fd: int) -> None:
    """Attach a device filter to a cgroup v2, in place of an earlier one of ours; those above stay in force, too.

    Raises: OSError naming bpf.
    """
    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # target_fd, attach_bpf_fd, attach_type, attach_flags: 0, so that no group below may replace it
        attributes = struct.pack("=IIII", group, program_fd, BPF_CGROUP_DEVICE, 0)
        libc.bpf(BPF_PROG_ATTACH, libc.address_of(attributes), len(attributes))
    finally:
        os.close(group)


def limit_devices(directory: str, allowed: Iterable[Allowed]) -> None:
    """Forbid every device but those allowed to a cgroup v2.  Raises: OSError naming bpf."""
    program = load_device_filter(device_filter(allowed))
    try:
        attach_to_cgroup(directory, program)
    finally:
        os.close(program)
