# SPDX-License-Identifier: Apache-2.0
"""The process that unpacks an uploaded image, so that a bomb costs its sender and not the daemon, and ends.

    stdin: the tar, perhaps compressed      stdout: what it has become, as JSON [digest, bytes, skipped devices]
    stderr: a failure as JSON {"code", "message", "hint"}; exit code 1

Arguments: descriptor of the empty folder, most entries, most bytes.  It runs as root, as the daemon would: names in
the archive are held within the folder by `tarball`.  Started by `runtime/unpacking.py`.
"""

import json
import sys

from insula.image.layers import fill
from insula.image.tarball import Limits
from insula.model.errors import InsulaError


def main() -> int:
    """Do what the arguments say."""
    root, entries, size = (int(word) for word in sys.argv[1:])
    try:
        found = fill(sys.stdin.buffer, root, limits=Limits(entries=entries, size_bytes=size))
    except InsulaError as error:
        sys.stderr.write(json.dumps({"code": error.code, "message": error.message, "hint": error.hint}))
        return 1
    sys.stdout.write(json.dumps(found))
    return 0
