# SPDX-License-Identifier: Apache-2.0
"""`insula setup`: make this host ready, so that running containers can be checkpointed and carried.

Finds a CRIU that works on this kernel or brings Debian's newest one into a private prefix.  Works without a daemon.  Exit
codes: 0 ready; 3 something is missing, and the lines say what, what still works and the cure.
"""

import os
import sys

EXIT_MISSING = 3
USAGE = """\
usage: insula setup

Find a CRIU that works on this kernel, or bring Debian's newest one into
/usr/local/lib/insula/criu (by apt, verified; the system's packages stay as they
are), and reserve the uids of containers in /etc/subuid and /etc/subgid.
Needs root.  The second call only looks.
"""


def run(arguments: list[str]) -> int:
    """Set this host up; one plain line for each step."""
    if arguments:
        is_help = arguments[0] in ("-h", "--help")
        print(USAGE if is_help else f"insula setup: unknown argument `{arguments[0]}`\n\n{USAGE}", end="")
        return 0 if is_help else 2
    from insula.daemon.setup import set_up
    from insula.daemon.uid_ranges import reserve
    from insula.model.errors import InsulaError

    def say(line: str) -> None:
        print(line, flush=True)

    try:
        if os.geteuid() == 0:  # else `set_up` tells that root is needed
            reserve(say)
    except (InsulaError, OSError) as error:
        print(f"insula setup: {error}", file=sys.stderr)
        return EXIT_MISSING
    try:
        set_up(say)
    except InsulaError as error:
        print(f"insula setup: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        print("  without a criu containers run, but checkpoint, restore and migrate do not", file=sys.stderr)
        return EXIT_MISSING
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
