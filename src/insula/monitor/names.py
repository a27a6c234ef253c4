# SPDX-License-Identifier: Apache-2.0
"""Names that somebody gives of system calls and of errors, judged: of one that is none no event will ever tell.  Pure.

For wishes of traces and for rules alike.
"""

import difflib
import errno
from collections.abc import Collection

from insula.kernel import syscalls
from insula.monitor.subscription import ANY_ERROR

_ERRORS = frozenset(errno.errorcode.values())


def judge_call(name: str) -> str:
    """Say what is wrong with the name of a system call; empty: nothing."""
    return "" if name in syscalls.names() else f"there is no such system call{_like(name, syscalls.names())}"


def judge_error(name: str) -> str:
    """Say what is wrong with the name of an error, or `any`; empty: nothing."""
    if name == ANY_ERROR or name in _ERRORS:
        return ""
    number = getattr(errno, name, None)
    if isinstance(number, int):  # another name of the same
        return f"it is told as `{errno.errorcode[number]}`"
    return f"there is no such error{_like(name, _ERRORS)}"


def _like(name: str, known: Collection[str]) -> str:
    found = difflib.get_close_matches(name[:80], sorted(known), n=1)
    return f"; there is `{found[0]}`" if found else ""
