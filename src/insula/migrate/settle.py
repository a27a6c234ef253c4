# SPDX-License-Identifier: Apache-2.0
"""Who owns a container, when the two hosts of a migration have lost each other.

Before the commit the source owns it, after it the target.  Whoever has lost the other's last word asks on a new
connection, for as long as it takes, and lets nothing run meanwhile:

    target, holds, no `Commit` heard      asks the source.  Owner is another and the generation one higher: it is ours.
                                          Else the source runs it: what was restored is undone.
    source, committed, no `Resumed` heard asks the target.  It knows that generation: the frozen source is ended.
                                          It does not (it died before it took over): the source takes it back, by the
                                          same compare-and-set, and thaws.

A target that has taken over keeps a line in its journal, so that it can say so when the container has gone again.
"""

import logging
import threading
from collections.abc import Callable

from msgspec.structs import replace

from insula.migrate.wire import Peers, Wire
from insula.model.errors import ContainerNotFound, InsulaError, MigrationFailed
from insula.model.lifecycle import Status
from insula.model.migration import Owner, Question
from insula.model.record import ContainerRecord
from insula.runtime import dump
from insula.runtime.context import Runtime
from insula.runtime.delete import remove_moved
from insula.runtime.recover import TAKEN, end_lost_arrival, restart_at_rest
from insula.runtime.undo import attempt, until_done

LOG = logging.getLogger(__name__)

PAUSE_S = 0.2
MAX_PAUSE_S = 2.0


def ask_until_answered(
    runtime: Runtime, peers: Peers, *, host: str, question: Question, on_silence: Callable[[str], None]
) -> Owner:
    """Ask a paired host who owns a container until it answers.

    on_silence: called with the reason after each try that failed.  Raises: MigrationFailed when this insulad ends.
    """
    pause = PAUSE_S
    while True:
        try:
            return _ask(peers, host=host, question=question)
        except (InsulaError, OSError) as error:
            on_silence(str(error))
        if runtime.closing.wait(pause):
            raise MigrationFailed(f"cannot learn who owns `{question.container[:12]}`: insulad ends")
        pause = min(pause * 2, MAX_PAUSE_S)


def _ask(peers: Peers, *, host: str, question: Question) -> Owner:
    wire = Wire(peers.open(peers.find(host)))
    try:
        wire.send(question)
        return wire.expect(Owner)
    finally:
        wire.close()


def answer_question(runtime: Runtime, container_id: str) -> Owner:
    """Say who owns a container and since which generation; an empty name for one that was never here.

    Waits while a move in or out of it is undecided here.
    """
    try:
        record = runtime.store.get_container(container_id)
    except ContainerNotFound:
        record = None
    # A source that has committed holds the lock until the target has confirmed, which may be the one that asks.
    if record is None or record.owner == runtime.host_name or record.status is Status.RESTORING:
        with runtime.locked(container_id):
            try:
                record = runtime.store.get_container(container_id)
            except ContainerNotFound:
                return _from_journal(runtime, container_id)
            if record.status is Status.RESTORING and record.owner == runtime.host_name:
                raise MigrationFailed(f"cannot tell who owns `{container_id[:12]}`: it is not yet known here")
    return Owner(name=record.owner, generation=record.generation)


def _from_journal(runtime: Runtime, container_id: str) -> Owner:
    taken = runtime.store.read_journal(TAKEN + container_id)
    if taken is None:
        return Owner(name="", generation=0)
    return Owner(name=runtime.host_name, generation=int(taken.split()[0]))


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
    owner = ask_until_answered(runtime, peers, host=record.owner, question=question, on_silence=say)
    if owner.generation != record.generation + 1 or owner.name in ("", record.owner):
        raise MigrationFailed(f"cannot take `{record.name}`: `{record.owner}` has kept it")
    return owner.generation


def confirm_or_take_back(
    runtime: Runtime, record: ContainerRecord, *, peers: Peers, on_silence: Callable[[str], None]
) -> bool:
    """On a source that has committed: learn whether the target took over; if it never will, own it again.

    record: as committed, owner and generation being the target's.  Returns: False if it was taken back.
    Raises: MigrationFailed when this insulad ends before there is an answer.
    """
    question = Question(container=record.id, generation=record.generation)
    owner = ask_until_answered(runtime, peers, host=record.owner, question=question, on_silence=on_silence)
    if owner.generation >= record.generation:
        return True
    LOG.warning("the target lost it: taken back", extra={"fields": {"container": record.id[:12]}})
    return not runtime.store.commit_owner(record.id, record.generation, new_owner=runtime.host_name)


def thaw(runtime: Runtime, container_id: str) -> None:
    """Let a source run on, connections intact.  What fails on the way is logged: who calls has an error to tell."""
    record = runtime.store.get_container(container_id)
    group = runtime.group(container_id)
    if record.status is Status.MOVED and not (group.exists() and group.pids()):
        # Its processes went with the host's power or the spawner, while it was not its owner.
        until_done(runtime.closing, lambda: end_lost_arrival(runtime, record), what="write an end down")
        return
    attempt(dump.release_network, record)
    if group.exists():
        attempt(group.thaw)
    if record.status in (Status.MIGRATING, Status.MOVED):
        _write_later_if_need_be(runtime, record)


def _write_later_if_need_be(runtime: Runtime, record: ContainerRecord) -> None:
    def write() -> None:
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


def settle_later(runtime: Runtime, container_id: str, *, peers: Peers) -> None:
    """End a source that has committed, or take it back, as soon as its target answers; in a thread of its own."""
    threading.Thread(
        target=_settle, args=(runtime, container_id, peers), name=f"settle-{container_id[:12]}", daemon=True
    ).start()


def _settle(runtime: Runtime, container_id: str, peers: Peers) -> None:
    try:
        with runtime.locked(container_id):
            record = runtime.store.get_container(container_id)
            if record.owner != runtime.host_name:
                _settle_locked(runtime, record, peers=peers)
    except InsulaError as error:
        LOG.warning("not settled", extra={"fields": {"container": container_id[:12], "reason": str(error)}})


def _settle_locked(runtime: Runtime, record: ContainerRecord, *, peers: Peers) -> None:
    def say(reason: str) -> None:
        LOG.warning(
            "a moved container stays frozen until its host answers",
            extra={"fields": {"container": record.id[:12], "target": record.owner, "reason": reason}},
        )

    if confirm_or_take_back(runtime, record, peers=peers, on_silence=say):
        until_done(runtime.closing, lambda: remove_moved(runtime, record), what="remove a moved container")
    else:
        thaw(runtime, record.id)


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
            if owner.name == "" or owner.generation != int(generation):
                break
            if runtime.closing.wait(PAUSE_S):  # it has committed, and not yet removed what is left there
                return
        runtime.store.delete_journal(TAKEN + container_id)
        restart_at_rest(runtime, runtime.store.get_container(container_id))
    except InsulaError as error:
        LOG.info("not confirmed", extra={"fields": {"container": container_id[:12], "reason": str(error)}})


def _nothing(_reason: str) -> None:
    return
