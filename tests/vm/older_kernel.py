# SPDX-License-Identifier: Apache-2.0
"""A kernel that Debian 12 does not have: Linux 5.15, the oldest for which the monitor's programs are made.

From Ubuntu 22.04's release, whose files stay where they are; known by their digests, so that it does not matter who sends
them.  Containers need more (docs: README, "Requirements"): on it runs only what watches.
"""

import hashlib
import http.client
import urllib.request
from pathlib import Path

VERSION = "5.15"
FILES = {
    "linux-signed/linux-image-5.15.0-25-generic_5.15.0-25.25_amd64.deb":
        "ad56f8c442a54d4f5ff2dff010d00321d53e32b543f3a92f3ba4e042d20a71da",
    "linux/linux-modules-5.15.0-25-generic_5.15.0-25.25_amd64.deb":
        "d0ba4087d9e1d497925b3481d3531fba6c2a852855f8019d73b0b1385aa4da1f",
}  # fmt: skip
"""Below ARCHIVES → SHA-256."""
ARCHIVES = (
    "https://archive.ubuntu.com/ubuntu/pool/main/l/", "http://deb.debian.org/ubuntu/pool/main/l/",
)  # fmt: skip
_SECONDS = 60.0


def fetch(folder: Path) -> Path:
    """Fetch its packages into a new folder, which stays empty where no archive is reached.  Returns: the folder."""
    folder.mkdir()
    packages = {}
    for name, digest in FILES.items():
        data = _fetch(name)
        if data is None:
            return folder
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"{name} is not the file that was meant: its SHA-256 is another")
        packages[name] = data
    for name, data in packages.items():
        (folder / Path(name).name).write_bytes(data)
    return folder


def _fetch(name: str) -> bytes | None:
    for archive in ARCHIVES:
        try:
            with urllib.request.urlopen(archive + name, timeout=_SECONDS) as answer:
                data: bytes = answer.read()
                return data
        except (
            OSError,
            http.client.HTTPException,
        ):  # also an answer that is cut short; the next one may have it
            continue
    return None
