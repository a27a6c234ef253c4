# SPDX-License-Identifier: Apache-2.0
"""The migration's protocol as a pure state machine, explored over every order of events, every loss and every crash.

Both sides are small tables of what is in memory and what is on disk.  A step is one of: a side acts, a message arrives, the
link is cut (both sides hear of it at some time, whatever was on the way is lost), it comes back, one side's insulad is
killed (its memory goes, its disk stays; what CRIU and the freezer hold stays held), one side's power goes (nothing of
that host runs any more; what was written and not yet synchronised may be lost or not), a side starts again and settles.

A move of post-copy (ADR 0017) goes on after that: what runs on the target lacks pages, which it pulls out of the frozen source.

What the machine follows: `migrate/source.py` (Move), `migrate/target.py` (Arrival), `migrate/settle.py`
(confirm_or_take_back, learn_commit, answer_question, resolve), `migrate/pull.py`, `migrate/lend.py`, `runtime/recover.py`; the
names are those of `model/migration.py`.  Left out: an administrator's `give-up` on a source, which is lost if its target is.

Invariants, after every step:
    never two           the copies that run are one at most
    never two owners    of the two disks, at most one says of a running copy that it is its own
    never undone        once the target has taken over on its disk, the source never runs again
    network held        no copy that is not its owner's can answer on the network
    memory kept         a source whose memory is still being pulled is not ended
And from each state, when the faults are over: a way leads to where exactly one copy runs (never none for ever).  What a
machine without power has lost is started afresh by the host whose disk says that it owns it, as a restart policy does.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum


class Mutation(StrEnum):
    """A mistake put in on purpose: the explorer must find each."""

    NONE = "none"
    READ_THEN_WRITE = "read-then-write instead of compare-and-set"
    THAW_ON_TIMEOUT = "thaw on timeout"
    LOCK_DROPPED_LATE = "network lock dropped late"
    NO_FSYNC = "no fsync of the journal"
    ENDED_EARLY = "the source is ended when the target runs, not when it has all memory"


class S(StrEnum):
    """Where the source is."""

    MOVING = "frozen, everything sent, waits for Held"
    DECIDING = "has read the owner, about to write it"  # the mutation's window only
    COMMITTED = "committed, sends Commit"
    WAITING = "waits for Resumed"
    ASKING = "asks the target"
    RUNS = "runs on"
    ENDED = "ended and removed"
    DOWN = "insulad is dead"
    OFF = "power is gone"


class T(StrEnum):
    """Where the target is."""

    RESTORING = "restores"
    HOLDING = "everything stands, waits for Commit"
    ASKING = "lost the source, asks it"
    TAKEN = "has heard Commit; killed now, it drops what it restored, and the source takes it back"
    NOTED = "on disk that it may run, about to run"
    RUNS = "runs"
    LOST = "what it ran was ended, for its memory can never come; its files are here, and it is this host's"
    STARTS = "its machine has lost it; asks before it starts it afresh, for an administrator may have decided meanwhile"
    UNDONE = "nothing of it is here"
    DOWN = "insulad is dead"
    OFF = "power is gone"


class M(StrEnum):
    """What is on the way."""

    HELD = "Held"
    COMMIT = "Commit"
    RESUMED = "Resumed"
    REFUSE = "Refuse"


@dataclass(frozen=True, slots=True)
class State:
    source: S = S.MOVING
    target: T = T.RESTORING
    to_source: M | None = None
    to_target: M | None = None
    is_link_up: bool = True
    source_lost: bool = False
    """The source's connection is gone, and it has not noticed yet."""
    target_lost: bool = False
    # What a host's disk says: owner is the target (generation n+1), and whether that write is synchronised.
    source_moved: bool = False
    source_synced: bool = True
    target_owns: bool = False
    target_synced: bool = True
    source_runs: bool = False
    target_runs: bool = False
    source_stands: bool = True
    """The frozen processes are there still."""
    target_stands: bool = False
    source_port: bool = False
    target_port: bool = False
    is_later: bool = False
    """A move of post-copy: the memory stays where it is, and is pulled."""
    is_missing: bool = False
    """What was restored on the target lacks pages, which are in the frozen processes of the source."""
    is_kept: bool = False
    """An administrator has promised that the target is off, and let the source run."""
    has_cancelled: bool = False
    """Another of insulad's threads has given the source back (the operation was cancelled, the container removed)."""
    faults: int = 0


def initial() -> State:
    return State()


def initial_later() -> State:
    return State(is_later=True)


_ALIVE_S = frozenset(S) - {S.DOWN, S.OFF}
_ALIVE_T = frozenset(T) - {T.DOWN, T.OFF}


class Protocol:
    """The steps that are possible in a state.  max_faults: how many may happen on one way."""

    def __init__(self, *, mutation: Mutation = Mutation.NONE, max_faults: int = 3) -> None:
        self._mutation = mutation
        self._max_faults = max_faults

    def steps(self, now: State) -> Iterator[tuple[str, State]]:
        """Give every next state with the name of the step."""
        yield from self._source(now)
        yield from self._target(now)
        yield from self._settle(now)
        yield from self._pulls(now)
        yield from self._resolve(now)
        if now.target is T.LOST:
            yield "target: starts afresh what it has lost", _afresh(now)
        yield from _notice(now)
        if now.faults < self._max_faults:
            for name, then in _faults(now):
                yield name, replace(then, faults=now.faults + 1)
        yield from _repairs(now)

    # -- migrate/source.py

    def _source(self, now: State) -> Iterator[tuple[str, State]]:
        if now.source is S.MOVING and not now.has_cancelled and now.faults < self._max_faults:
            yield "cancel", replace(now, has_cancelled=True, faults=now.faults + 1)
        if (
            now.source in (S.MOVING, S.DECIDING)
            and now.has_cancelled
            and not now.source_moved
            and not now.source_runs
        ):
            # The operation's own check, or another thread, gives it back.
            aimed = S.RUNS if now.source is S.MOVING else now.source
            yield "source: cancelled, thaw", _thawed(replace(now, source=aimed, to_target=M.REFUSE))
        if now.source is S.MOVING and now.to_source is M.HELD:
            if self._mutation is Mutation.READ_THEN_WRITE:
                yield "source: owner read", replace(now, source=S.DECIDING, to_source=None)
            elif not now.has_cancelled:
                yield "source: commit_owner", self._committed(replace(now, to_source=None))
        if now.source is S.DECIDING:
            yield "source: owner written", self._committed(now)
        if now.source is S.MOVING and now.to_source is M.REFUSE:
            yield "source: refused, thaw", _thawed(replace(now, source=S.RUNS, to_source=None))
        if now.source is S.COMMITTED:
            sent = replace(now, source=S.WAITING)
            yield "source: Commit", replace(sent, to_target=M.COMMIT) if now.is_link_up else sent
        if now.source is S.WAITING and now.to_source is M.RESUMED:
            heard = replace(now, to_source=None)
            if (
                now.is_later and self._mutation is not Mutation.ENDED_EARLY
            ):  # it asks until nothing is missing any more
                yield "source: Resumed, lends", replace(heard, source=S.ASKING)
            else:
                yield "source: Resumed, end", _ended(heard)
        if now.source is S.WAITING and now.to_source is M.REFUSE:
            yield "source: refused after the commit, ask", replace(now, source=S.ASKING, to_source=None)
        if self._mutation is Mutation.THAW_ON_TIMEOUT and now.source is S.WAITING:
            yield "source: timeout, thaw", _thawed(replace(now, source=S.RUNS))

    def _committed(self, now: State) -> State:
        synced = self._mutation is not Mutation.NO_FSYNC
        return replace(now, source=S.COMMITTED, source_moved=True, source_synced=synced)

    # -- migrate/target.py

    def _target(self, now: State) -> Iterator[tuple[str, State]]:
        if now.target is T.RESTORING:
            port = self._mutation is Mutation.LOCK_DROPPED_LATE
            held = replace(
                now, target=T.HOLDING, target_stands=True, target_port=port, is_missing=now.is_later
            )
            yield "target: Held", replace(held, to_source=M.HELD) if now.is_link_up else held
            refused = replace(now, target=T.UNDONE)
            yield "target: Refuse", replace(refused, to_source=M.REFUSE) if now.is_link_up else refused
        if now.target is T.HOLDING and now.to_target is M.COMMIT:
            yield "target: take over", self._taken(replace(now, to_target=None))
        if now.target is T.HOLDING and now.to_target is M.REFUSE:
            yield "target: undone", _undone(replace(now, to_target=None))
        if now.target is T.TAKEN:
            synced = self._mutation is not Mutation.NO_FSYNC
            yield (
                "target: notes that it may run",
                replace(now, target=T.NOTED, target_owns=True, target_synced=synced),
            )
        if now.target is T.NOTED:
            runs = replace(now, target=T.RUNS, target_runs=True, target_port=True)
            yield "target: Resumed", replace(runs, to_source=M.RESUMED) if now.is_link_up else runs

    def _taken(self, now: State) -> State:
        return replace(now, target=T.TAKEN)

    # -- migrate/settle.py

    def _settle(self, now: State) -> Iterator[tuple[str, State]]:
        if not now.is_link_up:
            return
        answers_s = now.source in _ALIVE_S
        answers_t = now.target in _ALIVE_T
        if now.target is T.ASKING and answers_s and now.source not in (S.DECIDING, S.COMMITTED):
            if now.source_moved:
                yield "target: learns the commit, takes over", self._taken(now)
            elif now.source is not S.MOVING:  # answer_question waits for the lock of a move that is undecided
                yield "target: learns it is not its own", _undone(now)
        if (
            now.source is S.ASKING
            and answers_t
            and now.target not in (T.RESTORING, T.HOLDING, T.TAKEN, T.NOTED)
        ):
            if now.target_owns and not now.is_missing:
                yield "source: learns of the take-over, end", _ended(now)
            elif not now.target_owns and now.target is not T.ASKING:
                yield "source: takes back", _thawed(replace(now, source=S.RUNS, source_moved=False))
        if now.target is T.STARTS and answers_s and now.source in (S.ENDED, S.RUNS):
            if now.source is S.ENDED:
                yield "target: is asked for by nobody else, afresh", _afresh(now)
            else:
                yield "target: learns that it has lost, drops it", _undone(replace(now, target_owns=False))

    # -- migrate/pull.py, migrate/lend.py

    def _pulls(self, now: State) -> Iterator[tuple[str, State]]:
        """Pages come from the time when all else stands; without them nothing that runs may see a zero."""
        if not now.is_missing:
            return
        is_connected = now.is_link_up and now.source in _ALIVE_S and now.target in _ALIVE_T
        if is_connected and now.source_stands and not now.source_runs:
            yield "target: has pulled all", replace(now, is_missing=False)
        if now.target is not T.RUNS:
            return
        if is_connected and not now.source_stands:
            yield "source: the memory is lost; target: ends it", _lost(now)
        if not is_connected:
            yield "target: the source is silent for too long, ends it", _lost(now)
            yield "target: an administrator keeps it, ends it", _lost(now)
            yield "target: an administrator gives it up", _undone(replace(now, target_owns=False))

    def _resolve(self, now: State) -> Iterator[tuple[str, State]]:
        """An administrator promises that the target is off, which only he knows: its power is gone."""
        if now.source is S.ASKING and now.target is T.OFF:
            kept = replace(now, source=S.RUNS, source_moved=False, is_kept=True)
            yield "source: an administrator keeps it", _thawed(kept)


def _thawed(now: State) -> State:
    """Run on; or, when the machine has lost it, start afresh, as a restart policy does with what is one's own."""
    return replace(now, source_runs=True, source_stands=True, source_port=True)


def _ended(now: State) -> State:
    return replace(now, source=S.ENDED, source_runs=False, source_stands=False, source_port=False)


def _undone(now: State) -> State:
    return replace(
        now, target=T.UNDONE, target_stands=False, target_runs=False, target_port=False, is_missing=False
    )


def _lost(now: State) -> State:
    return replace(
        now, target=T.LOST, target_stands=False, target_runs=False, target_port=False, is_missing=False
    )


def _afresh(now: State) -> State:
    return replace(now, target=T.RUNS, target_runs=True, target_stands=True, target_port=True)


def _notice(now: State) -> Iterator[tuple[str, State]]:
    """A side hears that its connection has gone."""
    if now.source_lost and now.source in (S.MOVING, S.WAITING):
        heard = replace(now, source_lost=False, to_source=None)
        if now.source is S.MOVING:
            yield "source: lost before the commit, thaw", _thawed(replace(heard, source=S.RUNS))
        else:
            yield "source: lost after the commit, ask", replace(heard, source=S.ASKING)
    if now.target_lost and now.target in (T.RESTORING, T.HOLDING):
        heard = replace(now, target_lost=False, to_target=None)
        if now.target is T.RESTORING:
            yield "target: lost before Held, undone", _undone(heard)
        else:
            yield "target: lost while holding, ask", replace(heard, target=T.ASKING)


def _cut(now: State) -> State:
    return replace(now, to_source=None, to_target=None, source_lost=True, target_lost=True)


def _faults(now: State) -> Iterator[tuple[str, State]]:
    if now.is_link_up:
        yield "link: cut", replace(_cut(now), is_link_up=False)
        yield "connection: lost", _cut(now)
    if now.source in _ALIVE_S and now.source not in (S.RUNS, S.ENDED):
        # CRIU rolls back when its caller dies; the freezer, which holds from before the commit, keeps all standing.
        yield "source: kill -9", replace(_cut(now), source=S.DOWN)
    if now.target in _ALIVE_T and now.target not in (T.UNDONE,):
        yield "target: kill -9", replace(_cut(now), target=T.DOWN)
    if now.source in _ALIVE_S and now.source not in (S.RUNS, S.ENDED):
        for moved in {now.source_moved, now.source_moved if now.source_synced else False}:
            yield "source: power", replace(
                _cut(now), source=S.OFF, source_moved=moved, source_synced=True,
                source_stands=False, source_runs=False, source_port=False,
            )  # fmt: skip
    if now.target in _ALIVE_T and now.target not in (T.UNDONE,):
        for owns in {now.target_owns, now.target_owns if now.target_synced else False}:
            yield "target: power", replace(
                _cut(now), target=T.OFF, target_owns=owns, target_synced=True,
                target_stands=False, target_runs=False, target_port=False, is_missing=False,
            )  # fmt: skip


def _repairs(now: State) -> Iterator[tuple[str, State]]:
    """The link comes back; a dead insulad, or a host, starts again (daemon/wiring: recover, settle_all)."""
    if not now.is_link_up:
        yield "link: up", replace(now, is_link_up=True)
    if now.source in (S.DOWN, S.OFF):
        up = replace(now, source_lost=False, to_source=None)
        if now.source_moved:  # Status.MOVED: settle_all
            yield "source: starts, asks", replace(up, source=S.ASKING)
        else:
            yield "source: starts, thaw", _thawed(replace(up, source=S.RUNS))
    if now.target in (T.DOWN, T.OFF):
        up = replace(now, target_lost=False, to_target=None)
        if (
            now.target_owns and now.target_stands
        ):  # the spawner has what was restored: it is adopted, or resumed
            yield "target: starts, goes on", replace(up, target=T.NOTED if not now.target_runs else T.RUNS)
        elif now.target_owns:  # its machine has lost it, and a restart policy starts what is one's own
            yield "target: starts, asks before it starts it afresh", replace(up, target=T.STARTS)
        else:
            yield "target: starts, undone", _undone(up)


Finding = tuple[str, tuple[str, ...]]


def broken(now: State, *, took_over: bool) -> str:
    """Return which invariant a state breaks; empty if none."""
    if now.source_runs and now.target_runs:
        return "two copies run"
    if now.source_runs and now.target_owns and not now.is_kept:
        return "a committed move was undone"
    if now.target_runs and not now.target_owns:
        return "a copy runs that its host does not own"
    if now.target_runs and now.is_missing and not now.source_stands and now.source is S.ENDED:
        return "the memory was ended before the target had it"
    if now.target_port and not now.target_owns:
        return "a copy answers on the network that its host does not own"
    if took_over and now.source_runs and not now.is_kept:
        return "a committed move was undone"
    return ""


def explore(protocol: Protocol, *, start: Callable[[], State] = initial) -> tuple[int, Finding | None]:
    """Go through every reachable state.  Returns: how many there are; the first broken invariant and the way to it."""
    first = start()
    came_from: dict[State, tuple[State, str] | None] = {first: None}
    then: dict[State, list[State]] = {}
    queue = deque([first])
    while queue:
        now = queue.popleft()
        if reason := broken(now, took_over=now.target_owns):
            return len(came_from), (reason, _way(came_from, now))
        then[now] = []
        for name, after in protocol.steps(now):
            then[now].append(after)
            if after not in came_from:
                came_from[after] = (now, name)
                queue.append(after)
    stuck = _without_end(then)
    if stuck is not None:
        return len(came_from), ("none runs, for ever", _way(came_from, stuck))
    return len(came_from), None


def _way(came_from: dict[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    names: list[str] = []
    while (step := came_from[state]) is not None:
        state, name = step
        names.append(name)
    return tuple(reversed(names))


def _without_end(then: dict[State, list[State]]) -> State | None:
    """Return a state from which no way, without further faults, leads to one running copy."""
    before: dict[State, list[State]] = {state: [] for state in then}
    for state, nexts in then.items():
        for after in nexts:
            if after.faults == state.faults:
                before[after].append(state)
    queue = deque(state for state in then if _is_good_end(state))
    good = set(queue)
    while queue:
        for state in before[queue.popleft()]:
            if state not in good:
                good.add(state)
                queue.append(state)
    return next((state for state in then if state not in good), None)


def _is_good_end(now: State) -> bool:
    return now.source_runs != now.target_runs
