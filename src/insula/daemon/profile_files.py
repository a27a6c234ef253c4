# SPDX-License-Identifier: Apache-2.0
"""The profiles that tenants keep: `<folder>/<tenant>/<name>.json`.  They lie beside every limit of a disk, so they are counted."""

import itertools
import re
import threading
from pathlib import Path

import msgspec
from msgspec.structs import replace

from insula.kernel import caps, syscalls
from insula.model.errors import InvalidSpec, NameTaken, ProfileNotFound
from insula.model.grant import EVERY_TENANT
from insula.model.profile import Profile
from insula.model.profile_name import PROFILE_NAME, name_like
from insula.model.profile_text import Words, read_profile
from insula.model.quota import Allowance, Resource

_NAME = re.compile(PROFILE_NAME)
_WORDS = Words(calls=syscalls.names(), capabilities=frozenset(caps.NAMES))


def parse(text: bytes, *, name: str) -> Profile:
    """Return the profile that a text is.  Raises: InvalidSpec naming the line, or if it has another name."""
    profile = read_profile(text, words=_WORDS)
    if profile.name != name or not _NAME.fullmatch(name):
        raise InvalidSpec(f"cannot keep profile `{profile.name}` as `{name}`", hint="both names are one")
    return profile


class ProfileFiles:
    """The kept profiles of one host.  From any thread."""

    def __init__(self, folder: Path, allowance: Allowance) -> None:
        self._folder = folder
        self._allowance = allowance
        self._lock = threading.Lock()

    def tenants(self) -> list[str]:
        """Return who has kept some, by name."""
        return sorted(each.name for each in self._folder.iterdir()) if self._folder.exists() else []

    def names(self, tenant: str) -> list[str]:
        """Return the names of a tenant's profiles, sorted."""
        return sorted(each.stem for each in (self._folder / tenant).glob("*.json"))

    def count(self, tenant: str) -> int:
        """Count a tenant's profiles."""
        return len(self.names(tenant))

    def read(self, tenant: str, name: str) -> Profile:
        """Return a profile.  Raises: ProfileNotFound; InvalidSpec if its file was altered."""
        path = self._path(tenant, name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise _not_found(name) from None
        try:
            return read_profile(data, words=_WORDS)
        except InvalidSpec as error:
            raise InvalidSpec(
                f"{error.message}, in `{path}`",
                hint=f"somebody has altered it: insula profile rm {name}, and record or import it anew",
            ) from error

    def keep(self, tenant: str, profile: Profile) -> None:
        """Keep one more profile.  Raises: NameTaken, QuotaExceeded, ProfileNotFound for what is no name."""
        path = self._path(tenant, profile.name)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        with self._lock:
            if path.exists():
                raise NameTaken(
                    f"cannot keep profile `{profile.name}`: there is one of that name",
                    hint=f"another name, or insula profile rm {profile.name}",
                )
            self._allowance.check(tenant, Resource.PROFILES, used=self.count(tenant))
            part.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=1))
            part.replace(path)

    def keep_somehow(self, tenant: str, profile: Profile) -> str:
        """Keep a profile that nobody waits for under the first free name: its own, or that with a number.

        Returns: the name.  Raises: QuotaExceeded.
        """
        names = (name_like(profile.name, number=number) for number in itertools.count(1))
        return next(name for name in names if self._is_kept(tenant, replace(profile, name=name)))

    def delete(self, tenant: str, name: str) -> None:
        """Forget a profile.  Raises: ProfileNotFound."""
        try:
            self._path(tenant, name).unlink()
        except FileNotFoundError:
            raise _not_found(name) from None

    def _is_kept(self, tenant: str, profile: Profile) -> bool:
        try:
            self.keep(tenant, profile)
        except NameTaken:
            return False
        return True

    def _path(self, tenant: str, name: str) -> Path:
        if not _NAME.fullmatch(name) or tenant == EVERY_TENANT:
            raise _not_found(name)
        return self._folder / tenant / f"{name}.json"


def _not_found(name: str) -> ProfileNotFound:
    return ProfileNotFound(f"cannot find profile `{name}`", hint="insula profile ls lists them")
