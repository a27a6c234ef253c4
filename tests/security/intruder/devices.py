# SPDX-License-Identifier: Apache-2.0
"""cgroups, device nodes, file handles."""

import errno
import glob
import os
import stat
import struct

from security.intruder.attempt import Broke, address, call, check, each, must_fail


@check("A13-root-of-cgroups")
def _cgroup_root() -> str:
    with open("/proc/self/cgroup") as file:
        paths = {line.rstrip("\n").split(":", 2)[2] for line in file}
    # A hierarchy that the container does not stand in shows how far its root lies above: only dots.
    if wrong := [path for path in paths if path.strip("/.")]:
        raise Broke(f"{wrong}")
    return f"{sorted(paths)}"


each(
    "A13",
    {
        name: name
        for name in (
            "release_agent",
            "notify_on_release",
            "devices.allow",
            "cgroup.procs",
            "cgroup.freeze",
            "tasks",
        )
    },
    lambda name: _no_cgroup_file(name),
)


def _no_cgroup_file(name: str) -> str:
    found = [
        path for path in glob.glob(f"/sys/fs/cgroup/**/{name}", recursive=True) if os.access(path, os.W_OK)
    ]
    if found:
        raise Broke(f"{found[:3]}")
    return "not there"


NODES = {"disk": (stat.S_IFBLK, 8, 0), "virtio": (stat.S_IFBLK, 254, 0), "nvme": (stat.S_IFBLK, 259, 0), "loop": (stat.S_IFBLK, 7, 0),
         "mem": (stat.S_IFCHR, 1, 1), "kmsg": (stat.S_IFCHR, 1, 11), "tun": (stat.S_IFCHR, 10, 200), "fuse": (stat.S_IFCHR, 10, 229),
         "kvm": (stat.S_IFCHR, 10, 232), "loop-control": (stat.S_IFCHR, 10, 237), "console": (stat.S_IFCHR, 5, 1), "whiteout": (stat.S_IFCHR, 0, 0)}  # fmt: skip
PLACES = ("/tmp", "/dev", "/dev/shm", "/data", "/dev/mqueue")


def _inert(node: tuple[int, int, int]) -> str:
    kind, major, minor = node
    answers = set()
    for place in PLACES:
        path = f"{place}/inside-node"
        try:
            os.mknod(path, kind | 0o666, os.makedev(major, minor))
        except OSError as error:
            answers.add(errno.errorcode[error.errno or 0])
            continue
        try:
            answers.add(
                "made, not opened: "
                + must_fail(
                    lambda path=path: os.open(path, os.O_RDONLY | os.O_NONBLOCK),
                    errno.EACCES,
                    errno.EPERM,
                    errno.ENXIO,
                )
            )
        finally:
            os.unlink(path)
    return f"{sorted(answers)}"


each("A14", NODES, _inert)


@check("A14-devices-are-the-few")
def _devices() -> str:
    allowed = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)}
    wrong = []
    names = [os.path.join(folder, name) for folder, _, files in os.walk("/dev") for name in files]
    for path in names:
        found = os.lstat(path)
        is_terminal = stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) == 136
        is_device = stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode)
        if (
            is_device
            and not is_terminal
            and (os.major(found.st_rdev), os.minor(found.st_rdev)) not in allowed
        ):
            wrong.append(path)
    if wrong:
        raise Broke(f"{wrong}")
    return "the few"


@check("A14-mounts-hold-no-devices")
def _nodev() -> str:
    with open("/proc/self/mountinfo") as file:
        rows = [line.split() for line in file]
    open_ones = [row[4] for row in rows if row[4] in ("/", "/data") and "nodev" not in row[5].split(",")]
    if open_ones:
        raise Broke(f"without nodev: {open_ones}")
    return "nodev"


@check("A15-open_by_handle_at")
def _by_handle() -> str:
    handle = bytearray(struct.pack("=Ii", 128, 0) + bytes(128))
    number, place = bytearray(4), address(handle)
    try:
        call(303, -100, address(b"/data"), place, address(number), 0)
    except OSError:
        pass
    descriptor = os.open("/data", os.O_RDONLY)
    try:
        must_fail(lambda: call(304, descriptor, place, 0), errno.EPERM)
        # The root of most file systems, as the shocker did: type 1, inode 2.
        guess = struct.pack("=IiII", 8, 1, 2, 0)
        return must_fail(lambda: call(304, descriptor, address(guess), 0), errno.EPERM)
    finally:
        os.close(descriptor)
