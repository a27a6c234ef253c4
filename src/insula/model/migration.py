# SPDX-License-Identifier: Apache-2.0
"""The phases of a migration and the messages between the two hosts.

    source                                                target
      │◄────────────────────────── Welcome (TLS, both proven) │
      │ Offer {record, image, what it needs} ─────────────►│  preflight: versions, processor, room, names, addresses
      │◄──────────────── Accept {missing layers} or Refuse │  reserve: record, address, folders, cgroups
      │ Layer {digest} DATA… END, for each missing ───────►│  precopy
      │ in rounds: Memory {process, pages} DATA… END,      │
      │   SharedPages {area, pages} DATA… END,             │
      │   FileRound {layer or volume} DATA… END ──────────►│
      │ Prepare ──────────────────────────────────────────►│  the room for the restore is made
      │◄─────────────────────────────────────────── Answer │
      │ the last round, as above ─────────────────────────►│  freeze: while CRIU dumps all but memory
      │ Files {names} DATA… END, SharedImage {area} ──────►│  transfer: CRIU's images
      │ Restore ──────────────────────────────────────────►│  restore: everything stands, nothing runs
      │◄───────────── Missing {pages}: they come as Memory, then Restore again
      │◄───────────────────── Working, from Restore to Held │
      │◄───────────────────────────────────────────── Held │
      │ (owner: source, n → target, n+1, on disk)          │  commit: the point of no return
      │ Commit, Frames DATA… END ─────────────────────────►│  resume: the port joins the bridge, the processes run
      │◄────────────────────────────────────────── Resumed │
      │ Frames DATA… END, Logs DATA… END ─────────────────►│
      │◄─────────────────────────────────────────── Answer │
      │ ◄─ of post-copy, on connections of its own: Pull {container, generation}, Want {pages}… until all are there
      │ (the frozen source is ended and removed) Ended ───►│  cleanup

Before the commit every failure, of whatever side, lets the source run on, connections intact.  A target that holds and
hears nothing any more asks: `Question` on a new connection, answered by `Owner`.  A host that leads visitors on to where a
container has gone asks `Published`, answered by `Ports`.  Pure: no I/O.
"""

from enum import StrEnum

import msgspec

from insula.model.record import ContainerRecord, Fact, ImageRecord, VolumeRecord
from insula.model.spec import PortMapping

VERSION = 3
PROTOCOL = "insula-migration/1"
"""The name in TLS by which a connection is one of these, and not of HTTP (ALPN, RFC 7301)."""


class Phase(StrEnum):
    """In their order."""

    PREFLIGHT = "preflight"
    RESERVE = "reserve"
    PRECOPY = "precopy"
    FREEZE = "freeze"
    TRANSFER = "transfer"
    RESTORE = "restore"
    COMMIT = "commit"
    RESUME = "resume"
    PULL = "pull"
    """Of post-copy only: memory follows."""
    CLEANUP = "cleanup"


class Kind:
    """What a frame holds: one of the messages below, a piece of a stream, or the stream's end."""

    MESSAGE = 1
    DATA = 2
    END = 3
    ZEROS = 4
    """A piece of a stream that is nothing but so many zeros: the holes of sparse files."""
    PACKED = 5
    """A piece of a stream as one zstd frame, which becomes no more than any other piece; only to who `unpacks` it."""


class NetworkNeed(Fact, kw_only=True, frozen=True):
    """The network that the target must have, so that the address can move."""

    name: str
    subnet: str
    uplink: bool
    subnet6: str = ""
    """Of a container that has an IPv6 address; else empty."""


class Offer(Fact, kw_only=True, frozen=True, tag=True):
    version: int
    record: ContainerRecord
    image: ImageRecord
    volumes: tuple[VolumeRecord, ...] = ()
    network: NetworkNeed | None = None
    processor_flags: tuple[str, ...] = ()
    criu_version: str
    kernel_release: str
    host_identity: str = ""
    """Of the `host` image's content; empty for others."""
    disk_bytes: int
    """Writable layer and volumes."""
    memory_bytes: int
    is_later: bool = False
    """Whether private memory is pulled by the target, from before the commit until all of it is there (post-copy)."""
    traceparent: str = ""
    """Of the trace that goes on at who gets this (W3C Trace Context); empty, or from an older host: none."""


class Welcome(Fact, kw_only=True, frozen=True, tag=True):
    """You are known here."""


class Accept(Fact, kw_only=True, frozen=True, tag=True):
    missing_layers: tuple[str, ...]
    unpacks: tuple[str, ...] = ()
    """Compressions that it takes: zstd."""
    ports: tuple[PortMapping, ...] = ()
    """As the target publishes them, in the order of the container's own."""
    can_pull: bool = False
    """Whether it can run a container before any of its memory is there."""


class Refuse(Fact, kw_only=True, frozen=True, tag=True):
    code: str
    message: str
    hint: str = ""


class Layer(Fact, kw_only=True, frozen=True, tag=True):
    digest: str


class Memory(Fact, kw_only=True, frozen=True, tag=True):
    """Pages of one process follow, one after the other."""

    pid: int
    """In the container's pid namespace."""
    ranges: tuple[tuple[int, int], ...]
    """Address of the first byte, number of pages of 4 KiB; sorted, without overlaps."""


class Probe(Fact, kw_only=True, frozen=True, tag=True):
    """A stream follows that is thrown away: how fast is the link?  Answered by `Answer`."""


class Answer(Fact, kw_only=True, frozen=True, tag=True):
    """Done."""


class FileRound(Fact, kw_only=True, frozen=True, tag=True):
    """What changed in a folder since its last round follows (`migrate/edits.py`)."""

    volume: str = ""
    """Its name; empty: the writable layer."""


class SharedPages(Fact, kw_only=True, frozen=True, tag=True):
    """Pages of shared memory follow, one after the other."""

    area: int
    """Its inode on the source."""
    pieces: tuple[tuple[int, int], ...]
    """Offset in the area, number of pages of 4 KiB."""


class SharedImage(Fact, kw_only=True, frozen=True, tag=True):
    """The pages that CRIU's pagemap of this area lists are those that came in rounds."""

    area: int


class Files(Fact, kw_only=True, frozen=True, tag=True):
    """Images of CRIU follow, all in one stream."""

    files: tuple[tuple[str, int], ...]
    """Name and number of bytes of each."""


class Prepare(Fact, kw_only=True, frozen=True, tag=True):
    """The freeze is near: make everything that can be made before it.  Answered by `Answer`."""

    stdio: tuple[str, ...] = ()
    """What standard input, output and error of its first process are just now; empty: not known."""


class Restore(Fact, kw_only=True, frozen=True, tag=True):
    """Everything was sent."""


class Missing(Fact, kw_only=True, frozen=True, tag=True):
    """These pages are wanted, and no round has brought them; after they came, `Restore` again."""

    pages: dict[int, tuple[tuple[int, int], ...]]
    """Pid in the container → ranges as of `Memory`."""


class Held(Fact, kw_only=True, frozen=True, tag=True):
    """Everything stands and nothing runs."""


class Commit(Fact, kw_only=True, frozen=True, tag=True):
    """The target owns the container from now on."""

    generation: int


class Frames(Fact, kw_only=True, frozen=True, tag=True):
    """What neighbours sent to the container in the pause follows (`kernel/hold.py`)."""


class Logs(Fact, kw_only=True, frozen=True, tag=True):
    """What it has written so far follows.  Answered by `Answer`."""


class Resumed(Fact, kw_only=True, frozen=True, tag=True):
    """It runs."""


class Ended(Fact, kw_only=True, frozen=True, tag=True):
    """Nothing of it is left on the source: nobody will ask any more who has it."""


class Pull(Fact, kw_only=True, frozen=True, tag=True):
    """The target of a move that is about to be committed, or was, wants the memory.  Answered by `Answer`."""

    container: str
    generation: int
    """That of the target's ownership."""
    unpacks: tuple[str, ...] = ()
    """As of `Accept`."""


class Want(Fact, kw_only=True, frozen=True, tag=True):
    """These pages are wanted.  Answered by `Answer` and a stream of just them."""

    pid: int
    start: int
    pages: int
    """As of `Memory`."""


class Question(Fact, kw_only=True, frozen=True, tag=True):
    """Who owns it?"""

    container: str
    generation: int


class Published(Fact, kw_only=True, frozen=True, tag=True):
    """Which of your ports lead to it?  Answered by `Ports`."""

    container: str


class Ports(Fact, kw_only=True, frozen=True, tag=True):
    """These; none: it is not here, or does not run."""

    ports: tuple[PortMapping, ...] = ()


class Recall(Fact, kw_only=True, frozen=True, tag=True):
    """Carry it back to the host that it came from."""

    container: str
    max_pause_ms: int | None = None
    """None: the container's own."""
    traceparent: str = ""
    """As of `Offer`."""


class Working(Fact, kw_only=True, frozen=True, tag=True):
    """A recall, or a restore, goes on."""

    what: str


class Recalled(Fact, kw_only=True, frozen=True, tag=True):
    """It is back."""


class Owner(Fact, kw_only=True, frozen=True, tag=True):
    name: str
    generation: int
    missing_bytes: int = 0
    """Of its memory, still to be pulled from the host that asks."""


Message = (
    Welcome
    | Offer
    | Accept
    | Refuse
    | Layer
    | Memory
    | Probe
    | Answer
    | FileRound
    | SharedPages
    | SharedImage
    | Files
    | Prepare
    | Restore
    | Missing
    | Held
    | Commit
    | Frames
    | Logs
    | Resumed
    | Ended
    | Pull
    | Want
    | Question
    | Owner
    | Published
    | Ports
    | Recall
    | Working
    | Recalled
)

_decoder = msgspec.json.Decoder(Message)


def encode(message: Message) -> bytes:
    """Encode a message."""
    return msgspec.json.encode(message)


def decode(data: bytes) -> Message:
    """Decode a peer's message.  Raises: msgspec.ValidationError."""
    found: Message = _decoder.decode(data)
    return found
