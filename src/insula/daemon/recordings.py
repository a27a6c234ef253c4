# SPDX-License-Identifier: Apache-2.0
"""Recordings under way: from `insula profile record` until what was seen is saved, through as many starts as there are.

    asked for ──► waits for a start ──► a life is watched ──► another start: the next life is, and both are added up
                                     └─► insulad ends: what was seen is written down; the next insulad goes on

A container that does not run is recorded from its next start on: its groups are made beforehand, so that nothing of it is
missed.  What is missing all the same stands in the profile (`incomplete_because`).  A recording ends when it is saved, when
the container is removed, and when it moves to another host: then what was seen is kept here.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec
from msgspec.structs import replace

from insula.daemon.drifting import home_of
from insula.daemon.watching import Watching
from insula.kernel.threads import begin
from insula.model.errors import ContainerNotFound, InsulaError, Unsupported, WrongState
from insula.model.lifecycle import ALIVE, Status
from insula.model.profile import UNNAMED, Profile, joined
from insula.model.profile_name import name_like
from insula.model.record import ContainerRecord
from insula.monitor.collect import Collector
from insula.monitor.recording import Recording
from insula.runtime.context import Runtime

LOG = logging.getLogger(__name__)

Keep = Callable[[str, Profile], str]
"""Keeps a tenant's profile under a name that is free.  Returns: the name.  Raises: OSError, QuotaExceeded."""


class _Life(StrEnum):
    """What of the life under way stands in the file."""

    NONE = "none"
    """There is none: everything does."""
    SAVED = "saved"
    """What was seen until insulad ended."""
    OPEN = "open"
    """Nothing."""


_MISSING = {
    _Life.NONE: "",
    _Life.SAVED: "insulad was restarted: what was done meanwhile is missing",
    _Life.OPEN: "insulad was killed: what it had seen since the last start is missing",
}


class _Written(msgspec.Struct, frozen=True, kw_only=True):
    """A file."""

    past: Profile | None = None
    life: _Life = _Life.NONE
    incomplete_because: str = ""


@dataclass(kw_only=True)
class _UnderWay:
    """A recording.  Touched under the lock only."""

    past: Profile | None = None
    """Of the lives before."""
    current: Recording | None = None
    """Of the last life, also when it is over."""
    is_restored: bool = False
    """Whether that life began from a checkpoint: then no start has been seen."""
    incomplete_because: str = ""

    def miss(self, reason: str) -> None:
        """Remember why something is missing."""
        reasons = dict.fromkeys(filter(None, (*self.incomplete_because.split("; "), reason)))
        self.incomplete_because = "; ".join(reasons)

    def profile(self, name: str = UNNAMED) -> Profile | None:
        """Return what has been seen; None: the first life is still to come."""
        seen = [] if self.past is None else [self.past]
        if self.current is not None:
            last = self.current.profile(UNNAMED)
            seen.append(replace(last, is_from_birth=last.is_from_birth and not self.is_restored))
        if not seen:
            return None
        return replace(joined(seen), name=name, incomplete_because=self.incomplete_because)

    def end_life(self) -> None:
        """Add the last life to those before."""
        self.past = self.profile()
        if self.current is not None:
            self.current.close()
            self.current = None

    def written(self, life: _Life) -> _Written:
        return _Written(past=self.past, life=life, incomplete_because=self.incomplete_because)


class Recordings:
    """All recordings of this host.  From any thread."""

    def __init__(
        self, runtime: Runtime, collector: Collector, watching: Watching, *, folder: Path, keep: Keep
    ) -> None:
        self._runtime = runtime
        self._collector = collector
        self._watching = watching
        self._folder = folder
        self._keep = keep
        self._lock = threading.Lock()
        self._under_way: dict[str, _UnderWay] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.json")):
            self._take_up(path)

    def _take_up(self, path: Path) -> None:
        """Go on with a recording of the insulad before this one."""
        try:
            record = self._runtime.store.get_container(path.stem)
            written = msgspec.json.decode(path.read_bytes(), type=_Written)
        except (ContainerNotFound, msgspec.DecodeError) as error:
            LOG.warning("a recording is given up", extra={"fields": {"reason": str(error)}})
            path.unlink()
            return
        made = _UnderWay(past=written.past, incomplete_because=written.incomplete_because)
        made.miss(_MISSING[written.life])
        self._under_way[record.id] = made
        if record.status in ALIVE:
            self._begin_or_wait(made, record, is_from_birth=False)
        self._write(record.id, made, life=_Life.OPEN if made.current else _Life.NONE)

    def begin(self, found: ContainerRecord) -> None:
        """Begin to record.  Raises: ContainerNotFound, Unsupported; WrongState if it is recorded already, or has moved."""
        # What is starting just now would neither be watched nor be said to be missing.
        with self._runtime.locked(found.id):
            record = self._runtime.store.get_container(found.id)
            if record.status is Status.MOVED:
                raise WrongState(f"cannot record `{record.name}`: host `{record.owner}` owns it")
            self._begin(record)

    def _begin(self, record: ContainerRecord) -> None:
        with self._lock:
            if record.id in self._under_way:
                raise WrongState(
                    f"cannot record `{record.name}`: it is being recorded",
                    hint=f"insula profile stop {record.name} ends that",
                )
            made = _UnderWay()
            if record.status in ALIVE:
                made.current = self._watch(record, is_from_birth=False)
            self._under_way[record.id] = made
            self._write(record.id, made, life=_Life.OPEN if made.current else _Life.NONE)

    def before_start(self, record: ContainerRecord) -> None:
        """Watch the life that is about to begin."""
        with self._lock:
            made = self._under_way.get(record.id)
            if made is None:
                return
            made.end_life()
            made.is_restored = self._runtime.store.get_container(record.id).status is Status.RESTORING
            self._runtime.group(record).create()
            self._begin_or_wait(made, record, is_from_birth=True)
            self._write(record.id, made, life=_Life.OPEN if made.current else _Life.NONE)

    def _begin_or_wait(self, made: _UnderWay, record: ContainerRecord, *, is_from_birth: bool) -> None:
        try:
            made.current = self._watch(record, is_from_birth=is_from_birth)
        except (Unsupported, WrongState) as error:
            made.miss(f"a life was not recorded: {error.message}")
            LOG.warning("a life is not recorded", extra={"fields": {"reason": str(error)}})

    def _watch(self, record: ContainerRecord, *, is_from_birth: bool) -> Recording:
        subject = self._watching.subject(record)
        return Recording(self._collector, subject, is_from_birth=is_from_birth, home=home_of(record))

    def note(self, container_id: str, record: ContainerRecord | None) -> None:
        """Take a change of a container: its recording goes with it."""
        if record is not None and record.status is not Status.MOVED:
            return
        with self._lock:
            made = self._under_way.pop(container_id, None)
        if made is None:
            return
        if record is None:
            self._forget(container_id, made)
        else:
            # Whoever tells this has a move to end.
            name = f"keep recording {container_id[:12]}"
            thread = threading.Thread(target=self._end_moved, args=(record, made), name=name, daemon=True)
            try:
                begin(thread)
            except OSError:  # there may be no more threads
                self._end_moved(record, made)

    def _end_moved(self, record: ContainerRecord, made: _UnderWay) -> None:
        try:
            made.miss(f"it moved to host {record.owner}")
            seen = made.profile(name_like(record.name))
            if seen is not None:
                self._keep_moved(record, seen)
        finally:
            self._forget(record.id, made)

    def _keep_moved(self, record: ContainerRecord, seen: Profile) -> None:
        fields = {"container": record.name, "host": record.owner}
        try:
            name = self._keep(record.tenant, seen)
        except (InsulaError, OSError) as error:
            LOG.error("a recording is lost", extra={"fields": {**fields, "reason": str(error)}})
        else:
            LOG.warning("a recording ended: it is kept", extra={"fields": {**fields, "profile": name}})

    def profile(self, record: ContainerRecord, *, name: str) -> Profile:
        """Return what has been seen so far.  Raises: WrongState if nothing has, or it is not recorded."""
        with self._lock:
            made = self._under_way.get(record.id)
            if made is None:
                raise WrongState(
                    f"`{record.name}` is not being recorded", hint=f"insula profile record {record.name}"
                )
            seen = made.profile(name)
        if seen is None:
            raise WrongState(
                f"nothing is recorded of `{record.name}` yet: its recording begins when it starts",
                hint=f"insula start {record.name}",
            )
        return seen

    def end(self, container_id: str) -> None:
        """Record no more: what was seen is kept elsewhere."""
        with self._lock:
            made = self._under_way.pop(container_id, None)
        if made is not None:
            self._forget(container_id, made)

    def close(self) -> None:
        """Write down what was seen, for the next insulad."""
        with self._lock:
            for container_id, made in self._under_way.items():
                made.end_life()
                self._write(container_id, made, life=self._life_of(container_id))
            self._under_way.clear()

    def _life_of(self, container_id: str) -> _Life:
        try:
            record = self._runtime.store.get_container(container_id)
        except ContainerNotFound:
            return _Life.NONE
        return _Life.SAVED if record.status in ALIVE else _Life.NONE

    def _path(self, container_id: str) -> Path:
        return self._folder / f"{container_id}.json"

    def _write(self, container_id: str, made: _UnderWay, *, life: _Life) -> None:
        """Write a recording down.  On a full disk it is remembered in memory alone: the container starts all the same."""
        path = self._path(container_id)
        part = path.with_suffix(".part")
        try:
            part.write_bytes(msgspec.json.encode(made.written(life)))
            part.replace(path)
        except OSError as error:
            LOG.warning("a recording was not written down", extra={"fields": {"reason": str(error)}})

    def _forget(self, container_id: str, made: _UnderWay) -> None:
        if made.current is not None:
            made.current.close()
        self._path(container_id).unlink(missing_ok=True)
