# SPDX-License-Identifier: Apache-2.0
"""CRIU by its RPC: the only place that speaks it.

A `criu swrk` serves one socket (SOCK_SEQPACKET).  With notifications on it asks at each stage of a dump or restore
and waits for our answer, which is how a dump is held until the target has the container, and how a restore is held
until the owner has changed:

    us                               criu swrk
     │ DUMP or RESTORE, options ────► │
     │ ◄──────── NOTIFY network-lock  │   tasks are stopped
     │ NOTIFY success ──────────────► │
     │ ◄──────── NOTIFY post-dump     │   everything is written, tasks still stopped: refused → they run on
     │ ◄──────── response             │

Out of scope: which process runs it and where (`boot/engine.py`), what is dumped and why (`runtime/`).
Source: CRIU's `images/rpc.proto`, https://criu.org/RPC, `criu/include/action-scripts.h`.
"""

import array
import re
import socket
from collections.abc import Callable, Iterator
from typing import NamedTuple

from insula.kernel import namespace, protobuf

# enum criu_req_type
DUMP = 1
RESTORE = 2
CHECK = 3
PRE_DUMP = 4
PAGE_SERVER = 5
NOTIFY = 6
CPUINFO_DUMP = 7
CPUINFO_CHECK = 8
VERSION = 10

CG_IGNORE = 0
NETWORK_LOCK_SKIP = 3
_MAX_MESSAGE = 1 << 20


class Options(NamedTuple):
    """The options of a dump or restore that insula uses; the names are those of `criu_opts`."""

    images_dir: str
    pid: int = 0
    log_file: str = "criu.log"
    log_level: int = 2
    leave_running: bool = False
    tcp_established: bool = True
    file_locks: bool = True
    root: str = ""
    external: tuple[str, ...] = ()
    inherit_fd: tuple[tuple[str, int], ...] = ()
    irmap_scan_paths: tuple[str, ...] = ()
    """Where files that are watched by inotify are looked for."""
    lazy_pages: bool = False
    """Leave private anonymous memory out of a dump; expect it by userfaultfd in a restore."""
    config_file: str = ""
    """Options that the RPC does not have."""
    rst_sibling: bool = False
    orphan_pts_master: bool = True
    ghost_limit: int = 1 << 30
    """Bytes of an unlinked but open file that go into the images."""
    timeout_s: int = 60
    track_mem: bool = False
    parent_img: str = ""
    freeze_cgroup: str = ""
    empty_network: bool = True
    """Neither dump nor restore what is in the network namespace but sockets: the caller plugs interfaces in."""

    def encode(self) -> bytes:
        """Encode as `criu_opts`."""
        fields: list[tuple[int, protobuf.Value]] = [(1, -1), (68, self.images_dir)]
        if self.pid:
            fields.append((2, self.pid))
        fields += [
            (3, self.leave_running),
            (5, self.tcp_established),
            (6, True),  # evasive_devices
            (8, self.file_locks),
            (9, self.log_level),
            (10, self.log_file),
            (12, True),  # notify_scripts
        ]
        if self.root:
            fields.append((13, self.root))
        if self.parent_img:
            fields.append((14, self.parent_img))
        fields += [(15, self.track_mem), (18, True), (26, self.rst_sibling)]  # link_remap
        fields += [(27, protobuf.encode([(1, key), (2, fd)])) for key, fd in self.inherit_fd]
        fields += [(34, CG_IGNORE), (35, self.ghost_limit)]
        fields += [(36, each) for each in self.irmap_scan_paths]
        fields += [(37, each) for each in self.external]
        if self.empty_network:
            fields.append((38, namespace.CLONE_NEWNET))
        if self.freeze_cgroup:
            fields.append((44, self.freeze_cgroup))
        fields.append((45, self.timeout_s))
        if self.lazy_pages:
            fields.append((48, True))
        fields += [(50, self.orphan_pts_master), (64, NETWORK_LOCK_SKIP)]
        if self.config_file:
            fields.append((51, self.config_file))
        return protobuf.encode(fields)


class Notification(NamedTuple):
    """A stage that CRIU has reached and waits at."""

    stage: str
    """network-lock, post-dump, setup-namespaces, post-restore, network-unlock, orphan-pts-master, …"""
    pid: int
    descriptors: tuple[int, ...]


class Response(NamedTuple):
    """How it ended."""

    success: bool
    errno: int
    message: str
    pid: int
    """Of the restored root process; 0 otherwise."""


class CriuGone(OSError):
    """The CRIU process ended without an answer."""


Handler = Callable[[Notification], bool]


def request(connection: socket.socket, kind: int, options: Options, *, handle: Handler) -> Response:
    """Ask for a dump or restore and answer its notifications until the end (`follow`)."""
    ask(connection, kind, options)
    return follow(connection, handle=handle)


def ask(connection: socket.socket, kind: int, options: Options) -> None:
    """Ask for a dump or restore.  Raises: CriuGone; OSError of the socket."""
    _send(connection, protobuf.encode([(1, kind), (2, options.encode())]))


def _wait_on() -> None:
    return


def follow(
    connection: socket.socket, *, handle: Handler, on_silence: Callable[[], None] = _wait_on
) -> Response:
    """Answer the notifications of what was asked for until its end.

    handle: called at each stage; False makes CRIU undo what it did.
    on_silence: called whenever CRIU has said nothing for the connection's timeout; what it raises gives CRIU up.
    Raises: CriuGone; OSError of the socket; whatever `handle` raises, after CRIU was refused and has ended; what `on_silence`
    raises, at once: CRIU ends when its connection is closed.
    """
    failure: Exception | None = None
    while True:
        try:
            fields, descriptors = _receive(connection, on_silence)
        except CriuGone:
            raise failure or CriuGone(104, "criu: ended without an answer") from None
        if fields.get(1) != NOTIFY:
            if failure is not None:
                raise failure
            return _response(fields)
        stage, pid = _notification(fields)
        accepted = False
        if failure is None:
            try:
                accepted = handle(Notification(stage, pid, descriptors))
            except Exception as error:  # noqa: BLE001  re-raised above, when CRIU has undone its work
                failure = error
        try:
            _send(connection, protobuf.encode([(1, NOTIFY), (3, accepted)]))
        except CriuGone:
            raise failure or CriuGone(104, "criu: ended while it was waited for us") from None


def _send(connection: socket.socket, data: bytes) -> None:
    try:
        connection.send(data)
    except ConnectionError as error:
        raise CriuGone(error.errno, "criu: ended") from error


def _receive(
    connection: socket.socket, on_silence: Callable[[], None]
) -> tuple[dict[int, int | bytes], tuple[int, ...]]:
    space = socket.CMSG_SPACE(4 * array.array("i").itemsize)
    while True:
        try:
            data, ancillary, _flags, _address = connection.recvmsg(
                _MAX_MESSAGE, space, socket.MSG_CMSG_CLOEXEC
            )
            break
        except TimeoutError:
            on_silence()
    if not data:
        raise CriuGone(104, "criu: ended without an answer")
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    return dict(protobuf.decode(data)), tuple(descriptors)


def _notification(fields: dict[int, int | bytes]) -> tuple[str, int]:
    body = fields.get(5, b"")
    inner = dict(protobuf.decode(body)) if isinstance(body, bytes) else {}
    stage, pid = inner.get(1, b""), inner.get(2, 0)
    return stage.decode() if isinstance(stage, bytes) else "", pid if isinstance(pid, int) else 0


def _response(fields: dict[int, int | bytes]) -> Response:
    pid = 0
    restored = fields.get(4)
    if isinstance(restored, bytes):
        found = dict(protobuf.decode(restored)).get(1, 0)
        pid = found if isinstance(found, int) else 0
    errno, words = fields.get(7, 0), fields.get(9, b"")
    return Response(
        success=bool(fields.get(2, 0)),
        errno=errno if isinstance(errno, int) else 0,
        message=words.decode(errors="replace") if isinstance(words, bytes) else "",
        pid=pid,
    )


class Cause(NamedTuple):
    """Why CRIU refused, read out of its log."""

    resource: str
    cure: str
    line: str

    @property
    def passes(self) -> bool:
        """It may be gone a moment later."""
        return self.cure == _LATER


_LATER = "try again"

#: What CRIU says → which resource that is, and what can be done.  The first match of the log's first error wins.
_CAUSES: tuple[tuple[str, str, str], ...] = (
    (r"io_uring", "an io_uring instance", "start the program with io_uring switched off"),
    (r"Can't lookup mount=(\d+) for fd=(-?\d+) path=(\S+)", "an open file outside the container (`{3}`)", "close it"),
    (r"Can't dump half of stream unix connection|unix: Dangling connection|external socket is used|unix.*[Ee]xternal", "a unix socket whose other"
     " end is outside the container", "close that connection first"),
    (r"[Ii]n-flight connection", "a TCP connection that it has not accepted yet", _LATER),
    (r"Connected TCP socket|tcp_established", "an established TCP connection", _LATER),
    (r"Can't (?:dump|get) .*netlink|NETLINK", "a netlink socket with unread data", _LATER),
    (r"inotify|fanotify|[Cc]an't find suitable path for handle", "a watch on a file that was removed",
     "restart the program that watches"),
    (r"Task \S+ is (?:in unexpected state|traced)|ptrace.*(?:Operation not permitted)|[Uu]nseizable", "a process that a"
     " debugger holds", "end strace or gdb on it"),
    (r"Found (?:a )?file lock|[Ff]ile lock", "a file lock held together with a process outside", "release it"),
    (r"fuse", "a FUSE file system", "unmount it in the container"),
    (r"ghost file.*(?:too big|limit)|Can't dump ghost file", "an unlinked open file that is too large", "close it"),
    (r"[Cc]haracter device|Can't dump .*device|[Uu]nsupported device|chr(?:dev)? .*not supported", "an open device",
     "close it"),
    (r"Can't dump .*socket|[Uu]nsupported (?:socket|proto|family)|Unknown socket", "a socket of a kind that CRIU does"
     " not know", "close it"),
    (r"No space left on device", "room for the images", "free some space"),
    (r"Cannot allocate memory", "memory", "free some memory"),
    (r"Address already in use", "an address that somebody else uses", "free it"),
    (r"File (\S+) has bad (\w+)", "the file `{1}`, whose {2} differs from what it was", "use the same image"),
    (r"Can't open file (\S+)", "the file `{1}`, which is missing", "restore where the same files are"),
)  # fmt: skip


def find_cause(log: str) -> Cause:
    """Find the first error of a log that means something to people."""
    errors = list(_error_lines(log))
    for line in errors:
        for pattern, resource, cure in _CAUSES:
            match = re.search(pattern, line)
            if match:
                return Cause(resource.format(match[0], *match.groups()), cure, line)
    return Cause("", "", errors[0] if errors else "")


#: What CRIU calls an error while it only learns what the kernel can do, or is denied a comfort.
_HARMLESS = ("tun: Unable to create tun", "rlimit: Can't setup")
_ERROR = re.compile(r"(?:\(\d+\.\d+\))?\s*(?:(?:pie: )?\d+: )?Error \([^)]*\): (.*)")


def _error_lines(log: str) -> Iterator[str]:
    for line in log.splitlines():
        match = _ERROR.match(line)
        if match and not match[1].startswith(_HARMLESS):
            yield match[1]
