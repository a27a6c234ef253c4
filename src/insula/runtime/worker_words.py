# SPDX-License-Identifier: Apache-2.0
"""How insulad starts a part of itself as a process of its own, and lets it begin."""

import os
import sys
from pathlib import Path

import insula

READY = b"\n"
"""The first byte of a worker's stdin: it stands in its tenant's cgroup."""


def worker_words(module: str, *, needs_packages: bool = True) -> list[str]:
    """Return the words that start this interpreter with `main()` of a module, without what users have installed.

    needs_packages: other packages than insula, whose search takes the interpreter a while; else its standard library alone.
    """
    folder = str(Path(insula.__file__).resolve().parents[1])
    package, _, name = module.rpartition(".")
    code = (
        f"import sys; sys.path.insert(0, {folder!r}); from {package} import {name} as w; sys.exit(w.main())"
    )
    return [sys.executable, "-I" if needs_packages else "-SI", "-c", code]


def wait_ready() -> bool:
    """In a worker: wait until it may begin; False: insulad ended before."""
    return os.read(0, len(READY)) == READY
