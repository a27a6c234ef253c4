# SPDX-License-Identifier: Apache-2.0
"""Who owns a container, when the two hosts of a migration have lost each other.

Before the commit the source owns it, after it the target.  Whoever has lost the other's last word asks on a new
connection, for as long as it takes, and lets nothing run meanwhile:

    target, holds, no `Commit` heard      asks the source.  Owner is another and the generation one higher: it is ours.
                                          Else the source runs it: what was restored is undone.
    source, committed, no `Resumed` heard asks the target.  It knows that generation: the frozen source is ended.
                                          It does not (it died before it took over): the source takes it back, by the
                                          same compare-and-set, and thaws.

    source, committed, of post-copy       asks, too, how much of the memory is still to be pulled from it (`lend.py`),
                                          until nothing is, and only then ends the frozen source.

A target that has taken over keeps a line in its journal, so that it can say so when the container has gone again.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from msgspec.structs import replace

from insula.migrate.pull import missing_bytes
from insula.migrate.relays import RELAY, begin_all, begin_relay
from insula.migrate.wire import Peers, Wire
from insula.model.errors import ContainerNotFound, InsulaError, MigrationFailed, WrongState
from insula.model.grant import Grant
from insula.model.lifecycle import Status
from insula.model.migration import Owner, Question
from insula.model.record import ContainerRecord
from insula.model.spec import Resolution, ResolveWish
from insula.runtime import dump
from insula.runtime.context import Runtime
from insula.runtime.delete import remove_moved
from insula.runtime.recover import TAKEN, end_lost_arrival, restart_at_rest
from insula.runtime.undo import attempt, until_done

LOG = logging.getLogger(__name__)

GIVEN = "given:"
"""Journal, with the container's id: an administrator gave it up here, `GENERATION HOST` is its owner."""
LEAVING = "leaving:"
"""Journal, with the container's id: the host that it is offered to."""
SETTLE_SECONDS = 20.0
PULLED_LOOK_S = 1.0
"""Between two questions whether the target has all memory."""
ANSWER_SECONDS = 30.0
"""For a decision that is about to fall; less than who asks waits for the answer (`PEER_SECONDS`), who then asks again."""
LOOK_SECONDS = 0.1
"""Between two looks whether it has."""
PAUSE_S = 0.2
MAX_PAUSE_S = 2.0


def ask_until_answered(
    runtime: Runtime, peers: Peers, *, host: str, question: Question, on_silence: Callable[[str], None]
) -> Owner | Resolution:
    """Ask a paired host who owns a container until it answers, or an administrator decides.

    on_silence: called with the reason after each try that failed.  Raises: MigrationFailed when this insulad ends.
    """
    pause = PAUSE_S
    while True:
        try:
            return _ask(peers, host=host, question=question)
        except (InsulaError, OSError) as error:
            on_silence(str(error))
        if resolution := runtime.doubts.wait(question.container, seconds=pause):
            return resolution
        if runtime.closing.is_set():
            raise MigrationFailed(f"cannot learn who owns `{question.container[:12]}`: insulad ends")
        pause = min(pause * 2, MAX_PAUSE_S)


def _ask(peers: Peers, *, host: str, question: Question) -> Owner:
    wire = Wire(peers.open(peers.find(host)))
    try:
        wire.send(question)
        return wire.expect(Owner)
    finally:
        wire.close()


def answer_question(runtime: Runtime, question: Question) -> Owner:
    """Say who owns a container and since which generation; an empty name for one that was never here.

    While a move in or out of it is undecided here, whoever decides it holds its lock, and may itself be waiting for the
    answer of the host that asks.  So it is not the lock that is waited for but the decision, wherever that is written down.
    Raises: MigrationFailed if there is none for ANSWER_SECONDS.
    """
    deadline = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < deadline:
        if (owner := _known_owner(runtime, question.container)) is not None:
            return owner
        with runtime.locked_within(question.container, seconds=LOOK_SECONDS) as is_held:
            if is_held:
                return _owner_at_rest(runtime, question)
    raise MigrationFailed(f"cannot tell who owns `{question.container[:12]}`: it is not yet decided here")


def _known_owner(runtime: Runtime, container_id: str) -> Owner | None:
    """Say what nobody can change any more, whoever works with the container just now."""
    if container_id in runtime.dropping:
        return Owner(name="", generation=0)
    try:
        record = runtime.store.get_container(container_id)
    except ContainerNotFound:
        return None
    # A source that has committed holds the lock until the target has confirmed, which may be the one that asks.
    if record.owner == runtime.host_name or record.status is Status.RESTORING:
        return None
    return _owner_of(runtime, record)


def _owner_at_rest(runtime: Runtime, question: Question) -> Owner:
    """Say who owns a container that nobody works with."""
    try:
        record = runtime.store.get_container(question.container)
    except ContainerNotFound:
        return _from_journal(runtime, question)
    if record.status is Status.RESTORING and record.owner == runtime.host_name:
        raise MigrationFailed(f"cannot tell who owns `{record.id[:12]}`: it is not yet known here")
    return _owner_of(runtime, record)


def _owner_of(runtime: Runtime, record: ContainerRecord) -> Owner:
    return Owner(
        name=record.owner,
        generation=record.generation,
        missing_bytes=missing_bytes(runtime, record.id),
    )


def _from_journal(runtime: Runtime, question: Question) -> Owner:
    container_id = question.container
    if (taken := runtime.store.read_journal(TAKEN + container_id)) is not None:
        return Owner(name=runtime.host_name, generation=int(taken.split()[0]))
    if (given := runtime.store.read_journal(GIVEN + container_id)) is not None:
        generation, _, name = given.decode().partition(" ")
        if question.generation < int(generation):
            return Owner(name=name, generation=int(generation))
        runtime.store.delete_journal(GIVEN + container_id)  # it has taken over
    return Owner(name="", generation=0)


def learn_commit(runtime: Runtime, record: ContainerRecord, *, peers: Peers) -> int:
    """On a target that holds and has lost the source: learn whether it committed.  Returns: the new generation.

    Raises: MigrationFailed if it did not.
    """

    def say(reason: str) -> None:
        LOG.warning(
            "in doubt who owns a container: held",
            extra={"fields": {"container": record.id[:12], "source": record.owner, "reason": reason}},
        )

    question = Question(container=record.id, generation=record.generation)
    with runtime.doubts.entered(record.id):
        owner = ask_until_answered(runtime, peers, host=record.owner, question=question, on_silence=say)
    if owner is Resolution.KEEP and missing_bytes(runtime, record.id):
        raise MigrationFailed(f"cannot keep `{record.name}`: its memory is on host `{record.owner}`")
    if owner is Resolution.KEEP:
        # Above what the source may have committed: should it come back, it learns that it has lost.
        return record.generation + 2
    if isinstance(owner, Resolution):
        raise MigrationFailed(f"cannot take `{record.name}`: it was given up here")
    if owner.generation != record.generation + 1 or owner.name in ("", record.owner):
        raise MigrationFailed(f"cannot take `{record.name}`: `{record.owner}` has kept it")
    return owner.generation


def confirm_or_take_back(
    runtime: Runtime,
    record: ContainerRecord,
    *,
    peers: Peers,
    on_silence: Callable[[str], None],
    on_missing: Callable[[int], None],
) -> bool:
    """On a source that has committed: learn whether the target took over; if it never will, own it again.

    record: as committed, owner and generation being the target's.  on_missing: called now and then with the bytes of memory
    that the target still pulls from here (`lend.py`); it is waited for.
    Returns: False if it was taken back.  Raises: MigrationFailed when this insulad ends before there is an answer.
    """
    question = Question(container=record.id, generation=record.generation)
    while True:
        with runtime.doubts.entered(record.id):
            owner = ask_until_answered(
                runtime, peers, host=record.owner, question=question, on_silence=on_silence
            )
        if not isinstance(owner, Owner) or not owner.missing_bytes:
            break
        on_missing(owner.missing_bytes)
        if runtime.closing.wait(PULLED_LOOK_S):
            raise MigrationFailed(f"cannot wait until `{record.name}` has its memory: insulad ends")
    if owner is Resolution.GIVE_UP:
        given = b"%d %s" % (record.generation, record.owner.encode())
        runtime.store.write_journal(GIVEN + record.id, given)
        return True
    if isinstance(owner, Owner) and owner.generation >= record.generation:
        return True
    reason = "an administrator keeps it" if isinstance(owner, Resolution) else "the target lost it"
    LOG.warning("taken back", extra={"fields": {"container": record.id[:12], "reason": reason}})
    return not runtime.store.commit_owner(record.id, record.generation, new_owner=runtime.host_name)


def thaw(runtime: Runtime, container_id: str) -> None:
    """Let a source run on, connections intact.  What fails on the way is logged: who calls has an error to tell."""
    record = runtime.store.get_container(container_id)
    group = runtime.group(record)
    if record.status is Status.MOVED and not (group.exists() and group.pids()):
        # Its processes went with the host's power or the spawner, while it was not its owner.
        until_done(runtime.closing, lambda: end_lost_arrival(runtime, record), what="write an end down")
        return
    attempt(dump.release_network, record)
    if group.exists():
        attempt(group.thaw)
    if record.status in (Status.MIGRATING, Status.MOVED):
        _write_later_if_need_be(runtime, record)
    else:
        attempt(_forget_move, runtime, record.id)


def _forget_move(runtime: Runtime, container_id: str) -> None:
    for note in (LEAVING, RELAY):
        runtime.store.delete_journal(note + container_id)


def _write_later_if_need_be(runtime: Runtime, record: ContainerRecord) -> None:
    def write() -> None:
        # As one: a next move, which is refused until this is written, has notes of its own.
        with runtime.store.transaction():
            if runtime.store.get_container(record.id).status in (Status.MIGRATING, Status.MOVED):
                _forget_move(runtime, record.id)
                runtime.store.change_container(record.id, _running_again)

    try:
        write()
    except InsulaError:
        threading.Thread(
            target=until_done,
            args=(runtime.closing, write),
            kwargs={"what": "write that it runs"},
            daemon=True,
        ).start()


def _running_again(record: ContainerRecord) -> ContainerRecord:
    waits = record.status in (Status.MIGRATING, Status.MOVED)
    return replace(record, status=Status.RUNNING) if waits else record


def settle_all(runtime: Runtime, peers: Peers) -> None:
    """At the start of insulad: bring what the last one left undecided to its end, each in a thread of its own."""
    for record in runtime.store.list_containers():
        if record.status is Status.MOVED:
            settle_later(runtime, record.id, peers=peers)
    for key in runtime.store.list_journal(TAKEN):
        forget_taken_later(runtime, key.removeprefix(TAKEN), peers=peers)
    for key in runtime.store.list_journal(LEAVING):
        forget_leaving_later(runtime, key.removeprefix(LEAVING), peers=peers)
    begin_all(runtime, peers)


def settle_later(runtime: Runtime, container_id: str, *, peers: Peers) -> None:
    """End a source that has committed, or take it back, as soon as its target answers; in a thread of its own."""
    threading.Thread(
        target=_settle, args=(runtime, container_id, peers), name=f"settle-{container_id[:12]}", daemon=True
    ).start()


def _settle(runtime: Runtime, container_id: str, peers: Peers) -> None:
    def settle() -> None:
        with contextlib.suppress(ContainerNotFound), runtime.locked(container_id):
            record = runtime.store.get_container(container_id)
            if record.owner != runtime.host_name:
                _settle_locked(runtime, record, peers=peers)

    until_done(runtime.closing, settle, what="settle a move")


def _settle_locked(runtime: Runtime, record: ContainerRecord, *, peers: Peers) -> None:
    def say(reason: str) -> None:
        LOG.warning(
            "a moved container stays frozen until its host answers",
            extra={"fields": {"container": record.id[:12], "target": record.owner, "reason": reason}},
        )

    if confirm_or_take_back(runtime, record, peers=peers, on_silence=say, on_missing=_nothing):
        until_done(runtime.closing, lambda: remove_lost(runtime, record), what="remove a moved container")
    else:
        thaw(runtime, record.id)


def remove_lost(runtime: Runtime, record: ContainerRecord) -> None:
    """Remove what is left of a container that another host owns, and every note of its move.  May be called again."""
    with contextlib.suppress(ContainerNotFound):
        runtime.store.change_container(record.id, lambda now: replace(now, status=Status.MOVED))
    # Before the record: as long as that is there, this is done again.
    runtime.store.delete_journal(LEAVING + record.id)
    runtime.store.delete_journal(TAKEN + record.id)
    remove_moved(runtime, record)
    begin_relay(runtime, record.id)


def note_leaving(runtime: Runtime, record: ContainerRecord, *, target: str) -> None:
    """Write down to whom a container is about to be offered: an administrator there may decide, should this host vanish."""
    runtime.store.write_journal(LEAVING + record.id, target.encode())


def forget_leaving_later(runtime: Runtime, container_id: str, *, peers: Peers) -> None:
    """Ask the target of an interrupted move whether it keeps the container all the same; in a thread of its own."""
    threading.Thread(
        target=_forget_leaving,
        args=(runtime, container_id, peers),
        name=f"leaving-{container_id[:12]}",
        daemon=True,
    ).start()


def _forget_leaving(runtime: Runtime, container_id: str, peers: Peers) -> None:
    target = (runtime.store.read_journal(LEAVING + container_id) or b"").decode()
    try:
        generation = runtime.store.get_container(container_id).generation
    except ContainerNotFound:
        runtime.store.delete_journal(LEAVING + container_id)
        return
    question = Question(container=container_id, generation=generation)
    try:
        owner = ask_until_answered(runtime, peers, host=target, question=question, on_silence=_nothing)
        _drop_if_lost(runtime, container_id, owner, to=target, why="another host was given the container")
        runtime.store.delete_journal(LEAVING + container_id)
    except InsulaError as error:
        LOG.info("not confirmed", extra={"fields": {"container": container_id[:12], "reason": str(error)}})


def _drop_if_lost(
    runtime: Runtime, container_id: str, owner: Owner | Resolution, *, to: str, why: str
) -> bool:
    """Drop a container whose ownership went to a peer with a later generation.  Returns: whether it did."""
    with runtime.locked(container_id):
        record = runtime.store.get_container(container_id)
        has_gone = isinstance(owner, Owner) and owner.name == to and owner.generation > record.generation
        if record.owner != runtime.host_name or not has_gone:
            return False
        LOG.error(f"{why}: dropped here", extra={"fields": {"container": container_id[:12], "host": to}})
        until_done(runtime.closing, lambda: remove_lost(runtime, record), what="drop a lost container")
        return True


def resolve(grant: Grant, runtime: Runtime, ref: str, *, wish: ResolveWish) -> None:
    """Decide about a container that stands still because its other host does not answer.

    Raises: ContainerNotFound; WrongState if nothing is in doubt.
    """
    record = runtime.find(grant, ref)
    if not runtime.doubts.decide(record.id, wish.decision):
        raise WrongState(
            f"cannot resolve `{record.name}`: it is not in doubt who owns it",
            hint="only a container that stands still between two hosts can be resolved; `insula ps` shows it as `moved` or `restoring`",
        )
    if not runtime.doubts.wait_settled(record.id, seconds=SETTLE_SECONDS):
        raise MigrationFailed(f"cannot resolve `{record.name}` yet: see the daemon's log")


def forget_taken_later(runtime: Runtime, container_id: str, *, peers: Peers) -> None:
    """Wait until the source of an arrival knows that it is here; in a thread of its own.

    Then its line in the journal is not needed any more, and its restart policy holds again.
    """
    threading.Thread(
        target=_forget_taken,
        args=(runtime, container_id, peers),
        name=f"taken-{container_id[:12]}",
        daemon=True,
    ).start()


def _forget_taken(runtime: Runtime, container_id: str, peers: Peers) -> None:
    line = runtime.store.read_journal(TAKEN + container_id)
    generation, _, source = (line or b"").decode().partition(" ")
    if not source:
        return
    question = Question(container=container_id, generation=int(generation))
    try:
        while True:
            owner = ask_until_answered(runtime, peers, host=source, question=question, on_silence=_nothing)
            if isinstance(owner, Resolution) or owner.name == "" or owner.generation != int(generation):
                break
            if runtime.closing.wait(MAX_PAUSE_S):  # it has committed, and not yet removed what is left there
                return
        if _drop_if_lost(runtime, container_id, owner, to=source, why="its source took the container back"):
            return
        until_done(
            runtime.closing,
            lambda: runtime.store.delete_journal(TAKEN + container_id),
            what="forget a move",
        )
        restart_at_rest(runtime, runtime.store.get_container(container_id))
    except InsulaError as error:
        LOG.info("not confirmed", extra={"fields": {"container": container_id[:12], "reason": str(error)}})


def _nothing(_what: object) -> None:
    return
