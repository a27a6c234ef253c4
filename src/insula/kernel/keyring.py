# SPDX-License-Identifier: Apache-2.0
"""Session keyrings: what a process and its descendants hold of the kernel's keys.

Out of scope: keys themselves.  Source: keyctl(2), session-keyring(7); security/keys/process_keys.c.
"""

import errno

from insula.kernel import libc

KEYCTL_GET_KEYRING_ID = 0
KEYCTL_JOIN_SESSION_KEYRING = 1
KEY_SPEC_SESSION_KEYRING = (1 << 64) - 3
"""-3 as the kernel reads it."""
_ABSENT = (errno.ENOSYS, errno.EOPNOTSUPP)
"""A kernel without keys."""


def join_new_session() -> None:
    """Give the calling process an empty session keyring of its own, which its descendants inherit.

    For a process that has one already it counts against the quota of its uid (`kernel.keys.maxkeys`, 200 by default).
    Raises: OSError: EDQUOT; a kernel without keys is no error.
    """
    try:
        libc.keyctl(KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise


def session_id() -> int:
    """Return the id of the caller's session keyring.  Raises: OSError: ENOKEY if it has none."""
    return libc.keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0, 0, 0)
