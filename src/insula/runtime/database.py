# SPDX-License-Identifier: Apache-2.0
"""The daemon's SQLite file: connection, transactions, schema and its migrations.

What is stored and how it is found stands in `store.py`.  One connection behind one lock: every statement here takes
microseconds, and a second writer would only wait.  The journal is a write-ahead log; ordinary commits survive a crash
of the daemon (synchronous=NORMAL), durable ones also a crash of the host (synchronous=FULL).
Source: https://www.sqlite.org/wal.html, https://www.sqlite.org/pragma.html#pragma_synchronous
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from insula.model.errors import DiskFull, InsulaError

_FULL = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE})

BUSY_TIMEOUT_S = 5.0
"""Only another program (a backup, sqlite3 by hand) can hold the file: the daemon is alone by its lock file."""

Value = str | int | float | bytes | None
RecordType = TypeVar("RecordType", bound=msgspec.Struct)

#: Step n brings version n to n + 1.  Steps are never changed after a release, only added.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE containers (
        id TEXT PRIMARY KEY, tenant TEXT NOT NULL, name TEXT NOT NULL, created_at REAL NOT NULL,
        owner TEXT NOT NULL, generation INTEGER NOT NULL, record BLOB NOT NULL,
        UNIQUE (tenant, name)
    ) WITHOUT ROWID;
    CREATE TABLE images (id TEXT PRIMARY KEY, created_at REAL NOT NULL, record BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE image_names (
        tenant TEXT NOT NULL, name TEXT NOT NULL, image TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
        PRIMARY KEY (tenant, name)
    ) WITHOUT ROWID;
    CREATE INDEX image_names_image ON image_names (image);
    CREATE TABLE networks (
        id TEXT PRIMARY KEY, tenant TEXT NOT NULL, name TEXT NOT NULL, created_at REAL NOT NULL,
        record BLOB NOT NULL,
        UNIQUE (tenant, name)
    ) WITHOUT ROWID;
    CREATE TABLE leases (
        network TEXT NOT NULL, address TEXT NOT NULL, container TEXT NOT NULL, record BLOB NOT NULL,
        PRIMARY KEY (network, address)
    ) WITHOUT ROWID;
    CREATE INDEX leases_container ON leases (container);
    CREATE TABLE volumes (
        tenant TEXT NOT NULL, name TEXT NOT NULL, record BLOB NOT NULL, PRIMARY KEY (tenant, name)
    ) WITHOUT ROWID;
    CREATE TABLE hosts (
        name TEXT PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE, record BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE checkpoints (
        container TEXT NOT NULL, name TEXT NOT NULL, created_at REAL NOT NULL, record BLOB NOT NULL,
        PRIMARY KEY (container, name)
    ) WITHOUT ROWID;
    CREATE TABLE operations (
        id TEXT PRIMARY KEY, tenant TEXT NOT NULL, status TEXT NOT NULL, created_at REAL NOT NULL,
        record BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX operations_created ON operations (created_at);
    CREATE TABLE tenants (
        name TEXT PRIMARY KEY, position INTEGER NOT NULL UNIQUE, created_at REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE tokens (digest BLOB PRIMARY KEY, expires_at REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE journal (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    """,
    """
    CREATE TABLE quotas (tenant TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
    ALTER TABLE tenants ADD COLUMN removed_at REAL NOT NULL DEFAULT 0;
    """,
    """
    CREATE TABLE users (
        name TEXT PRIMARY KEY, origin TEXT NOT NULL, number INTEGER, fingerprint TEXT UNIQUE, tenant TEXT NOT NULL,
        record BLOB NOT NULL,
        UNIQUE (origin, number)
    ) WITHOUT ROWID;
    CREATE INDEX users_tenant ON users (tenant);
    CREATE TABLE api_tokens (
        id TEXT PRIMARY KEY, owner TEXT NOT NULL, digest BLOB NOT NULL, created_at REAL NOT NULL,
        expires_at REAL NOT NULL, record BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX api_tokens_owner ON api_tokens (owner);
    """,
    # Before there was a policy only admins could ask for more than everybody may.
    """
    UPDATE containers SET record = CAST(
        json_set(CAST(record AS TEXT), '$.creator', 'root', '$.creator_uid', 0, '$.creator_is_admin', json('true')) AS BLOB
    );
    """,
    """
    CREATE INDEX operations_tenant ON operations (tenant, created_at);
    """,
)


class Database:
    """An open file; closed by `close`.  All methods may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._after: list[Callable[[], None]] = []
        """What is called when the open transaction is committed."""
        self._connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "trusted_schema=OFF"):
            self._connection.execute(f"PRAGMA {pragma}")
        try:
            self._migrate()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the file; the write-ahead log is folded back into it."""
        with self._lock:
            self._connection.close()

    def _migrate(self) -> None:
        execute = self._connection.execute
        execute(
            "CREATE TABLE IF NOT EXISTS schema (only INTEGER PRIMARY KEY CHECK (only = 1), version INTEGER)"
        )
        execute("INSERT OR IGNORE INTO schema VALUES (1, 0)")
        version: int = execute("SELECT version FROM schema").fetchone()[0]
        if version > len(MIGRATIONS):
            raise InsulaError(
                f"cannot open the store: its version `{version}` is newer than this insulad's `{len(MIGRATIONS)}`",
                hint="start the insulad that wrote it, or a newer one",
            )
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            self._connection.executescript(
                f"BEGIN IMMEDIATE; {script}; UPDATE schema SET version = {number}; COMMIT;"
            )

    def read(self, statement: str, *values: Value) -> list[tuple[Value, ...]]:
        """Run a query and fetch everything."""
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def write(self, statement: str, *values: Value) -> int:
        """Run a change, in the open transaction if this thread has one.  Returns the number of rows.

        Raises: DiskFull; sqlite3.IntegrityError.
        """
        with self._lock, _translated():
            return self._connection.execute(statement, values).rowcount

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[None]:
        """Make the changes of the block all or none.  Other threads wait.

        durable: on disk when the block ends, whatever happens to the host.  The level cannot change within a
        transaction, so a durable block must be the outermost.  Raises: DiskFull, and nothing was changed.
        """
        with self._lock, _translated():
            if self._connection.in_transaction:
                yield
                return
            self._after.clear()
            if durable:
                self._connection.execute("PRAGMA synchronous=FULL")
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._connection.execute("COMMIT")
                except BaseException:
                    with suppress(sqlite3.OperationalError):  # a full disk has rolled it back already
                        self._connection.execute("ROLLBACK")
                    raise
            finally:
                if durable:
                    self._connection.execute("PRAGMA synchronous=NORMAL")
            after, self._after = self._after, []
        for call in after:
            call()

    def after_commit(self, call: Callable[[], None]) -> None:
        """Call when the open transaction of this thread is committed and others can use the file; without one, now.

        Who is told of a change may need a lock whose holder needs the file.  After a rollback nothing is called.
        """
        with self._lock:
            if self._connection.in_transaction:
                self._after.append(call)
                return
        call()

    def records(self, kind: type[RecordType], statement: str, *values: Value) -> list[RecordType]:
        """Run a query whose only column is a record."""
        return [msgspec.json.decode(_bytes(row[0]), type=kind) for row in self.read(statement, *values)]

    def record(self, kind: type[RecordType], statement: str, *values: Value) -> RecordType | None:
        """Run a query for at most one record."""
        found = self.records(kind, statement, *values)
        return found[0] if found else None


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what SQLite says of the disk into our errors."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode in _FULL:
            raise DiskFull(
                "cannot write the store: no space left", hint="free some space in the state folder"
            ) from error
        raise InsulaError(f"cannot use the store: {error}") from error


def encode(record: msgspec.Struct) -> bytes:
    """Return a record as it stands in its column."""
    return msgspec.json.encode(record)


def _bytes(value: Value) -> bytes:
    if isinstance(value, bytes):
        return value
    raise InsulaError(f"cannot read the store: a record column holds `{type(value).__name__}`")
