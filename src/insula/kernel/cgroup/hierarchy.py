# SPDX-License-Identifier: Apache-2.0
"""Which cgroup hierarchies this host has, which controllers are in each, and where this process stands in it.

Out of scope: making groups.  The parsing is pure; only `detect` reads.

Sources: cgroups(7); proc(5), /proc/pid/mountinfo; `Documentation/admin-guide/cgroup-v1`, `cgroup-v2.rst`.
"""

import os
from typing import Literal, NamedTuple

#: What the names of groups end with that insulad and the spawner themselves stand in: ours are made beside those.
OWN_SUFFIX = ".self"

#: The group that a process of ours moves into where v2 wants the group above free of processes.
LEAF = f"insula{OWN_SUFFIX}"

Mode = Literal["v1", "hybrid", "v2"]


class Hierarchy(NamedTuple):
    """One tree of cgroups.  controllers: of v1; of v2 they are in its file cgroup.controllers."""

    version: int
    controllers: frozenset[str]
    mount_point: str
    own_directory: str

    @property
    def base(self) -> str:
        """The directory beneath which our groups are made."""
        head, tail = os.path.split(self.own_directory)
        return head if tail.endswith(OWN_SUFFIX) else self.own_directory


class Hierarchies(NamedTuple):
    """All trees of this host that are mounted here."""

    v1: tuple[Hierarchy, ...]
    v2: Hierarchy | None

    @classmethod
    def detect(cls) -> "Hierarchies":
        """Read the hierarchies of the calling process."""
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            mountinfo = file.read()
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            return parse(mountinfo, file.read())

    @property
    def mode(self) -> Mode:
        """`v2` if that tree alone is there, `hybrid` if limits go through v1 and the rest through v2."""
        if self.v2 is None:
            return "v1"
        return "hybrid" if any(each.controllers for each in self.v1) else "v2"

    def find_v1(self, controller: str) -> Hierarchy | None:
        """Return the v1 tree that has a controller."""
        return next((each for each in self.v1 if controller in each.controllers), None)


def parse(mountinfo: str, own_cgroups: str) -> Hierarchies:
    """Build from the texts of /proc/self/mountinfo and /proc/self/cgroup.  Of several mounts of a tree the first counts."""
    own = [line.split(":", 2) for line in own_cgroups.splitlines() if line.count(":") >= 2]
    v1: list[Hierarchy] = []
    v2: Hierarchy | None = None
    for line in mountinfo.splitlines():
        mounted = _parse_mount(line)
        if mounted is None:
            continue
        if mounted.kind == "cgroup2" and v2 is None:
            path = next((entry[2] for entry in own if entry[0] == "0" and not entry[1]), None)
            if path is not None:
                v2 = Hierarchy(2, frozenset(), mounted.point, mounted.locate(path))
        elif mounted.kind == "cgroup":
            hierarchy = _match_v1(mounted, own)
            if hierarchy is not None and all(hierarchy.controllers != each.controllers for each in v1):
                v1.append(hierarchy)
    return Hierarchies(tuple(v1), v2)


class _Mount(NamedTuple):
    kind: str
    root: str
    point: str
    options: frozenset[str]

    def locate(self, path: str) -> str:
        # A container may see only a part of the tree: the mount's root is then not the tree's.
        relative = os.path.relpath(path, self.root)
        if relative == "." or relative.startswith(".."):
            return self.point
        return os.path.join(self.point, relative)


def _match_v1(mounted: _Mount, own: list[list[str]]) -> Hierarchy | None:
    for _, names, path in own:
        controllers = frozenset(names.split(","))
        if names and not names.startswith("name=") and controllers <= mounted.options:
            return Hierarchy(1, controllers, mounted.point, mounted.locate(path))
    return None


def _parse_mount(line: str) -> _Mount | None:
    # 31 23 0:28 ROOT POINT rw,relatime optional… - TYPE SOURCE SUPER_OPTIONS
    left, separator, right = line.partition(" - ")
    fields, kinds = left.split(" "), right.split(" ")
    if not separator or len(fields) < 6 or len(kinds) < 3 or kinds[0] not in ("cgroup", "cgroup2"):
        return None
    return _Mount(kinds[0], _unescape(fields[3]), _unescape(fields[4]), frozenset(kinds[2].split(",")))


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
