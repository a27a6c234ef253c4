# SPDX-License-Identifier: Apache-2.0
"""What the probe really tries, one file for each part of the kernel.

A trial is a function without arguments that returns a detail for people, or raises `Absent` (or OSError) with the reason.
It leaves nothing behind: what would stay is made in a child with namespaces of its own, which die with it.

Only for single-threaded processes, since trials fork; a daemon runs `python -m insula.kernel.probe` instead.
"""

import os
from collections.abc import Callable

from insula.kernel import libc, lifeline

Trial = Callable[[], str]

_ANSWER_BYTES = 4096


class Absent(Exception):
    """The feature is not there; the message is the reason."""


def in_child(trial: Trial, *, namespaces: int = 0) -> str:
    """Run a trial in a child process, inside new namespaces (CLONE_NEW…), and return or raise what it did."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _answer(trial, write_end, namespaces=namespaces)
    os.close(write_end)
    try:
        with open(read_end, "rb") as pipe:
            answer = pipe.read(_ANSWER_BYTES).decode(errors="replace")
    finally:
        status = os.waitpid(child, 0)[1]
    if answer.startswith("+"):
        return answer[1:]
    raise Absent(answer[1:] or f"the trial died with status {status}")


def _answer(trial: Trial, pipe: int, *, namespaces: int) -> None:
    # Never returns: whatever happens here, the copy of the caller ends, silently if the trial itself is wrong.
    try:
        try:
            lifeline.end_with_parent()
            if namespaces:
                libc.unshare(namespaces)
            text = f"+{trial()}"
        except (Absent, OSError, ValueError, LookupError) as error:
            text = f"-{reason_of(error)}"
        os.write(pipe, text.encode()[:_ANSWER_BYTES])
    finally:
        os._exit(0)


def reason_of(error: Exception) -> str:
    """Return the words of an error in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())
