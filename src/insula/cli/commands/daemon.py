# SPDX-License-Identifier: Apache-2.0
"""`insula daemon`: run insulad.  Its options (--state, --run, --name, --listen, --group …) are parsed by itself."""

from __future__ import annotations

HELP = "run insulad, the daemon of this host"


def run(arguments: list[str]) -> int:
    """Run until a signal ends it."""
    from insula.daemon.main import main

    return int(main(arguments) or 0)
