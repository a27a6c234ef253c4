# SPDX-License-Identifier: Apache-2.0
"""Control groups, one face over v1, hybrid and v2."""

from insula.kernel.cgroup.group import Doors, Group, delete_parent
from insula.kernel.cgroup.hierarchy import Hierarchies, Hierarchy
from insula.kernel.cgroup.share import enter, leave, own_name, weigh
from insula.kernel.cgroup.values import Device, Limits, Stats

__all__ = [
    "Device", "Doors", "Group", "Hierarchies", "Hierarchy", "Limits", "Stats", "delete_parent", "enter", "leave", "own_name", "weigh",
]  # fmt: skip
