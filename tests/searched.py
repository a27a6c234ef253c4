# SPDX-License-Identifier: Apache-2.0
"""For tests: what is found in folders whose files come and go meanwhile; `pathlib` raises when one of them has just gone."""

import contextlib
import glob
import os
from pathlib import Path


def found_below(folder: str | Path, pattern: str) -> list[str]:
    """Return what matches a pattern of glob(7) below a folder; `**` is any depth."""
    return glob.glob(f"{folder}/{pattern}", recursive=True, include_hidden=True)


def files_holding(folder: Path, word: bytes) -> list[str]:
    """Return the regular files below a folder that hold a word."""
    places = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    return [each for each in places if _holds(each, word)]


def _holds(path: str, word: bytes) -> bool:
    with contextlib.suppress(OSError):  # it has just gone
        return os.path.isfile(path) and not os.path.islink(path) and word in Path(path).read_bytes()
    return False
