# SPDX-License-Identifier: Apache-2.0
"""The figures of the last hour, in a SQLite file of their own: bounded in samples and in bytes, nothing worth a backup.

A sample holds what was used since the one before, so that any number of them can be added up.  Ticks (one each interval, of
all containers) come in order, and rows are keyed by them: what is written each time lies on neighbouring pages, which
matters more than reading, that is done by a look at each tick.  A file that cannot be read, or of another version, is
begun anew.  Out of scope: taking samples (`daemon/sampler.py`), and who may see them.
Source: https://www.sqlite.org/wal.html, https://www.sqlite.org/pragma.html
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from insula.model.errors import InsulaError
from insula.model.history import INTERVAL_S, KEPT_S, CallShare, Sample, Usage

VERSION = 2
MAX_TICKS = int(KEPT_S / INTERVAL_S)
MAX_BYTES = 256 << 20
"""An hour of 500 containers takes 15 MB; beyond this the oldest tenth goes."""
MAX_SHARES = 20
"""System calls, and their errors, told of one span."""

_SCHEMA = f"""
    BEGIN;
    CREATE TABLE ticks (tick INTEGER PRIMARY KEY, at REAL NOT NULL);
    CREATE TABLE containers (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE);
    CREATE TABLE samples (
        tick INTEGER NOT NULL, container INTEGER NOT NULL, seconds REAL NOT NULL, cpu_us INTEGER NOT NULL,
        memory_bytes INTEGER NOT NULL, pids INTEGER NOT NULL, cpu_wait_us INTEGER, memory_wait_us INTEGER, io_wait_us INTEGER,
        read_bytes INTEGER NOT NULL, written_bytes INTEGER NOT NULL, received_bytes INTEGER NOT NULL,
        sent_bytes INTEGER NOT NULL, calls INTEGER, failures INTEGER,
        PRIMARY KEY (tick, container)
    ) WITHOUT ROWID;
    CREATE TABLE shares (
        tick INTEGER NOT NULL, container INTEGER NOT NULL, call TEXT NOT NULL, error TEXT NOT NULL, count INTEGER NOT NULL,
        PRIMARY KEY (tick, container, call, error)
    ) WITHOUT ROWID;
    PRAGMA user_version = {VERSION};
    COMMIT;
"""
_INSERT = f"INSERT INTO samples VALUES ({', '.join('?' * 15)})"
_SUMS = "cpu_wait_us memory_wait_us io_wait_us read_bytes written_bytes received_bytes sent_bytes"
#: Field of `Usage` → how the samples of a span become it.
_FIELDS = {
    "at": "max(t.at)",
    "seconds": "round(sum(seconds), 6)",
    "cpu_us": "sum(cpu_us)",
    "cpu_peak_percent": "round(max(cpu_us / seconds) / 1e4, 2)",
    "memory_bytes": "CAST(avg(memory_bytes) AS INTEGER)",
    "memory_peak_bytes": "max(memory_bytes)",
    "pids_peak": "max(pids)",
    **{name: f"sum({name})" for name in _SUMS.split()},
    "counted_seconds": "round(sum(iif(calls IS NULL, 0.0, seconds)), 3)",
    "calls": "coalesce(sum(calls), 0)",
    "failures": "coalesce(sum(failures), 0)",
}
#: Tick by tick, then by the index of `samples`.  Where a step has no length each tick is a span.
_SPANS = f"""
    SELECT s.container, min(t.tick), max(t.tick), {", ".join(_FIELDS.values())}
    FROM ticks t CROSS JOIN samples s ON s.tick = t.tick AND s.container IN (%s)
    WHERE t.at > :since AND seconds > 0
    GROUP BY s.container, CASE WHEN :step > 0 THEN CAST(t.at / :step AS INTEGER) ELSE t.tick END
    ORDER BY s.container, max(t.at)
"""
_SHARES = """
    SELECT call, error, sum(count) FROM ticks t CROSS JOIN shares s ON s.tick = t.tick AND s.container = ?
    WHERE t.tick BETWEEN ? AND ? GROUP BY call, error ORDER BY 3 DESC
"""


class History:
    """An open file.  One thread writes, any may read."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._writer = _open_or_begin(path)
        self._writing = threading.Lock()
        self._reader = _connect(path)
        self._reading = threading.Lock()
        self._numbers: dict[str, int] = dict(self._writer.execute("SELECT id, number FROM containers"))
        self._next = 1 + (self._writer.execute("SELECT max(tick) FROM ticks").fetchone()[0] or 0)

    def close(self) -> None:
        """Close the file."""
        with self._reading, self._writing:
            self._reader.close()
            self._writer.close()

    def add(self, samples: Sequence[Sample], *, at: float) -> None:
        """Keep what was used up to now (`at`), and let go of what is too old.

        Raises: InsulaError if the disk is full; then nothing was kept.
        """
        with self._writing, _translated(), self._transaction():
            tick = self._next
            self._let_go(older_than=at - KEPT_S)
            self._writer.execute("INSERT INTO ticks VALUES (?, ?)", (tick, at))
            numbers = [self._number(sample.container) for sample in samples]
            self._writer.executemany(
                _INSERT,
                ((tick, number, *sample[1:-1]) for number, sample in zip(numbers, samples, strict=True)),
            )
            for number, sample in zip(numbers, samples, strict=True):
                if sample.shares:
                    self._add_shares(tick, number, shares=sample.shares)
        self._next = tick + 1

    def forget(self, containers: Iterable[str]) -> None:
        """Let go of what is known of containers that are no more.  Raises: InsulaError."""
        with self._writing, _translated():
            gone = [number for each in containers if (number := self._numbers.pop(each, 0))]
            if not gone:
                return
            with self._transaction():
                marks = ", ".join(map(str, gone))
                for table, column in (
                    ("samples", "container"),
                    ("shares", "container"),
                    ("containers", "number"),
                ):
                    self._writer.execute(f"DELETE FROM {table} WHERE {column} IN ({marks})")

    @property
    def last_at(self) -> float | None:
        """When something was written down last; None: nothing is."""
        with self._reading:
            found: float | None = self._reader.execute("SELECT max(at) FROM ticks").fetchone()[0]
        return found

    def known(self) -> frozenset[str]:
        """Return the containers of which there may be samples."""
        return frozenset(self._numbers)

    def usage(self, names: Mapping[str, str], *, since: float, step_s: float = 0.0) -> list[Usage]:
        """Return what containers used since then, in spans of `step_s` seconds, each container's in order.

        step_s: 0: as they were sampled; infinite: one span.  names: of the containers that are meant, by their ids.
        """
        meant = {number: each for each in names if (number := self._numbers.get(each)) is not None}
        if not meant:
            return []
        statement = _SPANS % ", ".join(map(str, meant))
        with self._reading, _translated():
            rows = self._reader.execute(statement, {"since": since, "step": step_s}).fetchall()
            return [self._span(meant[row[0]], names[meant[row[0]]], row=row) for row in rows]

    def _span(self, container: str, name: str, *, row: Sequence[Any]) -> Usage:
        number, first, last, *values = row
        fields = dict(zip(_FIELDS, values, strict=True))
        top_calls: dict[str, int] = {}
        top_errors: dict[str, int] = {}
        for share in self._shares(number, first=first, last=last) if fields["counted_seconds"] else ():
            top, key = (top_errors, f"{share.call} {share.error}") if share.error else (top_calls, share.call)
            if len(top) < MAX_SHARES:
                top[key] = share.times
        return Usage(id=container, name=name, top_calls=top_calls, top_errors=top_errors, **fields)

    def _shares(self, number: int, *, first: int, last: int) -> list[CallShare]:
        return [CallShare(*row) for row in self._reader.execute(_SHARES, (number, first, last))]

    def _number(self, container: str) -> int:
        known = self._numbers.get(container)
        if known is not None:
            return known
        row = self._writer.execute("INSERT INTO containers (id) VALUES (?) RETURNING number", (container,))
        self._numbers[container] = number = int(row.fetchone()[0])
        return number

    def _add_shares(self, tick: int, number: int, *, shares: Iterable[CallShare]) -> None:
        self._writer.executemany(
            "INSERT OR IGNORE INTO shares VALUES (?, ?, ?, ?, ?)",
            ((tick, number, *share) for share in shares),
        )

    def _let_go(self, *, older_than: float) -> None:
        (first,) = self._writer.execute("SELECT min(tick) FROM ticks WHERE at > ?", (older_than,)).fetchone()
        keep = max(self._next - MAX_TICKS + 1, self._next if first is None else first)
        if self._used_bytes() > self._max_bytes:
            (oldest, newest) = self._writer.execute("SELECT min(tick), max(tick) FROM ticks").fetchone()
            if oldest is not None:
                keep = max(keep, oldest + 1 + (newest - oldest) // 10)
        for table in ("ticks", "samples", "shares"):
            self._writer.execute(f"DELETE FROM {table} WHERE tick < ?", (keep,))

    def _used_bytes(self) -> int:
        pages, free, size = (
            int(self._writer.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:  # a full disk has rolled it back already
                self._writer.execute("ROLLBACK")
            # Numbers that were given within it are no more.
            self._numbers = dict(self._writer.execute("SELECT id, number FROM containers"))
            raise


def _open_or_begin(path: Path) -> sqlite3.Connection:
    """Open the file; one that is damaged or of another version is begun anew: it held no more than an hour."""
    try:
        connection = _connect(path)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == VERSION and connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok":
            return connection
        connection.close()
    except sqlite3.DatabaseError:
        pass
    for each in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        each.unlink(missing_ok=True)
    connection = _connect(path)
    connection.executescript(_SCHEMA)
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "journal_size_limit=8388608",
        "trusted_schema=OFF",
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise InsulaError(
            f"cannot use the history: {error}", hint="is there space left in the state folder?"
        ) from error
