# SPDX-License-Identifier: Apache-2.0
"""What a container's processes hold that CRIU cannot carry, found before anything stops, each with its cure.

Each row was tried with CRIU 4.2.1 on Linux 6.18 where the kernel has it (`tests/kernel/test_obstacles.py` tries it again):
refused in the dump, or, as a program in a memfd, lost in the restore.  Not obstacles, and tried too: timerfd, eventfd, signalfd, epoll, pidfd, inotify, packet and raw sockets,
netlink, UDP-Lite, pseudo-terminals, memfd, locks, leases, System V semaphores, messages and memory, AIO contexts, unlinked
files and folders, stopped processes, mounts of tmpfs and proc, nested mount namespaces.
Established connections are CRIU's business; those that are not accepted yet pass by themselves, and are not looked for.

Read from /proc and by sock_diag.  Out of scope: what a dump then says itself (`kernel/criu.py`).
Sources: proc(5), proc_pid_fdinfo(5); CRIU: `files.c` (dump_one_file),
`files-ext.c`, `sockets.c`, `sk-netlink.c`, `namespaces.c`, `pipes.c`, `pidfd.c`, `seize.c` (seize_threads), `proc_parse.c`.
"""

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from insula.kernel import netlink, paths, sock_diag
from insula.model.errors import CheckpointFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """One thing that cannot be carried."""

    resource: str
    """With its article, fit for "it has …"."""
    pid: int
    program: str
    cure: str

    def __str__(self) -> str:
        return f"{self.resource}, held by `{self.program}` ({self.pid})"


class _Rule(NamedTuple):
    resource: str
    cure: str


_CLOSE = "close it, or end that program"

#: What the link of a descriptor says → what it is.  Of anonymous inodes; everything else is judged by its kind.
ANONYMOUS: dict[str, _Rule] = {
    "io_uring": _Rule("an io_uring instance", "start the program with io_uring switched off"),
    "userfaultfd": _Rule("a userfaultfd", _CLOSE),
    "perf_event": _Rule("a performance counter", "end the profiler"),
    "bpf-map": _Rule("a BPF map", _CLOSE),
    "bpf-prog": _Rule("a BPF program", _CLOSE),
    "bpf_link": _Rule("a BPF link", _CLOSE),
    "btf": _Rule("BPF type information", _CLOSE),
    "seccomp notify": _Rule("a seccomp listener", "end the program that supervises others by seccomp"),
    "landlock-ruleset": _Rule("a Landlock ruleset that is not in force yet", "try again"),
    "fscontext": _Rule("a file system that is being made", "try again"),
    "kvm-vm": _Rule("a virtual machine", "end it"),
    "kvm-vcpu": _Rule("a virtual machine", "end it"),
    "vfio-device": _Rule("a device passed through", _CLOSE),
}

_QUEUE = _Rule("a POSIX message queue", "close and unlink it (mq_unlink)")
_SECRET = _Rule("secret memory", "start the program without memfd_secret")
_HUGE = _Rule("huge pages in a memfd", "start the program without them")
_EXTERNAL = _Rule("a unix socket whose other end is outside the container", "close that connection first")
_FROM_MEMORY = _Rule("a program that runs from memory alone (a memfd)", "start it from a file")
_PACKETS = _Rule("a pipe in packet mode (O_DIRECT)", "start the program without it")
_THREAD = _Rule("a pidfd of a single thread (PIDFD_THREAD)", _CLOSE)
_HEADLESS = _Rule("a process whose first thread has ended while others run", "end that program")
_MANY_GROUPS = _Rule("a netlink socket that listens to a group above 32", _CLOSE)
_NO_ADDRESS = _Rule("a netlink socket that listens and has no address", _CLOSE)
_MAPPED = _Rule("mapped memory of a kernel object", _CLOSE)

PIDFD_THREAD = os.O_EXCL
#: What a link begins with → the flag that CRIU cannot carry there.
_MARKED: dict[str, tuple[int, _Rule]] = {"pipe:": (os.O_DIRECT, _PACKETS), "pidfd:": (PIDFD_THREAD, _THREAD)}

#: Character devices that CRIU carries: null, zero, full, random, urandom, tty, console, ptmx; the pseudo-terminals.
_KNOWN_DEVICES = frozenset([(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)])
_PTY_MAJORS = range(136, 144)

#: What a socket says it is (`system.sockprotoname`): those that CRIU carries; the words for some that it does not.
_KNOWN_SOCKETS = frozenset(
    "TCP TCPv6 UDP UDPv6 UDP-Lite UDPLITEv6 UDPLITE RAW RAWv6 PING PINGv6 UNIX UNIX-STREAM PACKET NETLINK".split()
)
_STRANGE_SOCKETS = {
    "MPTCP": _Rule("a multipath TCP socket", "switch MPTCP off in that program"),
    "MPTCPv6": _Rule("a multipath TCP socket", "switch MPTCP off in that program"),
}

_NAMESPACES = ("user", "pid", "net", "ipc", "uts", "cgroup", "time")
"""Of those made inside; nested mount namespaces are carried."""


def refuse_obstacles(name: str, pids: Iterable[int], *, init: int, verb: str) -> None:
    """Refuse to checkpoint or migrate a container that holds what cannot be carried.

    Raises: CheckpointFailed naming everything found, with the cure of the first.
    """
    found = find_obstacles(pids, init=init)
    if found:
        others = "".join(f"; {each}" for each in found[1:4]) + (" …" if len(found) > 4 else "")
        raise CheckpointFailed(f"cannot {verb} `{name}`: it has {found[0]}{others}", hint=found[0].cure)


def find_obstacles(pids: Iterable[int], *, init: int = 0) -> tuple[Obstacle, ...]:
    """Return what of a container's processes cannot be carried.  pids: all of them.  init: its pid 1; 0: the first.

    A process that ends meanwhile is skipped.
    """
    found: dict[tuple[str, int], Obstacle] = {}
    alive = list(pids)
    looker = _Looker(alive, init=init)
    for pid in alive:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for rule in looker.look_at(pid):
                made = Obstacle(resource=rule.resource, pid=pid, program=_program(pid), cure=rule.cure)
                found.setdefault((rule.resource, pid), made)
    return tuple(found.values())


_NEVER_WATCHED = frozenset("proc sys dev usr lib lib32 lib64 libx32 bin sbin boot lost+found".split())


def watched_folders(pids: Iterable[int], *, init: int) -> tuple[str, ...]:
    """Return where CRIU must look for files that are watched by inotify or fanotify: its `irmap_scan_paths`.

    An overlay gives no handles that could be opened again, so CRIU knows a watch by its inode alone and searches.  Left
    alone it looks in /etc and a few others, and refuses the rest; `/` itself it does not take.  Empty if nobody watches.
    """
    if not any(_watches(pid) for pid in pids):
        return ()
    try:
        root = os.open(f"/proc/{init}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return ()
    try:
        names = sorted(set(os.listdir(root)) - _NEVER_WATCHED)
        found = [(name, os.stat(name, dir_fd=root, follow_symlinks=False)) for name in names]
    finally:
        os.close(root)
    return tuple(f"/{name}" for name, status in found if stat.S_ISDIR(status.st_mode))


def _watches(pid: int) -> bool:
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for number in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(f"{folder}/{number}") in ("anon_inode:inotify", "anon_inode:[fanotify]"):
                    return True
    return False


class _Looker:
    """What is read once for all processes that share it."""

    def __init__(self, pids: list[int], *, init: int) -> None:
        self._pids = pids
        self._init = init or next(iter(pids), 0)
        self._mounts: frozenset[str] = frozenset()
        self._peers: dict[str, dict[int, int]] = {}
        self._listening: dict[str, dict[int, sock_diag.NetlinkSocket]] = {}
        self._queues: set[str] = set()
        self._own: dict[str, str] = {}

    def look_at(self, pid: int) -> Iterator[_Rule]:
        if not self._own:
            self._own = _namespaces(self._init)
        here = _namespaces(pid)
        status = _read(f"/proc/{pid}/status")
        if re.search(r"^TracerPid:\t[1-9]", status, re.MULTILINE):
            yield _Rule("a process that a debugger holds", "end strace or gdb on it")
        if re.search(r"^State:\tZ.*^Threads:\t([2-9]|\d\d)", status, re.MULTILINE | re.DOTALL):
            yield _HEADLESS
            return
        for kind in _NAMESPACES:
            if kind in here and here[kind] != self._own.get(kind):
                yield _Rule(f"a nested {kind} namespace", "end the program that made it")
        if os.readlink(f"/proc/{pid}/exe").startswith("/memfd:"):
            yield _FROM_MEMORY
        yield from _of_mappings(_read(f"/proc/{pid}/maps"))
        yield from self._left_queues(pid, namespace=here.get("ipc", ""))
        yield from self._of_files(pid, here=here)

    def _of_files(self, pid: int, *, here: dict[str, str]) -> Iterator[_Rule]:
        folder = f"/proc/{pid}/fd"
        for number in os.listdir(folder):
            try:
                link = os.readlink(f"{folder}/{number}")
            except FileNotFoundError:
                continue
            if link.startswith("anon_inode:"):
                if link == "anon_inode:[pidfd]" and _flags(pid, number) & PIDFD_THREAD:
                    yield _THREAD  # before Linux 6.9; then it has a file system of its own
                elif rule := ANONYMOUS.get(link[11:].strip("[]")):
                    yield rule
            elif link.startswith("socket:["):
                yield from self._of_socket(pid, number, inode=int(link[8:-1]), here=here)
            elif marked := _MARKED.get(link.partition("[")[0]):
                if _flags(pid, number) & marked[0]:
                    yield marked[1]
            elif link.startswith("/memfd:"):
                with contextlib.suppress(OSError):
                    if os.stat(f"{folder}/{number}").st_blksize > 1 << 20:
                        yield _HUGE
            elif link.startswith("/"):
                yield from self._of_path(pid, number, link=link)

    def _of_socket(self, pid: int, number: str, *, inode: int, here: dict[str, str]) -> Iterator[_Rule]:
        try:
            name = os.getxattr(f"/proc/{pid}/fd/{number}", "system.sockprotoname").rstrip(b"\0").decode()
        except OSError:
            return
        if name.startswith("UNIX"):
            if self._is_external(pid, inode, place=here.get("net", "")):
                yield _EXTERNAL
        elif name == "NETLINK":
            yield from self._of_netlink(pid, inode, place=here.get("net", ""))
        elif name not in _KNOWN_SOCKETS:
            strange = _Rule(f"a socket of a kind that CRIU does not know ({name})", _CLOSE)
            yield _STRANGE_SOCKETS.get(name, strange)

    def _of_netlink(self, pid: int, inode: int, *, place: str) -> Iterator[_Rule]:
        """CRIU keeps one word of groups, and restores it by bind(2), with an address (`sk-netlink.c`)."""
        if place not in self._listening:
            self._listening[place] = _asked_in(pid, sock_diag.netlink_sockets)
        found = self._listening[place].get(inode)
        if found is None or not found.groups:
            return
        words = len(found.groups) // 4 - (found.groups[-4:] == bytes(4))
        if words > 1:
            yield _MANY_GROUPS
        elif not found.portid:
            yield _NO_ADDRESS

    def _is_external(self, pid: int, inode: int, *, place: str) -> bool:
        """Say whether a unix socket leads out.  One that was accepted stands in the network namespace of its client."""
        if _leads_out(inode, self._peers.get(place, {})):
            self._peers[place] = _asked_in(pid, sock_diag.unix_peers)  # the list may be older than the socket
        return bool(self._peers[place]) and _leads_out(inode, self._peers[place])

    def _mount_ids(self) -> frozenset[str]:
        if not self._mounts:
            places: dict[str, int] = {}
            for pid in self._pids:
                with contextlib.suppress(OSError):
                    places.setdefault(os.readlink(f"/proc/{pid}/ns/mnt"), pid)
            found: set[str] = set()
            for pid in places.values():
                with contextlib.suppress(OSError):
                    found.update(
                        line.partition(" ")[0] for line in _read(f"/proc/{pid}/mountinfo").splitlines()
                    )
            self._mounts = frozenset(found)
        return self._mounts

    def _of_path(self, pid: int, number: str, *, link: str) -> Iterator[_Rule]:
        """A path is carried if its mount is one of the container's, and a device if CRIU knows it."""
        if link.startswith("/secretmem"):
            yield _SECRET
            return
        text = _read(f"/proc/{pid}/fdinfo/{number}")
        mount = re.search(r"^mnt_id:\t(\d+)", text, re.MULTILINE)
        found = os.stat(f"/proc/{pid}/fd/{number}")  # what is open, not what lies at that path now
        if stat.S_ISCHR(found.st_mode):
            device = (os.major(found.st_rdev), os.minor(found.st_rdev))
            if device not in _KNOWN_DEVICES and device[0] not in _PTY_MAJORS:
                yield _Rule(f"the open device `{link}`", _CLOSE)
                return
        elif stat.S_ISBLK(found.st_mode):
            yield _Rule(f"the open disk `{link}`", _CLOSE)
            return
        if mount and mount[1] not in self._mount_ids() and not link.startswith(("/SYSV", "/dev/zero")):
            is_queue = link.count("/") == 1 and found.st_size == _QUEUE_BYTES
            yield _QUEUE if is_queue else _Rule(f"an open file outside the container (`{link}`)", _CLOSE)

    def _left_queues(self, pid: int, *, namespace: str) -> Iterator[_Rule]:
        """Queues that nobody has open lie in the ipc namespace still; a mount of its kind shows them."""
        if namespace in self._queues:
            return
        self._queues.add(namespace)
        for line in _read(f"/proc/{pid}/mountinfo").splitlines():
            before, _, after = line.partition(" - ")
            if after.startswith("mqueue "):
                with contextlib.suppress(OSError):
                    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                    try:
                        if _entries(root, before.split()[4]):
                            yield _QUEUE
                    finally:
                        os.close(root)


def _of_mappings(text: str) -> Iterator[_Rule]:
    """Judge /proc/PID/maps: what is mapped may not be open any more."""
    for name in set(re.findall(r" (/secretmem \(|anon_inode:\S+)", text)):
        if name.startswith("anon_inode:"):
            yield ANONYMOUS.get(name[11:].strip("[]"), _MAPPED)
        else:
            yield _SECRET


def _flags(pid: int, number: str) -> int:
    found = re.search(r"^flags:\t([0-7]+)", _read(f"/proc/{pid}/fdinfo/{number}"), re.MULTILINE)
    return int(found[1], 8) if found else 0


_QUEUE_BYTES = 80
"""What stat(2) says of any queue (FILENT_SIZE of `ipc/mqueue.c`)."""


def _entries(root: int, path: str) -> list[str]:
    folder = paths.open_in_root(root, path, flags=os.O_RDONLY | os.O_DIRECTORY)
    try:
        return os.listdir(folder)
    finally:
        os.close(folder)


def _leads_out(inode: int, peers: dict[int, int]) -> bool:
    return inode not in peers or (peers[inode] != 0 and peers[inode] not in peers)


_Answer = TypeVar("_Answer")


def _asked_in(pid: int, ask: Callable[[], dict[int, _Answer]]) -> dict[int, _Answer]:
    """Ask about the sockets of a process's network namespace.  Empty where the kernel cannot tell."""
    try:
        descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    try:
        with netlink.namespace_entered(descriptor):
            return ask()
    except OSError:  # a kernel without it: CRIU, which needs it, says so itself
        return {}
    finally:
        os.close(descriptor)


def _namespaces(pid: int) -> dict[str, str]:
    found = {}
    for kind in _NAMESPACES:
        with contextlib.suppress(OSError):
            found[kind] = os.readlink(f"/proc/{pid}/ns/{kind}")
    with contextlib.suppress(OSError):
        # Who has unshared one of these two has a child to whom it matters, if not itself.
        for kind in ("pid", "time"):
            found[kind] = os.readlink(f"/proc/{pid}/ns/{kind}_for_children")
    return found


def _read(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
    finally:
        os.close(descriptor)
    return b"".join(parts).decode(errors="replace")


def _program(pid: int) -> str:
    try:
        return _read(f"/proc/{pid}/comm").rstrip("\n")
    except OSError:
        return "?"
