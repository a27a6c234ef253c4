# SPDX-License-Identifier: Apache-2.0
"""What the daemon remembers of itself: paired hosts, pairing tokens, operations, the places of tenants, the journal.

What tenants own stands in `store.py`, which extends this; users and tokens in `people.py`; the file itself in
`database.py`.
"""

import itertools
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass

from insula.model.errors import HostNotFound, NameTaken, OperationNotFound
from insula.model.quota import Quota
from insula.model.record import HostRecord, OperationRecord, OperationStatus
from insula.runtime.database import encode
from insula.runtime.people import People


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRecord:
    """A tenant's place among the uid ranges; it keeps it for ever."""

    name: str
    position: int
    created_at: float


def _first_free(taken: set[int]) -> int:
    return next(each for each in itertools.count() if each not in taken)


class Ledger(People):
    """The daemon's own books."""

    # hosts and pairing tokens

    def list_hosts(self) -> list[HostRecord]:
        """Return the paired hosts by name."""
        return self.records(HostRecord, "SELECT record FROM hosts ORDER BY name")

    def get_host(self, name: str) -> HostRecord:
        """Return the paired host of that name.

        Raises: HostNotFound.
        """
        record = self.record(HostRecord, "SELECT record FROM hosts WHERE name = ?", name)
        if record is None:
            raise HostNotFound(f"cannot find host `{name}`", hint="insula host ls lists the paired ones")
        return record

    def find_host_by_fingerprint(self, fingerprint: str) -> HostRecord | None:
        """Return the host whose pinned certificate that is."""
        return self.record(HostRecord, "SELECT record FROM hosts WHERE fingerprint = ?", fingerprint)

    def save_host(self, record: HostRecord) -> None:
        """Remember a paired host.  The same host (by its pin) may come back under another name or address.

        Raises: NameTaken if another host has the name.
        """
        with self.transaction(durable=True):
            self.write("DELETE FROM hosts WHERE fingerprint = ?", record.fingerprint)
            try:
                self.write(
                    "INSERT INTO hosts VALUES (?, ?, ?)", record.name, record.fingerprint, encode(record)
                )
            except sqlite3.IntegrityError as error:
                raise NameTaken(
                    f"cannot pair with host `{record.name}`: another host has that name",
                    hint=f"remove it first: insula host rm {record.name}",
                ) from error

    def delete_host(self, name: str) -> None:
        """Forget a paired host: its certificate is refused from now on.

        Raises: HostNotFound.
        """
        with self.transaction(durable=True):
            if not self.write("DELETE FROM hosts WHERE name = ?", name):
                raise HostNotFound(f"cannot remove host `{name}`: there is none")

    def add_token(self, digest: bytes, *, expires_at: float) -> None:
        """Remember the digest of a pairing token; expired ones go."""
        with self.transaction():
            self.write("DELETE FROM tokens WHERE expires_at < ?", time.time())
            self.write("INSERT INTO tokens VALUES (?, ?)", digest, expires_at)

    def list_tokens(self, *, now: float) -> list[bytes]:
        """Return the digests that have not expired."""
        rows = self.read("SELECT digest FROM tokens WHERE expires_at >= ?", now)
        return [row[0] for row in rows if isinstance(row[0], bytes)]

    def take_token(self, digest: bytes) -> bool:
        """Use a token up.  Only one caller ever gets True."""
        with self.transaction(durable=True):
            return self.write("DELETE FROM tokens WHERE digest = ?", digest) == 1

    # operations

    def save_operation(self, record: OperationRecord) -> None:
        """Remember an operation, new or changed."""
        self.write(
            "INSERT INTO operations VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
            " status = excluded.status, record = excluded.record",
            *(record.id, record.tenant, record.status.value, record.created_at, encode(record)),
        )

    def get_operation(self, operation_id: str) -> OperationRecord:
        """Return the operation of that id.

        Raises: OperationNotFound.
        """
        record = self.record(OperationRecord, "SELECT record FROM operations WHERE id = ?", operation_id)
        if record is None:
            raise OperationNotFound(
                f"cannot find operation `{operation_id}`", hint="insula operation ls lists them"
            )
        return record

    def list_operations(
        self, tenant: str | None = None, *, status: OperationStatus | None = None
    ) -> list[OperationRecord]:
        """Return the operations, oldest first."""
        return self.records(
            OperationRecord,
            "SELECT record FROM operations WHERE (?1 IS NULL OR tenant = ?1) AND (?2 IS NULL OR status = ?2)"
            " ORDER BY created_at, id",
            tenant,
            status.value if status else None,
        )

    def prune_operations(self, tenant: str, *, keep: int) -> int:
        """Forget all but the newest ended operations of a tenant.  Returns how many went."""
        return self.write(
            "DELETE FROM operations WHERE tenant = ?1 AND status != ?2 AND id NOT IN"
            " (SELECT id FROM operations WHERE tenant = ?1 AND status != ?2 ORDER BY created_at DESC LIMIT ?3)",
            *(tenant, OperationStatus.RUNNING.value, keep),
        )

    # tenants

    def tenant(self, name: str, *, choose: Callable[[set[int]], int] = _first_free) -> TenantRecord:
        """Return the tenant's place.  Whether it has uids: `tenant/idmap.py`.

        choose: returns a place for a new one, of those that are given; they include the places of removed tenants.
        """
        with self.transaction():
            rows = self.read("SELECT position, created_at, removed_at FROM tenants WHERE name = ?", name)
            if rows:
                position, created_at, removed_at = rows[0]
                if removed_at:
                    self.write("UPDATE tenants SET removed_at = 0 WHERE name = ?", name)
                return TenantRecord(name=name, position=int(position or 0), created_at=float(created_at or 0))
            taken = {int(place or 0) for (place,) in self.read("SELECT position FROM tenants")}
            position = choose(taken)
            record = TenantRecord(name=name, position=position, created_at=time.time())
            self.write(
                "INSERT INTO tenants (name, position, created_at) VALUES (?, ?, ?)",
                *(name, record.position, record.created_at),
            )
            return record

    def list_tenants(self) -> list[TenantRecord]:
        """Return all tenants, the oldest first, without those that were removed."""
        rows = self.read(
            "SELECT name, position, created_at FROM tenants WHERE removed_at = 0 ORDER BY created_at, name"
        )
        return [
            TenantRecord(name=str(name), position=int(position or 0), created_at=float(created_at or 0))
            for name, position, created_at in rows
        ]

    def find_tenant(self, name: str) -> TenantRecord | None:
        """Return a tenant that there is; one that was removed is not."""
        return next((each for each in self.list_tenants() if each.name == name), None)

    def remove_tenant(self, name: str) -> None:
        """Forget a tenant's limits, and list it no more.  Its place in the order of uids stays its own for ever."""
        with self.transaction(durable=True):
            self.write("DELETE FROM quotas WHERE tenant = ?", name)
            self.write("UPDATE tenants SET removed_at = ? WHERE name = ?", time.time(), name)

    def quota(self, tenant: str) -> Quota:
        """Return a tenant's own limits, empty if it has none."""
        statement = "SELECT record FROM quotas WHERE tenant = ?"
        return self.record(Quota, statement, tenant) or Quota()

    def save_quota(self, tenant: str, quota: Quota) -> None:
        """Remember a tenant's limits."""
        self.write("INSERT OR REPLACE INTO quotas VALUES (?, ?)", tenant, encode(quota))

    # the journal: what a migration must know after a crash

    def write_journal(self, key: str, value: bytes) -> None:
        """Remember a value under a key, on disk when it returns."""
        with self.transaction(durable=True):
            self.write("INSERT OR REPLACE INTO journal VALUES (?, ?)", key, value)

    def read_journal(self, key: str) -> bytes | None:
        """Return the value of a key."""
        rows = self.read("SELECT value FROM journal WHERE key = ?", key)
        return rows[0][0] if rows and isinstance(rows[0][0], bytes) else None

    def list_journal(self, prefix: str) -> list[str]:
        """Return the keys that begin with the prefix."""
        rows = self.read(
            "SELECT key FROM journal WHERE substr(key, 1, ?) = ? ORDER BY key", len(prefix), prefix
        )
        return [str(row[0]) for row in rows]

    def delete_journal(self, key: str) -> None:
        """Forget a key, on disk when it returns.  Nothing happens if it is unknown."""
        with self.transaction(durable=True):
            self.write("DELETE FROM journal WHERE key = ?", key)
