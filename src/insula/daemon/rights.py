# SPDX-License-Identifier: Apache-2.0
"""What whom is permitted to ask for now: the policy file, and the people it is about.

The file is read at the start, at SIGHUP and at `insula policy reload`; a wrong one is refused and the one before stays.
A missing file is an empty policy.  What the keys mean: `tenant/policy.py`.
"""

import logging
import pwd
import threading
from dataclasses import replace
from pathlib import Path

from insula.api import auth
from insula.api.bodies import PolicyView
from insula.daemon.config_file import read_roots_file
from insula.kernel import caps
from insula.model.errors import Denied, InvalidPolicy
from insula.model.grant import Grant, Principal
from insula.model.permit import EVERYTHING, FileUser, Permit
from insula.model.record import ContainerRecord
from insula.runtime.people import People
from insula.tenant import policy

LOG = logging.getLogger(__name__)


class PolicyFile:
    """The policy that counts."""

    def __init__(self, path: Path) -> None:
        """Raises: InvalidPolicy, so that insulad does not start with less than its administrator means."""
        self.path = path
        self._lock = threading.Lock()
        self._text, self.rules = self._read()

    def _read(self) -> tuple[str, policy.Rules]:
        text = read_roots_file(self.path, name="policy", max_bytes=policy.MAX_BYTES, error=InvalidPolicy)
        return text, self.parse(text)

    def parse(self, text: str) -> policy.Rules:
        """Read a policy's text.  Raises: InvalidPolicy with line and reason."""
        return policy.parse(text, known_capabilities=caps.ALL)

    def check(self, text: str) -> None:
        """Read a policy's text and change nothing.  Raises: InvalidPolicy."""
        self.parse(text)

    def view(self) -> PolicyView:
        """Return what counts now."""
        return PolicyView(path=str(self.path), text=self._text, rules=self.rules)

    def reload(self) -> PolicyView:
        """Let the file count from now on.  Raises: InvalidPolicy, and nothing has changed."""
        with self._lock:
            self._text, self.rules = self._read()
        LOG.info("policy read", extra={"fields": {"path": str(self.path)}})
        return self.view()

    def reload_or_keep(self) -> None:
        """As `reload`, for a signal: what is wrong goes to the log."""
        try:
            self.reload()
        except InvalidPolicy as error:
            LOG.error("policy refused, the old one stays", extra={"fields": {"reason": error.message}})


class Rights:
    """The permits of everybody: `model/permit.py`."""

    def __init__(self, people: People, policy_file: PolicyFile, *, admins: frozenset[str]) -> None:
        self._people = people
        self._policy = policy_file
        self._admins = admins

    def of_caller(self, grant: Grant) -> Permit:
        """Return what the one who asks now may ask for."""
        return self._of(grant.principal, is_admin=grant.principal.is_admin)

    def of_creator(self, record: ContainerRecord) -> Permit:
        """Return what the one who made a container may ask for now.

        If that one is not known any more, or works for another tenant: what everybody of the container's tenant may.
        """
        maker = self._maker(record)
        if maker is None or not (maker.is_admin or maker.tenant == record.tenant):
            return self.of_tenant(record.tenant)
        return self._of(maker, is_admin=maker.is_admin and record.creator_is_admin)

    def of_tenant(self, tenant: str) -> Permit:
        """Return what is permitted to anybody of a tenant."""
        found = policy.permit(self._policy.rules, policy.Asker(tenant=tenant))
        if tenant == auth.account(0).login:
            # What root made elsewhere may publish here what it published there.
            return replace(found, low_ports=policy.LOW_PORTS)
        return found

    def _of(self, principal: Principal, *, is_admin: bool) -> Permit:
        if is_admin:
            return EVERYTHING
        asker = policy.Asker(
            tenant=principal.tenant,
            name=principal.name,
            groups=frozenset(map(auth.group_name, principal.groups)),
            opens_as=_file_user(principal),
        )
        return policy.permit(self._policy.rules, asker)

    def _maker(self, record: ContainerRecord) -> Principal | None:
        """Return who made a container, as of now; None: nobody who may give commands."""
        if not record.creator:
            return None
        known = auth.present(self._people, admins=self._admins)
        try:
            return auth.absent(record.creator, uid=record.creator_uid, known=known)
        except Denied:
            return None


def _file_user(principal: Principal) -> FileUser | None:
    # Root's own files are for who acts as an admin, and not for a token that root has made for less.
    if not principal.uid or principal.gid is None:
        return None
    try:
        home = pwd.getpwuid(principal.uid).pw_dir
    except KeyError:
        return None
    return FileUser(
        name=principal.name, uid=principal.uid, gid=principal.gid, groups=principal.groups, home=home
    )
