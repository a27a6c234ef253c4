# SPDX-License-Identifier: Apache-2.0
"""Make this host ready: find a CRIU that works on its kernel, or bring one, and record it.

A candidate counts only after a whole dump and restore on this very kernel (`criu_trial`); the result is remembered by the
executable's digest and the kernel's release, so that the second call tries nothing.  Out of scope: Debian packages and the
virtual environment (`scripts/setup` of the repository, before insula itself can run).
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from insula.daemon.criu_fetch import Report, fetch_criu
from insula.daemon.criu_trial import try_criu
from insula.kernel.criu_find import (
    PREFIX,
    CriuProgram,
    CriuRecord,
    executable_of,
    in_prefix,
    read_record,
    write_record,
)
from insula.model.errors import Unsupported

_VERSION_SECONDS = 10.0


def set_up(report: Report, prefix: Path = PREFIX) -> CriuProgram:
    """Find or bring a CRIU that works here and record it; say each step as one line.

    Raises: Unsupported if there is none for this processor and kernel, or root is missing.
    """
    if os.geteuid() != 0:
        raise Unsupported("cannot set up this host: root is needed", hint="run it as root, e.g. with sudo")
    known = read_record(prefix)
    if known is not None and _is_still_good(known):
        report(f"criu: {known.program.version} was tried on this kernel ({known.kernel})")
        return known.program
    for candidate in _candidates(prefix):
        if _accept(candidate, prefix, report=report):
            return candidate
    fetched = fetch_criu(prefix, report)
    if _accept(fetched, prefix, report=report):
        return fetched
    raise Unsupported(
        f"cannot find a criu that works on kernel `{os.uname().release}`: neither the installed one nor Debian's newest does",
        hint="containers run without it; checkpoint, restore and migrate need it",
    )


def digest_of(program: CriuProgram) -> str:
    """Return the SHA-256 of the executable: what a trial was made with."""
    with executable_of(program).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_still_good(record: CriuRecord) -> bool:
    try:
        return record.kernel == os.uname().release and record.digest == digest_of(record.program)
    except OSError:
        return False


def _candidates(prefix: Path) -> Iterator[CriuProgram]:
    system = shutil.which("criu")
    if system is not None:
        yield CriuProgram(argv=(system,), version=_ask_version(system))
    folders = [
        folder for folder in prefix.glob("*") if folder.is_dir() and not folder.name.startswith("part-")
    ]
    for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True):
        program = in_prefix(folder, folder.name)
        if program is not None:
            yield program


def _ask_version(criu: str) -> str:
    try:
        done = subprocess.run(
            (criu, "--version"),
            capture_output=True,
            text=True,
            timeout=_VERSION_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    words = done.stdout.split()
    return words[1] if len(words) > 1 else "unknown"


def _accept(candidate: CriuProgram, prefix: Path, *, report: Report) -> bool:
    reason = try_criu(candidate)
    if reason:
        report(f"criu: {executable_of(candidate)} ({candidate.version}) is not good enough here: {reason}")
        return False
    record = CriuRecord(program=candidate, digest=digest_of(candidate), kernel=os.uname().release)
    write_record(record, prefix)
    report(f"criu: {executable_of(candidate)} ({candidate.version}) dumps and restores on this kernel")
    return True
