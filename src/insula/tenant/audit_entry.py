# SPDX-License-Identifier: Apache-2.0
"""What a line of the audit log says.  Pure."""

from dataclasses import dataclass

from insula.model.errors import Denied, QuotaExceeded, TooManyRequests, codes_below
from insula.model.grant import Action, Principal

Fields = dict[str, str | int | float | None]
UNCHANGED = "unchanged"
"""Result of what was asked for and was so already."""
MAX_PATH = 1000
"""Characters: none that means anything is longer."""
_ALWAYS = ("who", "tenant")
"""Fields that stand there also when they are empty."""
_LOOKS = frozenset({"GET", "HEAD"})
_REFUSALS = codes_below(Denied, QuotaExceeded, TooManyRequests)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    principal: Principal
    action: Action | None
    """None: nobody looked what was asked for."""
    method: str
    path: str
    """Without the query, and no more of it than MAX_PATH."""
    result: str
    """`ok`, UNCHANGED, or the code of the error."""
    tenant: str = ""
    """Whose things it was about."""
    asked_tenant: str = ""
    """The tenant that was named, where it was refused."""
    is_granted: bool = True
    """Whether the right to do it was there."""
    made: str = ""
    """Id of what came to be; its name where it has no other."""
    made_name: str = ""
    source: str = ""
    """Where it came from: `unix`, or an address."""
    pid: int | None = None
    """The process that connected, on this host."""
    began: int | None = None
    """When that process began, in clock ticks after boot: with the pid it is nobody else until the next boot."""
    seconds: float = 0.0
    times: int = 1
    """So many requests are told by this line; what differs between them is `*`, and the longest is told."""

    @property
    def is_change(self) -> bool:
        """Whether it made something other than it was: what looks, failed or found it so already did not."""
        return self.method not in _LOOKS and self.result == "ok"

    @property
    def is_allowed(self) -> bool:
        """Whether it was decided that it may be: what failed for another reason was allowed."""
        return self.is_granted and self.result not in _REFUSALS

    def fields(self) -> Fields:
        """Return what its line says, without what chains it."""
        who = self.principal
        every: Fields = {
            "who": who.name,
            "kind": who.kind.value,
            "uid": who.uid,
            "token": who.token,
            "from": self.source,
            "pid": self.pid,
            "pid_began": self.began,
            "action": self.action.value if self.action is not None else None,
            "method": self.method,
            "path": self.path if len(self.path) <= MAX_PATH else f"{self.path[:MAX_PATH]}…",
            "tenant": self.tenant,
            "asked_tenant": self.asked_tenant,
            "made": self.made,
            "made_name": self.made_name,
            "decision": "allowed" if self.is_allowed else "refused",
            "result": self.result,
            "times": self.times if self.times > 1 else None,
            "ms": round(self.seconds * 1000, 1),
        }
        return {key: value for key, value in every.items() if value not in ("", None) or key in _ALWAYS}
