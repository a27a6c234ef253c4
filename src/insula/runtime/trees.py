# SPDX-License-Identifier: Apache-2.0
"""Removal of a container's folders, whose content its users wrote: no link in them is ever followed.

Source: the standard library's `shutil.rmtree`, which walks by directory descriptors (`avoids_symlink_attacks`).
"""

import shutil
from pathlib import Path


def remove_tree(folder: Path) -> None:
    """Remove a folder of ours and all below it.  That it is not there, or goes meanwhile, is no error.

    The folder itself may be a link of ours to where it lies (`disks.py`): then both go.
    """
    if folder.is_symlink():
        shutil.rmtree(folder.readlink(), ignore_errors=True)
        folder.unlink(missing_ok=True)
        return
    shutil.rmtree(folder, ignore_errors=True)
