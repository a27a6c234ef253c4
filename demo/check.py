# SPDX-License-Identifier: Apache-2.0
"""What the demo and the benches need of this machine, and what of it is not there.

Out of scope: getting it (`make setup`).  Each line says what is missing; the last one what can still be done.
"""

import os
import platform
import shutil
import sys
from collections.abc import Callable

PROGRAMS = (
    "groupadd",
    "groupdel",
    "nft",
    "nsenter",
    "redis-server",
    "useradd",
    "userdel",
)
STILL = {
    "root": "still possible here: `make test-unit`, `make lint`",
    "criu": "still possible here: `insula run` and everything but checkpoint, restore and migrate",
    "other": "still possible here: what `insula doctor` shows as found; `make setup` brings the Debian packages",
}


def find_missing(find_program: Callable[[str], str | None] = shutil.which) -> list[str]:
    """Return a line for each thing that is missing; the last line says what can still be done.  Empty: all is there."""
    if os.geteuid() != 0:
        return [f"root (this is uid {os.geteuid()})", STILL["root"]]
    programs = [f"program `{name}`" for name in PROGRAMS if find_program(name) is None]
    if python_of_host(find_program) is None:
        programs.append("a `python3` below /usr, for the web server in its container")
    if programs:
        return [*programs, STILL["other"]]
    return _missing_features()


def python_of_host(find_program: Callable[[str], str | None] = shutil.which) -> str | None:
    """Return the Python that containers of the image `host` see too."""
    for name in ("/usr/bin/python3", "python3"):
        path = find_program(name)
        if path is not None and os.path.realpath(path).startswith("/usr/"):
            return path
    return None


def _missing_features() -> list[str]:
    from insula.kernel.criu_find import find_criu
    from insula.kernel.probe import probe_all

    fatal = [f"{finding.feature.name}: {finding.detail}" for finding in probe_all() if finding.is_fatal]
    if fatal:
        return [*fatal, STILL["other"]]
    if find_criu() is None:
        return [
            f"a CRIU for this processor ({platform.machine()}) and kernel ({platform.release()})",
            STILL["criu"],
        ]
    return []


def refuse(what: str) -> bool:
    """Say what is missing for `what`, if anything.  Returns: whether something is."""
    lines = find_missing()
    if lines:
        print(
            f"{what}: missing on this machine:\n" + "\n".join(f"  {line}" for line in lines),
            file=sys.stderr,
        )
    return bool(lines)
