# SPDX-License-Identifier: Apache-2.0
"""Which system calls are events, of which kind, and which of their arguments are paths or addresses.  Pure.

The table is given to the kernel's side (`programs/watch.bpf.c`, the map `shapes`): a call that is not in it is counted,
never told.  Source: the man page of each call, section 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from insula.monitor.layout import SHAPE, SYSCALLS, Kind

WORKING_FOLDER = 7
"""In place of an argument: the folder that the task works in."""


class Form(IntEnum):
    """How a call is told."""

    PLAIN = 0
    ACCEPT = 1
    """With whom the connection comes from: the socket knows."""
    FAILURE = 2
    """Only if it failed: its success has a hook of its own."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Places are counted from 1; 0: it has none."""

    kind: Kind
    path: int = 0
    other_path: int = 0
    address: int = 0
    """A struct sockaddr, whose length is the next argument."""
    form: Form = Form.PLAIN
    folder: int = WORKING_FOLDER
    """A descriptor of the folder that `path` begins in; 0: it is no path, or told as given."""
    other_folder: int = 0
    """The same of `other_path`."""
    flags: int = 0
    """Of open(2)."""
    is_behind: bool = False
    """At the place of `address` or `flags` stands a pointer to a struct that begins with them."""

    def pack(self) -> bytes:
        """Return what the map `shapes` holds."""
        return SHAPE.pack(
            self.kind, self.path, self.other_path, self.address, self.form,
            self.folder if self.path else 0, self.other_folder, self.flags, self.is_behind,
        )  # fmt: skip


_FILE, _NETWORK, _MOUNT = Kind.FILE, Kind.NETWORK, Kind.MOUNT

SHAPES: Mapping[str, Shape] = {
    "open": Shape(_FILE, 1, flags=2),
    "openat": Shape(_FILE, 2, folder=1, flags=3),
    "openat2": Shape(_FILE, 2, folder=1, flags=3, is_behind=True),
    "creat": Shape(_FILE, 1),
    "unlink": Shape(_FILE, 1),
    "unlinkat": Shape(_FILE, 2, folder=1),
    "rmdir": Shape(_FILE, 1),
    "rename": Shape(_FILE, 1, 2, other_folder=WORKING_FOLDER),
    "renameat": Shape(_FILE, 2, 4, folder=1, other_folder=3),
    "renameat2": Shape(_FILE, 2, 4, folder=1, other_folder=3),
    "mkdir": Shape(_FILE, 1),
    "mkdirat": Shape(_FILE, 2, folder=1),
    "link": Shape(_FILE, 1, 2, other_folder=WORKING_FOLDER),
    "linkat": Shape(_FILE, 2, 4, folder=1, other_folder=3),
    "symlink": Shape(_FILE, 2, 1),
    "symlinkat": Shape(_FILE, 3, 1, folder=2),
    "mknod": Shape(_FILE, 1),
    "mknodat": Shape(_FILE, 2, folder=1),
    "truncate": Shape(_FILE, 1),
    "chmod": Shape(_FILE, 1),
    "fchmodat": Shape(_FILE, 2, folder=1),
    "fchmodat2": Shape(_FILE, 2, folder=1),
    "chown": Shape(_FILE, 1),
    "lchown": Shape(_FILE, 1),
    "fchownat": Shape(_FILE, 2, folder=1),
    "utimensat": Shape(_FILE, 2, folder=1),
    "setxattr": Shape(_FILE, 1),
    "lsetxattr": Shape(_FILE, 1),
    "removexattr": Shape(_FILE, 1),
    "lremovexattr": Shape(_FILE, 1),
    "execve": Shape(_FILE, 1, form=Form.FAILURE),
    "execveat": Shape(_FILE, 2, folder=1, form=Form.FAILURE),
    "connect": Shape(_NETWORK, address=2),
    "bind": Shape(_NETWORK, address=2),
    "sendto": Shape(_NETWORK, address=5),
    "sendmsg": Shape(_NETWORK, address=2, is_behind=True),
    "sendmmsg": Shape(_NETWORK, address=2, is_behind=True),
    "accept": Shape(_NETWORK, form=Form.ACCEPT),
    "accept4": Shape(_NETWORK, form=Form.ACCEPT),
    "mount": Shape(_MOUNT, 2, 1, other_folder=WORKING_FOLDER),
    "umount2": Shape(_MOUNT, 1),
    "move_mount": Shape(_MOUNT, 4, 2, folder=3, other_folder=1),
    "open_tree": Shape(_MOUNT, 2, folder=1),
    "mount_setattr": Shape(_MOUNT, 2, folder=1),
    "fsopen": Shape(_MOUNT, 1, folder=0),
    # When these are told the task has another root already.
    "pivot_root": Shape(_MOUNT, 1, 2, folder=0),
    "chroot": Shape(_MOUNT, 1, folder=0),
    **dict.fromkeys(
        "setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset unshare setns".split(),
        Shape(Kind.IDENTITY),
    ),
    **dict.fromkeys(
        "ptrace process_vm_readv process_vm_writev pidfd_getfd process_madvise bpf perf_event_open userfaultfd io_uring_setup add_key keyctl"
        " request_key init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff"
        " settimeofday clock_settime syslog iopl ioperm open_by_handle_at acct quotactl".split(),
        Shape(Kind.KERNEL),
    ),
}


OUTGOING = frozenset({"connect", "sendto", "sendmsg", "sendmmsg"})
"""Calls whose address is that of somebody else who is spoken to."""


def kind_of(call: str) -> int:
    """Return the kind that a call is told as, 0 for one that is only counted."""
    return SHAPES[call].kind if call in SHAPES else 0


def by_number(numbers: Mapping[str, int]) -> dict[int, bytes]:
    """Return the map's content for a processor's numbers; calls that it does not have are left out."""
    return {
        numbers[name]: shape.pack()
        for name, shape in SHAPES.items()
        if name in numbers and numbers[name] < SYSCALLS
    }
