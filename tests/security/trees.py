# SPDX-License-Identifier: Apache-2.0
"""What of the host must be the same before and after an attempt: files, their owners and modes, and nothing new by a name."""

import hashlib
import os
import stat
from pathlib import Path

#: Of the host, where an escape would write first; small enough to be read whole.
FOLDERS = ("/etc", "/root/.ssh", "/usr/local/bin", "/boot", "/opt")
SEARCHED = (
    "/",
    "/etc",
    "/tmp",
    "/var/tmp",
    "/run",
    "/root",
    "/home",
    "/usr",
    "/usr/local/bin",
    "/dev",
    "/dev/shm",
    "/boot",
)


def fingerprint(*folders: str | Path) -> str:
    """Return a digest of names, owners, modes, sizes, times and links below folders."""
    digest = hashlib.sha256()
    for folder in folders or FOLDERS:
        for place, names, files in os.walk(folder):
            names.sort()
            for name in sorted(files):
                path = os.path.join(place, name)
                try:
                    found = os.lstat(path)
                except FileNotFoundError:
                    continue
                link = os.readlink(path) if stat.S_ISLNK(found.st_mode) else ""
                fields = (
                    path,
                    found.st_mode,
                    found.st_uid,
                    found.st_gid,
                    found.st_size,
                    found.st_mtime_ns,
                    link,
                )
                digest.update(repr(fields).encode(errors="surrogateescape"))
    return digest.hexdigest()


def found_on_host(name: str) -> list[str]:
    """Return where a name appeared: folders that attackers write to, and groups of processes."""
    places = [os.path.join(folder, name) for folder in SEARCHED]
    found = [path for path in places if os.path.lexists(path)]
    return found + [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/**/{name}")]
