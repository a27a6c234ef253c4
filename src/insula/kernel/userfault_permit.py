# SPDX-License-Identifier: Apache-2.0
"""Let the processes of user namespaces make userfaultfds for a moment: `vm.unprivileged_userfaultfd`.

CRIU makes one in each process that it restores lazily, as the container's root.  The setting is the whole machine's, so
every daemon that needs it at the same time shares a lock on one file, in which the first writes what the setting was; the last
puts it back.  The lock ends with its holder: what a killed daemon left is put back by the next `permit` or `put_back`.

Source: `Documentation/admin-guide/sysctl/vm.rst`, flock(2).  Standard library only.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

SETTING = "/proc/sys/vm/unprivileged_userfaultfd"
LOCK = "/run/insula-userfaultfd.lock"
_ON = b"1"


@contextmanager
def permit(*, setting: str = SETTING, lock: str = LOCK) -> Iterator[None]:
    """Hold the setting on.  Raises: OSError if there is none, or it cannot be written."""
    with contextlib.ExitStack() as held:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        held.callback(os.close, descriptor)
        held.callback(_put_back, descriptor, setting)
        while True:
            _switch_on(descriptor, setting)
            # To a shared lock: not in one step (flock(2)), so somebody who was last may have put it back in between.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _read(setting) == _ON:
                break
        yield


def _switch_on(descriptor: int, setting: str) -> None:
    # Whoever holds it shared has switched it on; alone we do.
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        was = _read(setting)
        if was != _ON:
            os.pwrite(descriptor, was, 0)
            _write(setting, _ON)


def put_back(*, setting: str = SETTING, lock: str = LOCK) -> None:
    """Undo what a daemon left that was killed.  Does nothing while another one holds it."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        _put_back(descriptor, setting)
    finally:
        os.close(descriptor)


def _put_back(descriptor: int, setting: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return
    was = os.pread(descriptor, 16, 0)
    if was:
        _write(setting, was)
        os.ftruncate(descriptor, 0)
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def _read(setting: str) -> bytes:
    with open(setting, "rb") as file:
        return file.read().strip()


def _write(setting: str, value: bytes) -> None:
    with open(setting, "wb", buffering=0) as file:
        file.write(value)
