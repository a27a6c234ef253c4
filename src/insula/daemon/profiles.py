# SPDX-License-Identifier: Apache-2.0
"""Profiles of containers that are kept, a JSON file each, and what containers are held to.

Recordings under way: `recordings.py`.
"""

import itertools
import logging
import os
import re
import threading
from pathlib import Path

import msgspec
from msgspec.structs import replace

from insula.daemon.recordings import Recordings
from insula.daemon.sight import Sight
from insula.daemon.watching import Watching
from insula.kernel import caps, syscalls
from insula.model.errors import InvalidSpec, NameTaken, ProfileNotFound
from insula.model.grant import EVERY_TENANT, Grant
from insula.model.lifecycle import ALIVE
from insula.model.profile import VERSION, Applied, ApplyWish, Profile, applied
from insula.model.profile_text import Words, read_profile
from insula.model.spec import PROFILE_NAME
from insula.monitor.collect import Collector
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
        self._folder = folder
        self._lock = threading.Lock()
        self.recordings = Recordings(
            runtime, collector, watching, folder=folder.with_name("recordings"), keep=self._keep_somehow
        )

    def record(self, grant: Grant, ref: str) -> None:
        """Begin to record.  Raises: ContainerNotFound; WrongState if it is recorded already; Unsupported."""
        self.recordings.begin(self._runtime.find(grant, ref))

    def recorded(self, grant: Grant, ref: str) -> Profile:
        """Return what has been recorded of a container so far.  Raises: WrongState if it is not recorded."""
        record = self._runtime.find(grant, ref)
        return self._told(grant, record.tenant, self.recordings.profile(record, name=record.name))

    def save(self, grant: Grant, ref: str, *, name: str) -> Profile:
        """End a recording and keep it.  Raises: WrongState, NameTaken."""
        record = self._runtime.find(grant, ref)
        profile = self.recordings.profile(record, name=name)
        self._keep(record.tenant, profile)
        self.recordings.end(record.id)
        return self._told(grant, record.tenant, profile)

    def close(self) -> None:
        """Write recordings down, for the next insulad to go on with."""
        self.recordings.close()

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

    def _keep_somehow(self, tenant: str, profile: Profile) -> str:
        """Keep a profile that nobody waits for under the first free name: its own, or that with a number."""
        names = itertools.chain(
            (profile.name,), (f"{profile.name}-{number}" for number in itertools.count(2))
        )
        return next(name for name in names if self._is_kept(tenant, replace(profile, name=name)))

    def _is_kept(self, tenant: str, profile: Profile) -> bool:
        try:
            self._keep(tenant, profile)
        except NameTaken:
            return False
        return True


def _not_found(name: str) -> ProfileNotFound:
    return ProfileNotFound(f"cannot find profile `{name}`", hint="insula profile ls lists them")
