# SPDX-License-Identifier: Apache-2.0
"""Bodies and queries that only the HTTP API knows; wishes and records stand in `model/`.  Pure."""

from typing import Annotated

import msgspec

from insula.model.record import ErrorBody, Fact, HostRecord
from insula.model.record import PathStat as PathStat
from insula.model.spec import Wish
from insula.tenant.policy import Rules

AUDIT_TAIL = 1000
"""Lines of the audit log that are read if nobody says how many."""
MAX_AUDIT_TAIL = 10_000
"""Lines that are held in memory at once."""
MAX_TAIL = 100_000_000
"""Lines of a container's log: more than there is room for in one."""


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what stands behind the `?`; `tenant` is taken out before."""


class NoQuery(Query, kw_only=True, frozen=True):
    pass


class ListQuery(Query, kw_only=True, frozen=True):
    all: bool = False


class DeleteQuery(Query, kw_only=True, frozen=True):
    force: bool = False
    volumes: bool = False


class WaitQuery(Query, kw_only=True, frozen=True):
    condition: str = "exited"


class LogsQuery(Query, kw_only=True, frozen=True):
    follow: bool = False
    tail: str = "all"
    since: float | None = None
    until: float | None = None
    stdout: bool = True
    stderr: bool = True


class AttachQuery(Query, kw_only=True, frozen=True):
    stdin: bool = False
    start: bool = False
    logs: bool = False
    rows: int = 0
    columns: int = 0


class StreamQuery(Query, kw_only=True, frozen=True):
    stream: bool = False


class PathQuery(Query, kw_only=True, frozen=True):
    path: str


class AuditQuery(Query, kw_only=True, frozen=True):
    since: float = 0.0
    tail: Annotated[int, msgspec.Meta(ge=0, le=MAX_AUDIT_TAIL)] = AUDIT_TAIL


class NameQuery(Query, kw_only=True, frozen=True):
    name: str


class Failure(Fact, kw_only=True, frozen=True):
    error: ErrorBody


class Created(Fact, kw_only=True, frozen=True):
    id: str
    name: str
    warnings: tuple[str, ...] = ()


class Ended(Fact, kw_only=True, frozen=True):
    """How a container ended.  exit_code: None if nobody will ever know."""

    exit_code: int | None
    error: str = ""


class ExecStarted(Fact, kw_only=True, frozen=True):
    id: str


class Version(Fact, kw_only=True, frozen=True):
    version: str
    api: int
    kernel: str
    host: str


class HostFacts(Fact, kw_only=True, frozen=True):
    name: str
    version: str
    kernel: str
    cpus: int
    memory_bytes: int
    cgroups: str
    criu: str
    containers: dict[str, int]
    images: int
    state_folder: str
    fingerprint: str = ""
    """SHA-256 of its certificate: the pin by which clients know it."""


class AuditVerdict(Fact, kw_only=True, frozen=True):
    lines: int
    files: int
    problem: str
    """Empty: every line is as it was written."""


class HostView(HostRecord, kw_only=True, frozen=True):
    reachable: bool


class PolicyText(Wish, kw_only=True, frozen=True):
    """A policy, rules, or a list of exports, to be looked at, in TOML."""

    text: str
    file: str = "FILE"
    """How it is called in what is said of it."""


class PolicyView(Fact, kw_only=True, frozen=True):
    path: str
    text: str
    """As it was read; what the file holds now may be newer."""
    rules: Rules


class PairingToken(Fact, kw_only=True, frozen=True):
    token: str
    address: str
    fingerprint: str
    expires_s: int


class PairRequest(Fact, kw_only=True, frozen=True):
    """What a host that holds a token says to the one that printed it."""

    name: str
    address: str
    token: str
    certificate: str
    """PEM."""


class PairAnswer(Fact, kw_only=True, frozen=True):
    name: str
    certificate: str
