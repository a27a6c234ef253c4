# SPDX-License-Identifier: Apache-2.0
"""The syntax trees of source files, for tests that judge how insula is written."""

import ast
import gc
from functools import cache
from pathlib import Path


@cache
def tree_of(path: Path) -> ast.Module:
    """Parse a file, once for all tests.

    No garbage is collected meanwhile: a finalizer that fails has its traceback written, which parses as well, and
    Python before 3.11.8 then ends the outer one with "AST constructor recursion depth mismatch" (gh-106905).  To go when
    Debian's Python is newer.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(path.read_text(encoding="utf-8"), str(path))
    finally:
        if was_enabled:
            gc.enable()
