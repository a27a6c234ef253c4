# SPDX-License-Identifier: Apache-2.0
"""What of the host must be the same before and after an attempt: files, their owners and modes, and nothing new by a name."""

import ctypes
import hashlib
import os
import stat
from pathlib import Path

from leftovers import SHARED
from searched import found_below

_LIBC = ctypes.CDLL(None)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2

#: Of the host, where an escape would write first; little enough to be read whole, and nobody else's to change meanwhile.
PLACES = (
    "/etc/passwd", "/etc/shadow", "/etc/group", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/crontab", "/etc/cron.d",
    "/etc/sudoers.d", "/etc/profile", "/etc/profile.d", "/etc/ld.so.preload", "/etc/ld.so.conf.d", "/etc/ssh", "/etc/pam.d",
    "/root/.ssh", "/root/.bashrc", "/usr/local/bin", "/usr/local/sbin", "/boot", "/dev/null", "/dev/console", "/dev/ptmx", "/tmp/.",
)  # fmt: skip
#: On a machine that others work on, accounts come and go.
_ACCOUNTS = {"/etc/passwd", "/etc/shadow", "/etc/group"}
_OWN = tuple(place for place in PLACES if not (os.environ.get(SHARED) and place in _ACCOUNTS))
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


def fingerprint(*places: str | Path) -> str:
    """Return a digest of names, owners, modes, sizes, times and links of files, and of those below folders."""
    digest = hashlib.sha256()
    for path in (each for place in places or _OWN for each in _walked(str(place))):
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            continue
        link = os.readlink(path) if stat.S_ISLNK(found.st_mode) else ""
        fields: tuple[object, ...] = (path, found.st_mode, found.st_uid, found.st_gid, found.st_rdev, link)
        if stat.S_ISREG(found.st_mode):
            fields += (found.st_size, found.st_mtime_ns)
        digest.update(repr(fields).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _walked(place: str) -> list[str]:
    # "/tmp/." is the folder itself: what lies in it is everybody's.
    inner = (
        [] if place.endswith("/.") else [os.path.join(f, n) for f, _, names in os.walk(place) for n in names]
    )
    return [place, *sorted(inner)]


def found_on_host(name: str) -> list[str]:
    """Return where a name appeared: folders that attackers write to, and groups of processes."""
    places = [os.path.join(folder, name) for folder in SEARCHED]
    found = [path for path in places if os.path.lexists(path)]
    return found + found_below("/sys/fs/cgroup", f"*/**/{name}")


def exchange(one: bytes, other: bytes) -> None:
    """Let two names change places at once.  See renameat2(2); nothing happens if one is away for a moment."""
    _LIBC.renameat2(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE)
