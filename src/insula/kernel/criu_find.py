# SPDX-License-Identifier: Apache-2.0
"""Say which CRIU this host uses: read and write the record that `insula setup` leaves.

Out of scope: judging a CRIU (`daemon/criu_trial.py`) and bringing one (`daemon/setup.py`).  Reading the record costs one
small file and two `stat` calls and tries nothing, because the daemon asks before every checkpoint.

The record names the kernel it was tried on.  A CRIU is also returned on another kernel (the host was patched and
rebooted: its containers must come back); `insula setup` and `insula doctor` then say that it has not been tried there.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

#: Where `insula setup` puts a private CRIU and the record; owned by root, like everything below /usr/local/lib.
PREFIX = Path("/usr/local/lib/insula/criu")
RECORD_NAME = "current.json"
RECORD_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class CriuProgram:
    """A CRIU that can be run: put its own arguments after `argv`."""

    argv: tuple[str, ...]
    version: str


@dataclass(frozen=True, kw_only=True)
class CriuRecord:
    """The last trial that went well."""

    program: CriuProgram
    digest: str
    kernel: str


def executable_of(program: CriuProgram) -> Path:
    """Return the CRIU executable itself, also where its own loader starts it."""
    return Path(program.argv[-1])


def in_prefix(prefix: Path, version: str) -> CriuProgram | None:
    """Return how to run the CRIU unpacked in `prefix`, by the loader and libraries beside it; None if parts are missing."""
    criu = prefix / "usr/sbin/criu"
    loaders = sorted(prefix.glob("usr/lib/*/ld-linux*.so.*")) + sorted(prefix.glob("usr/lib/ld-linux*.so.*"))
    if not criu.is_file() or not loaders:
        return None
    libraries = loaders[0].parent
    return CriuProgram(argv=(str(loaders[0]), "--library-path", str(libraries), str(criu)), version=version)


def read_record(prefix: Path = PREFIX) -> CriuRecord | None:
    """Return the record, or None if there is none or it is of a form that this version does not know."""
    try:
        raw = json.loads((prefix / RECORD_NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if not isinstance(raw, dict) or raw.get("format") != RECORD_FORMAT:
        return None
    try:
        argv = tuple(str(word) for word in raw["argv"])
        program = CriuProgram(argv=argv, version=str(raw["version"]))
        return CriuRecord(program=program, digest=str(raw["digest"]), kernel=str(raw["kernel"]))
    except (KeyError, TypeError):
        return None


def write_record(record: CriuRecord, prefix: Path = PREFIX) -> None:
    """Replace the record, so that a reader sees the old one or the new one."""
    raw = {
        "format": RECORD_FORMAT,
        "argv": list(record.program.argv),
        "version": record.program.version,
        "digest": record.digest,
        "kernel": record.kernel,
    }
    prefix.mkdir(parents=True, exist_ok=True)
    part = prefix / f"{RECORD_NAME}.part"
    with part.open("w", encoding="utf-8") as file:
        json.dump(raw, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.rename(prefix / RECORD_NAME)
    folder = os.open(prefix, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def find_criu(prefix: Path = PREFIX) -> CriuProgram | None:
    """Return the CRIU that `insula setup` found good on this host, or None if there is none or it is gone."""
    record = read_record(prefix)
    if record is None or not record.program.argv:
        return None
    if not all(os.access(path, os.X_OK) for path in (record.program.argv[0], executable_of(record.program))):
        return None
    return record.program
