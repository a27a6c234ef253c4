# SPDX-License-Identifier: Apache-2.0
"""What insulad and the spawner say to each other.

    insulad                                             spawner (RUN/spawner.sock, SOCK_SEQPACKET, mode 0600)
      │ {"id": 7, "verb": "start", "body": {StartPlan}} + fds ─────────────────────────────────►│ clone3, mounts, exec
      │◄───────────────────── {"id": 7, "ok": {"pid": 4711}} + fds, or {"id": 7, "error": {…}} │
      │◄───────────────────── {"event": "exited", "key": …, "code": …, "at": …}                │ (id is absent)
      │ hello: every container and every unforgotten exit, so that a new insulad knows all     │
      │ streams: into which container each connection leads, so that it can judge them again   │
      │ forget: insulad has written an exit down                                               │

    spawner                            child (in its namespaces), over a socketpair that exec closes
      │ "go" when ids are mapped and cgroups joined ──►│
      │ "net" when the veth pair is there ────────────►│
      │◄── {"worker": pid}, then "known" ─────────────►│   of an exec: the process inside goes on once its pid is known
      │◄── {"pty": true} + the terminal's master       │   only with tty
      │◄── {"step", "errno", "message", "code"}        │   a failure; end of file without one: the program runs

Descriptors travel as SCM_RIGHTS beside the message that names them.  Plans are frozen dataclasses that become JSON by
`encode` and come back by `decode`.  Standard library only.
"""

import array
import dataclasses
import json
import os
import socket
import types
import typing

VERSION = 4
"""Raised with every change of what is said here; `hello` tells it, and an insulad replaces an idle spawner of another."""
MAX_MESSAGE = 4 << 20
MAX_DESCRIPTORS = 64
_SO_SNDBUFFORCE = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class RootPlan:
    """The root file system: an overlay of `lower` (topmost first) and `upper`, all owned by container ids on disk."""

    lower: tuple[str, ...]
    upper: str
    work: str
    read_only: bool = False
    writable: tuple[str, ...] = ()
    """Folders that can be written in although it is read-only; those that are not there are passed over."""
    programs: tuple[str, ...] | None = None
    """Files that can be started of those in the usual folders of programs, and in those that can be written in; None: all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MountPlan:
    """One more mount.  kind: bind (source is a host path) or tmpfs."""

    kind: str
    target: str
    source: str = ""
    read_only: bool = False
    owner: tuple[int, ...] = ()
    """uid and gid on disk that are root's in the container, and the only ones that are anybody's: a user's own files."""
    idmapped: bool = False
    """Show the source's owners through the container's mapping: for volumes, whose files carry container ids."""
    size_bytes: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilePlan:
    """A small file written into the root at each start (/etc/hostname, /etc/hosts, /etc/resolv.conf)."""

    path: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkPlan:
    """One veth pair: `interface` on the host's side, eth0 inside."""

    interface: str
    bridge: str
    mac: str
    address: str
    prefix_length: int
    gateway: str
    address6: str = ""
    prefix_length6: int = 0
    gateway6: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LimitsPlan:
    memory_bytes: int | None = None
    memory_swap_bytes: int | None = None
    cpu_quota_us: int | None = None
    cpu_period_us: int = 100_000
    pids: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """A device of the host's that the container may open."""

    target: str
    """Its node, below the container's /dev."""
    kind: str
    """`c` or `b`."""
    major: int
    minor: int
    mode: int
    """Permission bits of the node, which belongs to the container's root."""
    access: str
    """Of `r`, `w`, `m`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramPlan:
    """What is executed, and as whom."""

    argv: tuple[str, ...]
    environment: tuple[str, ...]
    working_directory: str = "/"
    user: str = ""
    """name, uid, name:group, uid:gid, resolved in the container's own /etc/passwd and /etc/group."""
    capabilities: tuple[str, ...] = ()
    seccomp: bool = True
    calls: tuple[str, ...] = ()
    """A profile: of the system calls that are allowed, only these; empty: all of them."""
    is_logged: bool = False
    """What the profile lacks is made all the same, and logged."""
    tty: bool = False
    stdin_open: bool = False
    rows: int = 0
    columns: int = 0
    init: str = ""
    """Path of the small init that stays pid 1 before the program; empty: the program itself is pid 1."""
    rlimits: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartPlan:
    key: str
    """The container's id."""
    uid_base: int
    cgroup_parent: str
    """Name of the group above; since version 3 several, joined by `/`."""
    limits: LimitsPlan
    root: RootPlan
    hostname: str
    program: ProgramPlan
    log: str
    """Path of the log file."""
    log_bytes: int = 0
    """How much of the log is kept, the older half included; 0: the usual (`stdio.py`).  Since version 3."""
    mounts: tuple[MountPlan, ...] = ()
    devices: tuple[DevicePlan, ...] = ()
    files: tuple[FilePlan, ...] = ()
    network: NetworkPlan | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttachPlan:
    """What the one attached descriptor of a request is for."""

    preamble: str = ""
    """Written first, when the verb succeeded (latin-1): the HTTP answer that upgrades the connection."""
    stdin: bool = False
    hello: str = ""
    """JSON of the HELLO frame."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """A step of the child that failed."""

    step: str
    errno: int
    message: str
    code: str = ""
    """Of `model/errors.py` where the child knows better: command_not_found, command_not_executable, …"""


class UnknownField(Exception):
    """A plan asks for what this spawner does not know yet."""


def encode(value: object) -> object:
    """Turn a plan into what JSON can hold.  What is as by default is left out: an older spawner need not know of it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: encode(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != _default_of(field)
        }
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def _default_of(field: dataclasses.Field[typing.Any]) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


_T = typing.TypeVar("_T")
_hints: dict[type, dict[str, object]] = {}


def decode(kind: type[_T], value: typing.Any) -> _T:
    """Build a plan from decoded JSON.

    Raises: UnknownField for what only a newer insulad knows; TypeError for what does not fit, which is a bug.
    """
    hints = _hints.get(kind)
    if hints is None:
        hints = _hints[kind] = typing.get_type_hints(kind)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise UnknownField(f"{kind.__name__}.{unknown[0]}")
    return kind(**{name: _decode_field(hints[name], item) for name, item in value.items()})


def _decode_field(hint: typing.Any, value: typing.Any) -> typing.Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(each for each in typing.get_args(hint) if each is not type(None))
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast(type, hint), value)
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        return tuple(_decode_field(inner, item) for item in value)
    return value


def widen(connection: socket.socket) -> None:
    """Let MAX_MESSAGE through: a message must fit into the sender's buffer, which `net.core.wmem_max` keeps small.

    Source: socket(7), SO_SNDBUFFORCE; without NET_ADMIN the system's limit holds.
    """
    try:
        connection.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, MAX_MESSAGE)
    except PermissionError:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_MESSAGE)


class Message(typing.NamedTuple):
    """A received message; `fields` is decoded JSON, empty at the end of the connection."""

    fields: dict[str, typing.Any]
    descriptors: list[int]


def send(
    connection: socket.socket, fields: typing.Mapping[str, object], *, descriptors: typing.Sequence[int] = ()
) -> None:
    """Send one message with descriptors.  Raises: OSError (EPIPE, EMSGSIZE)."""
    ancillary = []
    if descriptors:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    connection.sendmsg([json.dumps(fields).encode()], ancillary)


def receive(connection: socket.socket, *, size: int = MAX_MESSAGE) -> Message:
    """Receive one message.  Raises: OSError; ValueError if it is not a JSON object."""
    space = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    data, ancillary, _flags, _address = connection.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    try:
        fields = json.loads(data) if data else {}
        if not isinstance(fields, dict):
            raise ValueError("a message that is no object")
    except ValueError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return Message(fields, descriptors.tolist())
