# SPDX-License-Identifier: Apache-2.0
"""A CRIU that sees page maps of ours: what is done in its place before it is executed.

CRIU asks for pages by the ioctl PAGEMAP_SCAN, which only the kernel's own file answers; on a kernel without, it reads
8 bytes for each page.  What it knows of the kernel is in a cache, /run/criu.kdat.  So one that was made under a filter by which
that ioctl does not exist makes CRIU read, and nothing else is different.

    /run/blind.kdat   that cache; only this module makes it
    /run/pagemaps     files for each process: PID, mounted over /proc/PID/pagemap, PID.smaps over /proc/PID/smaps

Where anything of it fails, CRIU goes on with the kernel's page maps.  Out of scope: what is in the files (`runtime/hidden.py`).
Sources: CRIU's `criu/kerndat.c` (`kerndat_try_load_cache`, `check_pagemap`), `criu/pagemap-cache.c`.  Standard library only.
"""

import contextlib
import errno
import os
import shutil

from insula.kernel import libc, mount, seccomp
from insula.kernel.pagemap import PAGEMAP_SCAN

_CACHE, _BLIND_CACHE = "/run/criu.kdat", "/run/blind.kdat"
_PAGE_MAPS = "/run/pagemaps"
_MS_BIND = 4096


def cover_page_maps(page_maps: int, *, argv: list[str]) -> None:
    """Mount page maps over those of /proc, in a mount namespace that is CRIU's alone.

    page_maps: a detached mount.  argv: of the CRIU to come, `… swrk N`.
    """
    try:
        if not os.path.exists(_BLIND_CACHE):
            _learn(argv[:-2])
        os.mkdir(_PAGE_MAPS, 0o700)
        mount.attach(page_maps, _PAGE_MAPS)
        shutil.copyfile(_BLIND_CACHE, _CACHE)
    except OSError as error:
        os.write(2, f"spawner: criu sees the kernel's page maps: {error}\n".encode())
        return
    for name in os.listdir(_PAGE_MAPS):
        pid, _, what = name.partition(".")
        place = f"/proc/{pid}/{what or 'pagemap'}"
        with contextlib.suppress(OSError):  # it has ended, or the kernel refuses
            libc.mount(f"{_PAGE_MAPS}/{name}".encode(), place.encode(), None, _MS_BIND, None)


def _learn(criu: list[str]) -> None:
    """Have CRIU make its cache under the filter.  Raises: OSError if there is none."""
    pid = os.fork()
    if pid == 0:
        try:
            null = os.open("/dev/null", os.O_RDWR)
            for number in range(3):
                os.dup2(null, number)
            seccomp.install(seccomp.refuse_ioctl(PAGEMAP_SCAN, code=errno.ENOTTY))
            os.execve(criu[0], [*criu, "check", "--feature", "mnt_id"], {"LANG": "C"})
        finally:
            os._exit(127)
    _pid, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) == 127:
        raise OSError(errno.ENOEXEC, "execve: criu")
    os.rename(_CACHE, _BLIND_CACHE)
