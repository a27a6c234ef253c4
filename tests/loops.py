# SPDX-License-Identifier: Apache-2.0
"""Loop devices that show a test's files, and whether they are free again: also of files that have been removed."""

from pathlib import Path
from typing import NamedTuple

from insula.kernel import loop


class Shown(NamedTuple):
    """A device, and the file that it shows."""

    device: str
    inode: loop.Inode


def shown(image: Path) -> Shown:
    """Return the device that shows a file; there has to be one."""
    device = loop.find(str(image))
    assert device is not None, f"no device shows {image}"
    inode = loop.inode_of(device)
    assert inode is not None
    return Shown(device, inode)


def is_free(of: Shown) -> bool:
    return loop.inode_of(of.device) != of.inode


def all_shown() -> dict[str, str]:
    """Return every device in use: what tells it from its later uses → words for people."""
    found = {}
    for each in Path("/sys/block").glob("loop*"):
        inode = loop.inode_of(f"/dev/{each.name}")
        if inode is not None:
            found[f"{each.name}/{inode.device}/{inode.number}"] = (
                f"{each.name}, which shows inode {inode.number}"
            )
    return found
