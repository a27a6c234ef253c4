# SPDX-License-Identifier: Apache-2.0
"""Spare a dump CRIU's two walks through the connection tracking table of the whole host (20 ms).

CRIU asks for a network namespace's connections and expectations by a socket of NETLINK_NETFILTER, and the kernel looks for
them in one table for all namespaces.  No option of CRIU leaves that out.  Where the namespace has none, CRIU is told so by us.

When CRIU begins with the images we stop it by ptrace for a moment, and put it under a seccomp filter by which `socket(AF_NETLINK,
…, NETLINK_NETFILTER)` waits for us; it gets a socket in which the answer lies already: "that was all".

Not earlier: the kernel lets nobody suspend or read the seccomp filters of processes who has one itself, and CRIU does that until
it begins with the images.  Where anything of it fails or comes too late, or the namespace has connections (it has rules of its
own), CRIU asks the kernel.

Sources: CRIU's `dump_nf_ct` in `criu/net.c`, `criu/libnetlink.c`; seccomp(2); `net/netfilter/nf_conntrack_netlink.c`.
"""

import contextlib
import functools
import logging
import mmap
import os
import re
import select
import socket
import struct
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import ClassVar, Self

from insula.kernel import ptrace, seccomp
from insula.kernel.inotify import Inotify
from insula.kernel.readable import wait_readable

LOG = logging.getLogger(__name__)

_AF_NETLINK, _NETLINK_NETFILTER = 16, 12
_DONE = struct.pack("=IHHIIi", 20, 3, 2, 24680, 0, 0)
"""struct nlmsghdr with NLMSG_DONE, NLM_F_MULTI and CRIU's sequence number (`criu/include/libnetlink.h`); no error."""
_DEADLINE_SECONDS = 0.2
_FIRST_IMAGES = (b"seccomp.img", b"files.img", b"ids-")
"""What CRIU begins with when it has done with all filters; a container without filters has no `seccomp.img`."""
_NO_DESCRIPTOR = (1 << 64) - 1


class SparedWalk:
    """The answers for one dump.  Use as a context manager around CRIU."""

    _distrusted: ClassVar[bool] = False

    def __init__(self) -> None:
        self._over = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None
        self.answered = 0
        """Questions that the kernel was spared."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.eventfd_write(self._over, 1)
        if self._thread is not None:
            self._thread.join()
        os.close(self._over)

    def begin(self, criu: int, *, first: int, images: int) -> None:
        """Have a CRIU that waits at `network-lock` ask us.

        first: pid of the container's first process, whose network namespace is dumped.  images: descriptor of the folder.
        """
        if SparedWalk._distrusted or has_connections(first):
            return
        with _walked_if_refused(), contextlib.ExitStack() as undo:
            folder = undo.enter_context(contextlib.closing(Inotify()))
            folder.add(images)
            undo.pop_all()
            self._thread = threading.Thread(
                target=self._run, args=(criu, folder), name=f"conntrack-{criu}", daemon=True
            )
            self._thread.start()

    def _run(self, criu: int, folder: Inotify) -> None:
        with _walked_if_refused(), contextlib.ExitStack() as held:
            held.enter_context(contextlib.closing(folder))
            if self._dumps_processes(folder):
                put = functools.partial(_put_under_filter, held=held)
                self._answer(ptrace.inside(criu, put, deadline_seconds=_DEADLINE_SECONDS), held)

    def _dumps_processes(self, folder: Inotify) -> bool:
        """Wait until CRIU begins with the images.  Returns: False if the dump has ended before."""
        while self._over not in wait_readable(folder.fileno(), self._over):
            if any(each.name.startswith(_FIRST_IMAGES) for each in folder.drain()):
                return True
        return False

    def _answer(self, listener: int, held: contextlib.ExitStack) -> None:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(self._over, select.POLLIN)
        # Without POLLIN nobody is left whose call could wait (POLLHUP): to ask for the next one might never end.
        while (events := dict(poll.poll())).keys() == {listener} and events[listener] & select.POLLIN:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            held.callback(ours.close)
            with theirs, contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
                ours.send(_DONE)
                seccomp.answer_descriptor(listener, theirs.fileno())
                self.answered += 1

    @staticmethod
    def blame(error: Exception) -> None:
        """Hear that a dump failed: if the answers may be the reason, the kernel is asked as long as insulad runs."""
        if re.search("nl report|request message|rtnl sock", str(error)):
            SparedWalk._distrusted = True
            LOG.warning("CRIU did not take our answers", extra={"fields": {"reason": str(error)}})


@contextlib.contextmanager
def _walked_if_refused() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        LOG.warning("CRIU walks through all connections", extra={"fields": {"reason": str(error)}})


def _put_under_filter(inside: ptrace.Inside, *, held: contextlib.ExitStack) -> int:
    """Returns: the listener, which is closed with `held`, also if CRIU dies before it is let go."""
    program = seccomp.notify_of(seccomp.Call("socket", ((0, _AF_NETLINK), (2, _NETLINK_NETFILTER))))
    protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    place = inside.call("mmap", 0, mmap.PAGESIZE, protection, flags, _NO_DESCRIPTOR, 0)
    argument = place + len(program)
    inside.write(place, program + seccomp.fprog(program, place))
    mode, listen = seccomp.SECCOMP_SET_MODE_FILTER, seccomp.SECCOMP_FILTER_FLAG_NEW_LISTENER
    number = inside.call("seccomp", mode, listen, argument)
    listener = inside.take(number)
    held.callback(os.close, listener)
    inside.call("close", number)
    inside.call("munmap", place, mmap.PAGESIZE)
    return listener


def has_connections(pid: int) -> bool:
    """Tell whether the network namespace of a process tracks connections; True if the kernel does not say."""
    try:
        with open(f"/proc/{pid}/net/stat/nf_conntrack", encoding="ascii") as file:
            lines = file.read().splitlines()
        return int(lines[1].split()[0], 16) > 0
    except (OSError, ValueError, IndexError):
        return True
