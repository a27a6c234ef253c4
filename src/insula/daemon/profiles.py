# SPDX-License-Identifier: Apache-2.0
"""Profiles of containers: recorded, kept, imported, and what containers are held to.

Their files: `profile_files.py`.  Recordings under way: `recordings.py`.
"""

import logging

from insula.daemon.profile_files import ProfileFiles, parse
from insula.daemon.recordings import Recordings
from insula.daemon.sight import Sight
from insula.daemon.watching import Watching
from insula.model.errors import InvalidSpec
from insula.model.grant import EVERY_TENANT, Grant
from insula.model.lifecycle import ALIVE
from insula.model.profile import VERSION, Applied, ApplyWish, Profile, applied
from insula.model.profile_name import name_like
from insula.monitor.collect import Collector
from insula.runtime.confine import confine
from insula.runtime.context import Runtime

LOG = logging.getLogger(__name__)


class ProfileDesk:
    """The `Profiles` of `api/watch.py`."""

    def __init__(
        self, runtime: Runtime, collector: Collector, watching: Watching, *, sight: Sight, files: ProfileFiles
    ) -> None:
        self._sight = sight
        self._runtime = runtime
        self._files = files
        self.recordings = Recordings(
            runtime, collector, watching, folder=runtime.folders.state / "recordings", keep=files.keep_somehow
        )

    def record(self, grant: Grant, ref: str) -> None:
        """Begin to record.  Raises: ContainerNotFound; WrongState if it is recorded already; Unsupported."""
        self.recordings.begin(self._runtime.find(grant, ref))

    def recorded(self, grant: Grant, ref: str) -> Profile:
        """Return what has been recorded of a container so far.  Raises: WrongState if it is not recorded."""
        record = self._runtime.find(grant, ref)
        return self._told(grant, record.tenant, self.recordings.profile(record, name=name_like(record.name)))

    def save(self, grant: Grant, ref: str, *, name: str) -> Profile:
        """End a recording and keep it.  Raises: WrongState, NameTaken, QuotaExceeded."""
        record = self._runtime.find(grant, ref)
        profile = self.recordings.profile(record, name=name)
        self._files.keep(record.tenant, profile)
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
        profile = self._files.read(record.tenant, wish.profile)
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
        found = []
        for tenant in self._files.tenants():
            if grant.tenant not in (EVERY_TENANT, tenant):
                continue
            for name in self._files.names(tenant):
                try:
                    found.append(self._told(grant, tenant, self._files.read(tenant, name)))
                except InvalidSpec as error:  # whoever names it is told
                    LOG.warning("a profile is left out", extra={"fields": {"reason": error.message}})
        return found

    def get(self, grant: Grant, name: str) -> Profile:
        """Return a profile.  Raises: ProfileNotFound."""
        return self._told(grant, grant.tenant, self._files.read(grant.tenant, name))

    def put(self, grant: Grant, name: str, *, text: bytes) -> Profile:
        """Keep a profile that another host told, as JSON.  Raises: InvalidSpec naming the line, NameTaken, QuotaExceeded."""
        profile = parse(text, name=name)
        if profile.is_redacted:
            raise InvalidSpec(
                f"cannot keep profile `{name}`: folders or programs in it were hidden from who read it",
                hint="have it read by somebody from whom the policy hides nothing",
            )
        self._files.keep(grant.tenant, profile)
        return profile

    def delete(self, grant: Grant, name: str) -> None:
        """Forget a profile; containers that are held to it stay so.  Raises: ProfileNotFound."""
        self._files.delete(grant.tenant, name)
