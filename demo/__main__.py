# SPDX-License-Identifier: Apache-2.0
"""`python -m demo`: two hosts, two users, one running Redis carried from one host to the other.  Needs root.

Exit codes: 0 nothing failed, nothing was lost, nothing was left behind; 1 something was; 3 something is missing on this
machine, and the lines say what and what can still be done; 130 after ctrl-c.
"""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from demo import check

EXIT_MISSING = 3


def main() -> int:
    """Play the demo and clean up, whatever happens."""
    if check.refuse("demo"):
        return EXIT_MISSING
    # A termination takes the same way out as ctrl-c: through everything that cleans up.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    from demo.stage import Stage

    return Stage().play()


if __name__ == "__main__":
    sys.exit(main())
