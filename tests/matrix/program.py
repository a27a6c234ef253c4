# SPDX-License-Identifier: Apache-2.0
"""One program of the matrix, as data.  Which there are: `programs/`, a file per family."""

from dataclasses import dataclass

PORT = 7000
"""Where programs listen that have no port of their own."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """What runs in the container, and which client loads it."""

    name: str
    packages: tuple[str, ...]
    """Of Debian; all of them are in one image."""
    script: str
    """For `/bin/sh -eu` in the container: configuration, then `exec` of the program."""
    client: str
    """A key of `client.KINDS`."""
    words: tuple[str, ...] = ()
    """Of the client."""
    port: int = PORT
    connections: int = 1
    pypi: tuple[str, ...] = ()
    is_root: bool = True
    """False: the script runs as uid 1000."""
    ready_s: float = 30.0
    """How long it may take to listen."""
    note: str = ""
    """What is special about it: threads, forks, the language."""
    limit: str = ""
    """Why its client sees errors after a move although it was carried: what no move of copied files can keep."""
