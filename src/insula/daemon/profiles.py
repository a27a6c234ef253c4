# SPDX-License-Identifier: Apache-2.0
"""Profiles of containers: recordings under way, and those that are kept, a JSON file each.

A recording of a container that does not run begins with its next start: the container's groups are made beforehand, so
that nothing of it is missed.  It ends when it is saved, with insulad, or when the container is removed.
"""

import logging
import os
import re
import threading
from pathlib import Path

import msgspec

from insula.daemon.drifting import home_of
from insula.daemon.sight import Sight
from insula.daemon.watching import Watching
from insula.kernel import caps, syscalls
from insula.model.errors import InvalidSpec, NameTaken, ProfileNotFound, Unsupported, WrongState
from insula.model.grant import EVERY_TENANT, Grant
from insula.model.lifecycle import ALIVE, Status
from insula.model.profile import VERSION, Applied, ApplyWish, Profile, applied
from insula.model.profile_text import Words, read_profile
from insula.model.record import ContainerRecord
from insula.model.spec import PROFILE_NAME
from insula.monitor.collect import Collector
from insula.monitor.recording import Recording
from insula.runtime.confine import confine
from insula.runtime.context import Runtime

LOG = logging.getLogger(__name__)

_NAME = re.compile(PROFILE_NAME)
_WORDS = Words(calls=syscalls.names(), capabilities=frozenset(caps.NAMES))


class ProfileDesk:
    """The `Profiles` of `api/watch.py`."""

    def __init__(
        self, runtime: Runtime, collector: Collector, watching: Watching, *, sight: Sight, folder: Path
    ) -> None:
        self._sight = sight
        self._runtime = runtime
        self._collector = collector
        self._watching = watching
        self._folder = folder
        self._recordings: dict[str, Recording] = {}
        self._armed: set[str] = set()
        """Containers whose next start is recorded."""
        self._lock = threading.Lock()

    def record(self, grant: Grant, ref: str) -> None:
        """Begin to record.  Raises: ContainerNotFound; WrongState if it is recorded already; Unsupported."""
        record = self._runtime.find(grant, ref)
        with self._lock:
            if record.id in self._recordings or record.id in self._armed:
                raise WrongState(
                    f"cannot record `{record.name}`: it is being recorded",
                    hint=f"insula profile stop {record.name} ends that",
                )
            if record.status in ALIVE:
                self._recordings[record.id] = self._begin(record, is_from_birth=False)
            else:
                self._armed.add(record.id)

    def _begin(self, record: ContainerRecord, *, is_from_birth: bool) -> Recording:
        subject = self._watching.subject(record)
        return Recording(self._collector, subject, is_from_birth=is_from_birth, home=home_of(record))

    def before_start(self, record: ContainerRecord) -> None:
        """Begin the recording of a container that is about to start."""
        with self._lock:
            if record.id not in self._armed:
                return
            group = self._runtime.group(record)
            group.create()
            try:
                self._recordings[record.id] = self._begin(record, is_from_birth=True)
            except Unsupported as error:
                LOG.warning("a start is not recorded", extra={"fields": {"reason": str(error)}})
            self._armed.discard(record.id)

    def note(self, container_id: str, record: ContainerRecord | None) -> None:
        """Take a change of a container: with it goes its recording."""
        if record is None or record.status is Status.MOVED:
            with self._lock:
                self._armed.discard(container_id)
                recording = self._recordings.pop(container_id, None)
            if recording is not None:
                recording.close()

    def recorded(self, grant: Grant, ref: str) -> Profile:
        """Return what has been recorded of a container so far.  Raises: WrongState if it is not recorded."""
        record = self._runtime.find(grant, ref)
        return self._told(grant, record.tenant, self._recording(record).profile(record.name))

    def _recording(self, record: ContainerRecord) -> Recording:
        with self._lock:
            if record.id in self._armed:
                raise WrongState(
                    f"nothing is recorded of `{record.name}` yet: its recording begins when it starts",
                    hint=f"insula start {record.name}",
                )
            if record.id not in self._recordings:
                raise WrongState(
                    f"`{record.name}` is not being recorded", hint=f"insula profile record {record.name}"
                )
            return self._recordings[record.id]

    def save(self, grant: Grant, ref: str, *, name: str) -> Profile:
        """End a recording and keep it.  Raises: WrongState, NameTaken."""
        record = self._runtime.find(grant, ref)
        recording = self._recording(record)
        profile = recording.profile(name)
        self._keep(record.tenant, profile)
        with self._lock:
            self._recordings.pop(record.id, None)
        recording.close()
        return self._told(grant, record.tenant, profile)

    def _told(self, grant: Grant, tenant: str, profile: Profile) -> Profile:
        """Return what the caller may see of a profile."""
        return self._sight.of_reader(grant.principal, tenant).profile(profile)

    def apply(self, grant: Grant, ref: str, *, wish: ApplyWish) -> Applied:
        """Hold a container to a kept profile from its next start on.

        Raises: ContainerNotFound, ProfileNotFound; InvalidSpec if the profile's file was altered.
        """
        record = self._runtime.find(grant, ref)
        profile = self._read(record.tenant, wish.profile)
        held = applied(profile, enforce=wish.enforce)
        confine(grant, self._runtime, record.id, profile=held)
        return Applied(
            is_running=record.status in ALIVE,
            is_root_writable="/" in (held.written or ()),
            is_old=profile.version < VERSION,
        )

    def release(self, grant: Grant, ref: str) -> Applied:
        """Let a container go from its next start on.  Raises: ContainerNotFound."""
        confine(grant, self._runtime, ref, profile=None)
        return Applied(is_running=self._runtime.find(grant, ref).status in ALIVE)

    def list(self, grant: Grant) -> list[Profile]:
        """Return the tenant's profiles by name."""
        tenants = sorted(os.listdir(self._folder)) if self._folder.exists() else []
        wanted = [each for each in tenants if grant.tenant in (EVERY_TENANT, each)]
        found = []
        for tenant in wanted:
            for path in sorted((self._folder / tenant).glob("*.json")):
                try:
                    found.append(self._told(grant, tenant, self._read(tenant, path.stem)))
                except InvalidSpec as error:  # whoever names it is told
                    LOG.warning("a profile is left out", extra={"fields": {"reason": error.message}})
        return found

    def get(self, grant: Grant, name: str) -> Profile:
        """Return a profile.  Raises: ProfileNotFound."""
        return self._told(grant, grant.tenant, self._read(grant.tenant, name))

    def put(self, grant: Grant, name: str, *, text: bytes) -> Profile:
        """Keep a profile that another host told, as JSON.  Raises: InvalidSpec naming the line, NameTaken."""
        profile = read_profile(text, words=_WORDS)
        if profile.name != name or not _NAME.fullmatch(name):
            raise InvalidSpec(f"cannot keep profile `{profile.name}` as `{name}`", hint="both names are one")
        if profile.is_redacted:
            raise InvalidSpec(
                f"cannot keep profile `{name}`: folders or programs in it were hidden from who read it",
                hint="have it read by somebody from whom the policy hides nothing",
            )
        self._keep(grant.tenant, profile)
        return profile

    def delete(self, grant: Grant, name: str) -> None:
        """Forget a profile; containers that are held to it stay so.  Raises: ProfileNotFound."""
        try:
            self._path(grant.tenant, name).unlink()
        except FileNotFoundError:
            raise _not_found(name) from None

    def _path(self, tenant: str, name: str) -> Path:
        if not _NAME.fullmatch(name) or tenant == EVERY_TENANT:
            raise _not_found(name)
        return self._folder / tenant / f"{name}.json"

    def _read(self, tenant: str, name: str) -> Profile:
        try:
            data = self._path(tenant, name).read_bytes()
        except FileNotFoundError:
            raise _not_found(name) from None
        try:
            return read_profile(data, words=_WORDS)
        except InvalidSpec as error:
            raise InvalidSpec(
                f"{error.message}, in `{self._path(tenant, name)}`",
                hint=f"somebody has altered it: insula profile rm {name}, and record or import it anew",
            ) from error

    def _keep(self, tenant: str, profile: Profile) -> None:
        path = self._path(tenant, profile.name)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        with self._lock:
            if path.exists():
                raise NameTaken(
                    f"cannot keep profile `{profile.name}`: there is one of that name",
                    hint=f"another name, or insula profile rm {profile.name}",
                )
            part.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=1))
            part.replace(path)


def _not_found(name: str) -> ProfileNotFound:
    return ProfileNotFound(f"cannot find profile `{name}`", hint="insula profile ls lists them")
