# SPDX-License-Identifier: Apache-2.0
"""What is seen of a container's dealings with the kernel: events, counters, and what a watcher wishes.  Pure.

Times are UTC seconds since the epoch unless a name says otherwise.
"""

from enum import StrEnum
from typing import TypeAlias

import msgspec

from insula.model.record import Fact

MAX_WORDS = 500
"""Characters of an event in one line."""


class EventKind(StrEnum):
    """What an event tells of."""

    EXEC = "exec"
    FORK = "fork"
    EXIT = "exit"
    SIGNAL = "signal"
    OOM = "oom"
    CAPABILITY = "capability"
    """The first use, or refusal, of each since somebody last began to watch for them; all uses are counted."""
    SECCOMP = "seccomp"
    """A system call that a filter answered, so that it never began."""
    FILE = "file"
    NETWORK = "network"
    MOUNT = "mount"
    IDENTITY = "identity"
    """setuid(2) and its like."""
    KERNEL = "kernel"
    """Modules, eBPF, ptrace, keys, clocks: what servers do not need."""
    THROTTLE = "throttle"
    """The CPU limit held the container back."""
    DRIFT = "drift"
    """What the profile lacks that the container is held to; the first of each."""


class Event(Fact, kw_only=True, frozen=True, tag="event", omit_defaults=True):
    """One thing that a program did, or that was done to it."""

    at: float
    container: str
    name: str
    kind: EventKind
    call: str = ""
    """The system call, if it is one."""
    pid: int = 0
    """In the container's pid namespace, like `thread`."""
    thread: int = 0
    user: int = 0
    """In the container's user namespace; -1: none of its."""
    command: str = ""
    """The thread's name: at most 15 bytes."""
    result: int = 0
    """What the call returned; negative: minus errno."""
    error: str = ""
    """As `ENOENT`."""
    path: str = ""
    other_path: str = ""
    is_cut: bool = False
    """How `path` or `other_path` goes on is not known: it is longer than what is told of one (1,023 bytes)."""
    address: str = ""
    """As `192.0.2.1:80`, `[2001:db8::1]:80`, `unix:/path`, `unix:@abstract`."""
    arguments: tuple[str, ...] = ()
    """Of a program that was started; at most 1,023 bytes of them."""
    detail: str = ""
    """In words: flags, a signal and its target, a capability, a protocol, how it ended."""
    port: int = 0
    """Of kind `network`: the socket's own, if it has one."""


def in_words(event: Event) -> str:
    """Return an event in one line."""
    what = " ".join(event.arguments) or event.path or event.address or event.detail
    if event.is_cut:
        what = f"{what[: MAX_WORDS // 2]}… (path cut)"
    if event.kind is EventKind.DRIFT and what != event.detail:
        what = f"{what} ({event.detail})"
    who = f"{event.command}[{event.pid}] " if event.command or event.pid else ""  # of some it is not known
    return f"{who}{event.call or event.kind.value} {what}"[:MAX_WORDS]


class Lost(Fact, kw_only=True, frozen=True, tag="lost"):
    """Events that nobody can see any more: they came faster than they were read."""

    events: int


class Ended(Fact, kw_only=True, frozen=True, tag="ended"):
    """Nothing more comes."""

    reason: str


class Began(Fact, kw_only=True, frozen=True, tag="began"):
    """From here on everything is told: the first line."""


TraceLine: TypeAlias = Event | Lost | Ended | Began


class TraceWish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What of a container's events is wanted; empty: all."""

    kinds: tuple[EventKind, ...] = ()
    calls: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    """As `ENOENT`; `any`: whatever failed."""
    pids: tuple[int, ...] = ()
    """In the container's pid namespace."""
    commands: tuple[str, ...] = ()
    """Shell patterns of a thread's name."""
    paths: tuple[str, ...] = ()
    """Shell patterns of a path; one that was cut is told in any case."""
    addresses: tuple[str, ...] = ()
    """Shell patterns of an address."""


class CallCount(Fact, kw_only=True, frozen=True):
    """What was counted of one system call since somebody first counted, in the time that `ContainerCounts.looked_s` tells."""

    call: str
    calls: int
    failures: int
    errors: dict[str, int]
    """Name of errno → how often."""
    timed: int = 0
    """How many of them were timed: those in a tenth of the time."""
    mean_ns: int = 0
    p99_ns: int = 0
    """The upper end of the histogram's step that holds it: a power of two."""


class CallDurations(Fact, kw_only=True, frozen=True):
    """How long calls took, of all kinds together, of those that were timed."""

    calls: int
    nanoseconds: int
    steps: tuple[int, ...]
    """Step i counts calls that took less than 2^i * 256 ns, the last all others."""


class ContainerCounts(Fact, kw_only=True, frozen=True):
    """The counters of a container."""

    id: str
    name: str
    sampled_at: float
    """Monotonic seconds of the daemon's clock."""
    looked_s: float
    """For how many seconds its calls were looked at: counts are of those, and a rate is to be taken over them."""
    calls: tuple[CallCount, ...]
    """Most frequent first."""
    capabilities: dict[str, int]
    """Granted: name → how often."""
    refused_capabilities: dict[str, int]
    lost_events: int = 0
    durations: CallDurations | None = None
    """None: no call was timed."""
