# SPDX-License-Identifier: Apache-2.0
"""The uids of tenants on this machine: given out once, reserved in /etc/subuid and /etc/subgid, never anybody else's.

`insula setup` writes the reservation; insulad only reads.  A new tenant gets a range of which nobody holds a part; one
whose range was given away later is refused until an administrator has taken that back.
Source: subuid(5), subgid(5); the lock files are those of shadow-utils (commonio.c).
"""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import SystemRandom

from insula.kernel.nsswitch import NSSWITCH, lenders_elsewhere
from insula.model.errors import Conflict, UidRangeTaken
from insula.runtime.ledger import Ledger, TenantRecord
from insula.tenant.identity import check_tenant_name
from insula.tenant.idmap import (
    MAX_TENANTS,
    RESERVATION,
    Subordinate,
    holder_of,
    is_reserved,
    uid_base,
)
from insula.tenant.subordinates import SUBGID, SUBUID, lines_of

LOG = logging.getLogger(__name__)

FILES = (SUBUID, SUBGID)


class UidRanges:
    """Which tenant has which uids.  files: as of shadow-utils."""

    def __init__(self, store: Ledger, *, files: tuple[Path, ...] = FILES, nsswitch: Path = NSSWITCH) -> None:
        self._store = store
        self._files = files
        self._nsswitch = nsswitch

    def tenant(self, name: str) -> TenantRecord:
        """Return a tenant, made if it is new, with a range that nobody holds a part of.

        Raises: BadRequest for what can be no tenant's name.
        """
        check_tenant_name(name)
        lines = self._read()

        def choose(taken: set[int]) -> int:
            # By chance: its own uids are not to tell a tenant how many others there are.  If none is free, any place
            # beyond the last will do: `uid_base` refuses it.
            places = SystemRandom().sample(range(MAX_TENANTS), MAX_TENANTS)
            free = (each for each in places if each not in taken and not holder_of(each, lines))
            return next(free, max({MAX_TENANTS, *taken}) + 1)

        return self._store.tenant(name, choose=choose)

    def base_of(self, name: str) -> int:
        """Return the first uid of a tenant.  Raises: BadRequest, UidRangeExhausted, UidRangeTaken."""
        position = self.tenant(name).position
        base, holder = uid_base(position), holder_of(position, self._read())
        if holder:
            raise UidRangeTaken(
                f"cannot use the uids from `{base}` on: /etc/subuid or /etc/subgid gives some of them to `{holder}`",
                hint="take that line away, and let `insula setup` reserve insula's",
            )
        return base

    def tell_state(self) -> None:
        """Log once what an administrator should know of."""
        lines = self._read()
        for each in self._store.list_tenants():
            if holder := holder_of(each.position, lines):
                fields = {"tenant": each.name, "holder": holder}
                LOG.error("uids of a tenant are somebody else's, too", extra={"fields": fields})
        if not is_reserved(lines):
            LOG.warning("uids of tenants are not reserved in /etc/subuid: run `insula setup`")
        if others := lenders_elsewhere(file=self._nsswitch):
            fields = {
                "services": " ".join(others),
                "cure": "write the whole range that they lend into /etc/subuid",
            }
            LOG.warning("uids are lent that insulad does not know of", extra={"fields": fields})

    def _read(self) -> tuple[Subordinate, ...]:
        return tuple(line for path in self._files for line in lines_of(path))


def reserve(report: Callable[[str], None], *, files: tuple[Path, ...] = FILES) -> None:
    """Reserve the uids of all tenants, as far as they are not; say each step as one line.  Raises: Conflict."""
    for path in files:
        if is_reserved(lines_of(path)):
            report(f"uids: reserved in {path}")
            continue
        _append(path, RESERVATION)
        report(f"uids: reserved in {path} by the line `{RESERVATION}`")


def _append(path: Path, line: str) -> None:
    lock, new = path.with_name(f"{path.name}.lock"), path.with_name(f"{path.name}+")
    try:
        descriptor = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Conflict(f"cannot change `{path}`: another program does", hint=f"`{lock}` names it") from None
    try:
        os.write(descriptor, b"%d\0" % os.getpid())
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if before and not before.endswith("\n"):
            before += "\n"
        new.write_text(f"{before}{line}\n", encoding="utf-8")
        new.chmod(0o644)
        os.sync()
        new.rename(path)
    finally:
        os.close(descriptor)
        with suppress(FileNotFoundError):
            lock.unlink()
