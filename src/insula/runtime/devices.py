# SPDX-License-Identifier: Apache-2.0
"""Devices of the host's that a container may open: what is wished, checked, and looked up anew at each start.

    wish ─► a path below /dev, on which no link lies ─► its numbers ─► a node of the container's root in its own /dev,
                                                                       and the device filter of its control group

The host's node is not shown: its owner and group mean nothing in the container.  Who may ask for which: `permitted.py`.
Out of scope: what a device lets its opener do; nothing insula does makes /dev/mem harmless.  A container with devices
stays on its host.  Sources: devices.rst of cgroup v1; bpf_cgroup_dev_ctx.
"""

import os
import stat
from collections.abc import Sequence

from insula.boot.build import DEVICE_LINKS, DEVICES
from insula.boot.protocol import DevicePlan
from insula.kernel.paths import open_without_links
from insula.model.errors import InvalidSpec
from insula.model.spec import DeviceWish

_PLACE = "/dev/"
_OURS = frozenset(
    {*(name for name, *_ in DEVICES), *(name for name, _ in DEVICE_LINKS), "pts", "shm", "mqueue", "console"}
)
MAX_DEVICES = 64


def check_devices(wished: Sequence[DeviceWish]) -> None:
    """Raises: InvalidSpec naming the device, and what is wrong with it."""
    if len(wished) > MAX_DEVICES:
        raise InvalidSpec(f"cannot use {len(wished)} devices", hint=f"at most {MAX_DEVICES}")
    targets = set()
    for each in wished:
        for path in (each.source, _target(each)):
            if not path.startswith(_PLACE) or os.path.normpath(path) != path or "\0" in path:
                raise InvalidSpec(
                    f"cannot use device `{path}`: not a path below /dev", hint="--device /dev/fuse"
                )
        if not each.access or set(each.access) - set("rwm") or len(set(each.access)) != len(each.access):
            raise InvalidSpec(
                f"cannot use device `{each.source}`: `{each.access}` is no access", hint="of r, w, m"
            )
        name = _target(each).removeprefix(_PLACE)
        if name.split("/")[0] in _OURS or name in targets:
            raise InvalidSpec(f"cannot put a device at `{_target(each)}`: something else is there")
        targets.add(name)


def device_plans(wished: Sequence[DeviceWish]) -> tuple[DevicePlan, ...]:
    """Look devices up.  Raises: InvalidSpec for what is not there, no device, or behind a link."""
    return tuple(map(_plan, wished))


def _plan(wish: DeviceWish) -> DevicePlan:
    try:
        descriptor = open_without_links(wish.source, flags=os.O_PATH)
    except OSError as error:
        reason = (error.strerror or "").rpartition(": ")[2].lower()
        raise InvalidSpec(
            f"cannot use device `{wish.source}`: {reason}",
            hint="the node itself, not a link to it; ls -l /dev",
        ) from None
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not (stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        raise InvalidSpec(f"cannot use device `{wish.source}`: it is no device")
    return DevicePlan(
        target=_target(wish).removeprefix(_PLACE),
        kind="b" if stat.S_ISBLK(found.st_mode) else "c",
        major=os.major(found.st_rdev),
        minor=os.minor(found.st_rdev),
        mode=stat.S_IMODE(found.st_mode),
        access=wish.access,
    )


def _target(wish: DeviceWish) -> str:
    return wish.target or wish.source
