# SPDX-License-Identifier: Apache-2.0
"""The folders that move with a container: its writable layer and its volumes, each of them in rounds (`files.py`)."""

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from insula.kernel.paths import open_in_root
from insula.migrate.files import FileSource
from insula.model.record import ContainerRecord, VolumeRecord
from insula.model.spec import MountKind
from insula.runtime.context import Runtime

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def open_trees(
    runtime: Runtime, record: ContainerRecord, volumes: Iterable[VolumeRecord], *, held: ExitStack
) -> tuple[FileSource, ...]:
    """Open what moves with a running container; `held` closes it.  Raises: OSError."""
    root = os.open(f"/proc/{record.pid}/root", _FOLDER)
    held.callback(os.close, root)
    places = {each.source: each.target for each in record.spec.mounts if each.kind is MountKind.VOLUME}
    found = [_open(runtime.folders.upper(record.id), name="", seen=root, held=held)]
    for volume in volumes:
        seen = open_in_root(root, places[volume.name], flags=_FOLDER)
        held.callback(os.close, seen)
        found.append(_open(runtime.volumes.path(volume), name=volume.name, seen=seen, held=held))
    return tuple(found)


def _open(folder: Path, *, name: str, seen: int, held: ExitStack) -> FileSource:
    """seen: the same folder as the container sees it."""
    descriptor = os.open(folder, _FOLDER)
    held.callback(os.close, descriptor)
    source = FileSource(descriptor, name=name, mount_root=seen)
    held.callback(source.close)
    return source
