# SPDX-License-Identifier: Apache-2.0
"""Who answers for a database of this host's: `subid: sss` and the like.

Out of scope: to ask them.  Source: nsswitch.conf(5); subuid(5), "CONFIGURATION".
"""

import re
from pathlib import Path

NSSWITCH = Path("/etc/nsswitch.conf")
_ACTION = re.compile(r"\[[^]]*\]")


def services_of(database: str, *, file: Path = NSSWITCH) -> tuple[str, ...]:
    """Return the services that a database is asked of, in their order; none: the file does not say."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ()
    for line in lines:
        name, colon, rest = line.partition("#")[0].partition(":")
        if colon and name.strip() == database:
            return tuple(_ACTION.sub(" ", rest).split())
    return ()


def lenders_elsewhere(*, file: Path = NSSWITCH) -> tuple[str, ...]:
    """Return the services, besides the files /etc/subuid and /etc/subgid, that lend users more ids."""
    return tuple(each for each in services_of("subid", file=file) if each != "files")
