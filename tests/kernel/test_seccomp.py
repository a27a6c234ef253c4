# SPDX-License-Identifier: Apache-2.0
"""The seccomp filter, asked by real system calls in a child."""

import errno
import os
import socket
from collections.abc import Callable

import pytest

import forked
from insula.kernel import caps, libc, seccomp

_PR_SET_NO_NEW_PRIVS = 38


def _errno_of(call: Callable[[], object]) -> str:
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


CALLS: list[tuple[str, Callable[[], object], str]] = [
    ("getpid", os.getpid, "ok"),
    ("open", lambda: os.close(os.open("/", os.O_RDONLY)), "ok"),
    ("thread clone by fork", lambda: os.waitpid(os.fork() or os._exit(0), 0), "ok"),  # type: ignore[func-returns-value]
    ("mount", lambda: libc.mount(None, b"/", None, 1 << 18, None), "EPERM"),
    ("unshare", lambda: libc.unshare(0x10000000), "EPERM"),
    ("sethostname", lambda: libc.sethostname(b"x", 1), "EPERM"),
    ("setns", lambda: libc.setns(0, 0), "EPERM"),
    ("umount2", lambda: libc.umount2(b"/nowhere", 0), "EPERM"),
    ("open_tree", lambda: libc.open_tree(-100, b"/", 0), "EPERM"),
    ("pidfd_getfd", lambda: libc.pidfd_getfd(0, 0, 0), "EPERM"),
    ("clone3", lambda: libc.clone3(0, 0), "ENOSYS"),
    ("socket AF_ALG", lambda: socket.socket(38, socket.SOCK_SEQPACKET, 0), "EAFNOSUPPORT"),
    ("socket AF_VSOCK", lambda: socket.socket(40, socket.SOCK_STREAM, 0), "EAFNOSUPPORT"),
    ("socket AF_XDP", lambda: socket.socket(44, socket.SOCK_RAW, 0), "EAFNOSUPPORT"),
    ("socketpair AF_TIPC", lambda: socket.socketpair(30, socket.SOCK_STREAM), "EAFNOSUPPORT"),
    ("socketpair AF_UNIX", lambda: [each.close() for each in socket.socketpair()], "ok"),
    ("socket AF_INET", lambda: socket.socket(socket.AF_INET).close(), "ok"),
]


@pytest.mark.parametrize(("name", "call", "wanted"), CALLS, ids=[each[0] for each in CALLS])
def test_the_kernel_does_what_the_policy_says(name: str, call: Callable[[], object], wanted: str) -> None:
    program = seccomp.build_filter(caps.DEFAULT)

    def child() -> str:
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        seccomp.install(program)
        return _errno_of(call)

    assert forked.run(child) == wanted, name


def test_a_malformed_program_is_refused() -> None:
    with pytest.raises(OSError, match="seccomp: Invalid argument"):
        seccomp.install(b"\0" * 8)
