# SPDX-License-Identifier: Apache-2.0
"""Programs at the kernel's functions of those system calls that are events: only they cost anything, whoever makes them.

Where that cannot be (`kernel/call_functions.py` tries), a program at `sys_exit` sees the same, and all the calls of the host
pay for it: docs/adr/0032.  It also fills in until these are in place, which takes a moment: a thread of ours attaches them,
and detaches what nobody wants any more, which takes the kernel some 0.13 s for each (`keeper.py` waits for it).
Out of scope: what is told meanwhile (`probes.py`).
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from enum import Enum
from pathlib import Path
from typing import NamedTuple, TypeAlias

from insula.kernel import call_functions
from insula.kernel.bpf_object import Object
from insula.kernel.threads import begin
from insula.monitor.keeper import Keeper
from insula.monitor.layout import Kind
from insula.monitor.shapes import SHAPES

LOG = logging.getLogger(__name__)

OBJECT = Path(__file__).parent / "programs/calls.bpf.o"
KINDS = frozenset(shape.kind for shape in SHAPES.values()) | {Kind.SECCOMP}
_REFUSABLE = frozenset({Kind.SECCOMP, Kind.MOUNT, Kind.IDENTITY, Kind.KERNEL})
"""Kinds of whose calls filters refuse some: an attempt is told as well."""
_SHARED = ("generation", "strangers", "watched", "tasks", "shapes", "sleeping", "losses", "ring")
_DENIAL = "after_denial"
LOOK_S = 0.05
"""Between two looks whether what is leaving has gone."""

MapFd: TypeAlias = Callable[[str], int]
"""Gives the maps of `watch.bpf.o`."""


def _program(call: str) -> str:
    return f"after_{call}"


_ALL = frozenset({_DENIAL, *(_program(call) for call in SHAPES)})


class CallPrograms:
    """The loaded programs, one for each call, and what they lead to.  Not for several threads at once."""

    def __init__(self, map_fd: MapFd) -> None:
        """Load.  Raises: OSError: this kernel lets no programs be hung at its functions."""
        call_functions.try_hook()
        functions = call_functions.find_call_functions(SHAPES)
        alike: defaultdict[int, list[str]] = defaultdict(list)
        for call, function in functions.items():
            alike[function.prototype].append(call)
        shared = {name: map_fd(name) for name in _SHARED}
        self._calls = frozenset(functions)
        self._home: dict[str, Object] = {}
        """Program → the object that it is in."""
        self._keepers: list[Keeper] = []
        """The last keeps what is attached; those before are about to end."""
        with ExitStack() as undo:
            for calls in alike.values():
                programs = [_program(call) for call in calls]
                if not self._home:
                    programs.append(_DENIAL)
                loaded = undo.enter_context(
                    Object(
                        str(OBJECT),
                        shared=shared,
                        left_out=_ALL.difference(programs),
                        targets={"tell_call": functions[calls[0]].name},
                    )
                )
                self._home |= dict.fromkeys(programs, loaded)
            self._close = undo.pop_all().close

    def needed(self, kinds: Iterable[Kind]) -> frozenset[str]:
        """Return the programs that see events of these kinds.

        A call that a filter refuses never reaches its function: it is told where it is refused, as what it would have been.
        That costs everybody who has a filter, as containers do, so not for files and the network, of which filters let all.
        """
        wanted = KINDS.intersection(kinds)
        programs = {_program(call) for call in self._calls if SHAPES[call].kind in wanted}
        return frozenset(programs | {_DENIAL} if wanted & _REFUSABLE else programs)

    def attach(self, program: str) -> None:
        """Let a program run from now on.  Raises: OSError: EBUSY if it does, or if something `is_leaving`."""
        self._home[program].attach(program)

    def detach(self, program: str) -> None:
        """Take a program off, when the next `keep` does not keep it any more."""
        self._home[program].detach(program)

    def keep(self) -> None:
        """Have a process of its own keep what is attached now, and nothing else.  Raises: OSError."""
        keeper = Keeper([fd for each in set(self._home.values()) for fd in each.link_fds])
        if self._keepers:
            self._keepers[-1].let_go()
        self._keepers.append(keeper)

    def is_leaving(self) -> bool:
        """Answer whether something that was detached is still there for a while."""
        self._keepers[:-1] = [each for each in self._keepers[:-1] if each.is_alive()]
        return len(self._keepers) > 1

    def close(self, *, at_once: bool) -> None:
        """Detach everything and unload.  at_once: the waiting is left to who keeps it."""
        self._close()
        if self._keepers:
            self._keepers[-1].let_go()
        for each in () if at_once else self._keepers:
            each.wait()
        self._keepers.clear()


class _Do(Enum):
    ATTACH = "attach"
    DETACH = "detach"
    KEEP = "keep"


class _Step(NamedTuple):
    do: _Do
    program: str = ""


class CallHooks:
    """Which kinds are seen at the calls themselves: as many as are wanted, a moment later.  Never blocks, but in `close`."""

    def __init__(self, load: Callable[[], CallPrograms]) -> None:
        """load: loads the programs, when somebody first wants a kind."""
        self._load = load
        self._kinds: frozenset[Kind] = frozenset()
        self._programs: CallPrograms | None = None
        self._attached: frozenset[str] = frozenset()
        self._kept: frozenset[str] = frozenset()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closing = False
        self.why_not = ""
        """Why nothing can be seen here; empty: it can, or nobody has wanted it yet."""

    def want(self, kinds: frozenset[Kind]) -> None:
        """Say which kinds are wanted from now on.  Raises: OSError: EAGAIN: no thread can be had for it; wanted again, it may."""
        with self._changed:
            self._kinds = kinds & KINDS
            if self._kinds and self._thread is None:
                thread = threading.Thread(target=self._run, name="call hooks", daemon=True)
                begin(thread)
                self._thread = thread
            self._changed.notify_all()

    def covers(self, kinds: frozenset[Kind]) -> bool:
        """Answer whether all that is to be seen of these kinds is seen at the calls now."""
        with self._changed:
            programs = self._programs
            return not kinds & KINDS or (programs is not None and programs.needed(kinds) <= self._attached)

    def wait_settled(self, *, deadline: float) -> bool:
        """Wait until all that is wanted is seen at the calls.  Returns: whether it is; False: it cannot be, or not so soon."""

        def is_settled() -> bool:
            return bool(self.why_not) or self.covers(self._kinds)

        with self._changed:
            self._changed.wait_for(is_settled, max(0.0, deadline - time.monotonic()))
            return self.covers(self._kinds)

    @property
    def attached(self) -> frozenset[str]:
        """The programs that run at their functions."""
        return self._attached

    def close(self, *, at_once: bool = False) -> None:
        """Detach everything and unload.  at_once: leave the waiting to a process of its own."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        if self._programs is not None:
            if at_once and self._kept != self._attached:
                with suppress(OSError):
                    self._programs.keep()
            self._programs.close(at_once=at_once)

    def _run(self) -> None:
        try:
            programs = self._load()
            with self._changed:
                self._programs = programs
            while step := self._next(programs):
                self._take(step, programs)
        except OSError as error:
            reason = error.strerror or str(error)
            LOG.info(
                "events of calls are told at the end of all calls of the host",
                extra={"fields": {"reason": reason}},
            )
            with self._changed:
                self.why_not = reason
                failed, self._programs, self._attached = self._programs, None, frozenset()
                self._changed.notify_all()
            if failed is not None:
                failed.close(at_once=True)

    def _take(self, step: _Step, programs: CallPrograms) -> None:
        match step.do:
            case _Do.ATTACH:
                programs.attach(step.program)
                with self._changed:
                    self._attached |= {step.program}
                    self._changed.notify_all()
            case _Do.DETACH:
                programs.detach(step.program)
            case _Do.KEEP:
                programs.keep()
                self._kept = self._attached

    def _next(self, programs: CallPrograms) -> _Step | None:
        """Wait until there is something to do; None: no more."""
        with self._changed:
            while not self._is_closing:
                wanted = programs.needed(self._kinds)
                missing = wanted - self._attached
                for program in self._attached - wanted:
                    self._attached -= {program}
                    return _Step(_Do.DETACH, program)
                if self._kept - self._attached or (self._kept != self._attached and not missing):
                    return _Step(_Do.KEEP)
                if missing and not programs.is_leaving():
                    return _Step(_Do.ATTACH, min(missing))
                self._changed.wait(LOOK_S if missing else None)
        return None
