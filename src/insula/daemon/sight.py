# SPDX-License-Identifier: Apache-2.0
"""What of containers' doings is told to whom, by the policy of this moment.  What is hidden and how: `tenant/redaction.py`."""

from collections.abc import Callable

from insula.api import auth
from insula.daemon.rights import PolicyFile
from insula.model.grant import Principal
from insula.model.monitor import Event
from insula.tenant.policy import EXPORT, Reader, redaction
from insula.tenant.redaction import NOTHING_HIDDEN, Redaction


class Sight:
    """The `Sight` of `api/watch.py`."""

    def __init__(self, policy_file: PolicyFile) -> None:
        self._policy = policy_file

    def of_reader(self, principal: Principal, tenant: str) -> Redaction:
        """Return what is hidden from somebody of what containers of a tenant do."""
        if principal.is_peer:
            return NOTHING_HIDDEN  # it tells its own readers, and by its own policy
        return redaction(self._policy.rules, _reader(principal), tenant=tenant)

    def of_export(self, tenant: str) -> Redaction:
        """Return what is hidden in what leaves this host without a reader who asks."""
        return redaction(self._policy.rules, Reader(role=EXPORT), tenant=tenant)

    def redact(self, principal: Principal, tenant: str) -> Callable[[Event], Event]:
        """Return what takes away from event after event, also when the policy changes meanwhile."""
        rules = self._policy.rules
        hidden = self.of_reader(principal, tenant)

        def redact(event: Event) -> Event:
            nonlocal rules, hidden
            if rules is not self._policy.rules:
                rules = self._policy.rules
                hidden = self.of_reader(principal, tenant)
            return hidden.event(event)

        return redact


def _reader(principal: Principal) -> Reader:
    groups = frozenset(map(auth.group_name, principal.groups))
    return Reader(role=principal.role.value, name=principal.name, groups=groups)
