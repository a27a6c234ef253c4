# SPDX-License-Identifier: Apache-2.0
"""Run a piece of a test in a child process, which may change itself for good; its failure fails the test."""

import os
import traceback
from collections.abc import Callable


def run(act: Callable[[], str | None]) -> str:
    """Fork, act in the child, and return what it answers.  Raises: AssertionError with the child's traceback."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(receive)
            answer = act()
            os.write(send, (answer or "").encode())
            status = 0
        except BaseException:
            os.write(send, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(send)
    with os.fdopen(receive, encoding="utf-8") as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"child ended with {status}: {text}"
    return text
