# SPDX-License-Identifier: Apache-2.0
"""System calls: by their own numbers, by those of 32-bit programs and of x32, and calls that do not exist."""

import ctypes
import errno
import mmap
import os
import struct

from security.intruder.attempt import DENIED, Broke, address, call, check, each, in_child, must_fail

#: Numbers of x86_64; on other machines these checks say so.
NUMBERS = {
    "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425, "io_uring_enter": 426,
    "io_uring_register": 427, "kexec_load": 246, "kexec_file_load": 320, "init_module": 175, "finit_module": 313,
    "delete_module": 176, "swapon": 167, "swapoff": 168, "reboot": 169, "settimeofday": 164, "clock_settime": 227,
    "acct": 163, "quotactl": 179, "quotactl_fd": 443, "syslog": 103, "lookup_dcookie": 212, "iopl": 172, "ioperm": 173,
    "setns": 308, "kcmp": 312, "pidfd_getfd": 438, "move_pages": 279, "migrate_pages": 256, "nfsservctl": 180,
    "uselib": 134, "vhangup": 153, "sethostname": 170, "setdomainname": 171, "fanotify_init": 300, "vserver": 236,
}  # fmt: skip
MOUNT_CALLS = {
    "fsopen": 430, "fsmount": 432, "fsconfig": 431, "fspick": 433, "open_tree": 428, "move_mount": 429,
    "mount_setattr": 442, "pivot_root": 155, "umount2": 166,
}  # fmt: skip
#: The same doors by the table of 32-bit programs.
NUMBERS_32 = {
    "bpf": 357, "perf_event_open": 336, "userfaultfd": 374, "io_uring_setup": 425, "kexec_load": 283, "init_module": 128,
    "finit_module": 350, "swapon": 87, "reboot": 88, "settimeofday": 79, "clock_adjtime": 343, "acct": 51, "quotactl": 131,
    "syslog": 103, "lookup_dcookie": 253, "iopl": 110, "vm86": 166, "vm86old": 113, "modify_ldt": 123, "personality": 136,
    "mount": 21, "umount2": 52, "unshare": 310, "setns": 346, "ptrace": 26, "keyctl": 288, "add_key": 286,
    "request_key": 287, "open_by_handle_at": 342, "socketcall": 102, "clone": 120,
}  # fmt: skip


def _need_x86_64() -> None:
    if os.uname().machine != "x86_64":
        raise OSError(errno.ENOSYS, "the numbers are those of x86_64")


def _refused_call(number: int) -> str:
    _need_x86_64()
    return must_fail(lambda: call(number), *DENIED)


each("A16", NUMBERS, _refused_call)
each("A12", MOUNT_CALLS, _refused_call)


@check("A16-clock_adjtime")
def _clock_adjtime() -> str:
    # struct timex begins with modes; ADJ_OFFSET | ADJ_SETOFFSET would move everybody's clock.
    changes = bytearray(struct.pack("=I", 0x0101) + bytes(252))
    return must_fail(lambda: call(305, 0, address(changes)), *DENIED)


@check("A16-personality")
def _personality() -> str:
    return must_fail(lambda: call(135, 0x0040000), *DENIED)  # ADDR_NO_RANDOMIZE


@check("A16-userfaultfd-device")
def _userfaultfd_device() -> str:
    return must_fail(lambda: os.open("/dev/userfaultfd", os.O_RDWR))


@check("A16-filter-stays")
def _filter_stays() -> str:
    # A second filter that allows everything must not open what the first has closed.
    program = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
    argument = struct.pack("=H6xQ", 1, address(program))

    def act() -> str:
        call(317, 1, 0, address(argument))
        return must_fail(lambda: call(NUMBERS["bpf"]), *DENIED)

    return in_child(act)


def _call_32(number: int) -> int:
    # push rbx; mov eax, edi; xor ebx..edi; int 0x80; pop rbx; ret
    code = b"\x53\x89\xf8\x31\xdb\x31\xc9\x31\xd2\x31\xf6\x31\xff\xcd\x80\x5b\xc3"
    area = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    area.write(code)
    place = ctypes.addressof(ctypes.c_char.from_buffer(area))
    return int(ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint)(place)(number))


def _refused_32(number: int) -> str:
    def act() -> str:
        result = _call_32(number)
        if -result not in DENIED:
            raise Broke(f"int 0x80 answered {result}")
        return errno.errorcode[-result]

    return in_child(act)


def _refused_x32(number: int) -> str:
    return must_fail(lambda: call(0x40000000 | number), errno.ENOSYS)


each("A17-int80", NUMBERS_32, _refused_32)
each(
    "A17-x32",
    {name: NUMBERS[name] for name in ("bpf", "perf_event_open", "kexec_load", "init_module")},
    _refused_x32,
)
each("A17-x32", {"execve": 520, "ptrace": 521, "kexec_load-own": 528, "process_vm_writev": 540}, _refused_x32)


def _unknown(first: int) -> str:
    for number in range(first, first + 100):
        must_fail(lambda number=number: call(number), errno.ENOSYS)
    return "ENOSYS"


each("A18", {f"{first}-{first + 99}": first for first in range(500, 1000, 100)}, _unknown)
