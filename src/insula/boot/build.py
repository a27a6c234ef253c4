# SPDX-License-Identifier: Apache-2.0
"""The root file system of a container: what the spawner prepares outside, and what the child puts together inside.

Outside, as the host's root: an overlay of id-mapped layers, a small `/dev` with real device nodes, bind mounts, all
as detached mounts that nobody can see.  Inside, as the container's root: attach them, add what must be made within the
new namespaces (proc, sysfs, devpts, shm, mqueue), hide what is not the container's business, pivot.

Sources: `Documentation/filesystems/{overlayfs,proc}.rst`, pivot_root(2), the OCI runtime specification's default
devices and masked paths.  Standard library only.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from insula.boot import root_parts
from insula.boot.program import StepFailed
from insula.boot.protocol import DevicePlan, FilePlan, MountPlan, StartPlan
from insula.kernel import idmap, libc, mount, overlay, paths

ID_COUNT = 65536
_TTY_GROUP = 5
_TERMINALS = 256
"""Of one container: a sixteenth of what the kernel has by default for all."""

#: name, major, minor: `Documentation/admin-guide/devices.txt`
DEVICES = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
DEVICE_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)
#: Covered by /dev/null (files) or an empty folder; those that this kernel does not have are passed over.  Disks: how much others
#: write is in their figures, and a tenant's disk may be one of its own.
MASKED = (
    "proc/acpi", "proc/asound", "proc/diskstats", "proc/interrupts", "proc/kcore", "proc/keys", "proc/latency_stats", "proc/partitions",
    "proc/sched_debug", "proc/scsi", "proc/timer_list", "proc/timer_stats", "sys/firmware", "sys/devices/virtual/block",
    "sys/devices/virtual/powercap", "sys/block", "sys/class/block", "sys/dev/block", "sys/fs/ext4",
)  # fmt: skip
READ_ONLY = ("proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger")
_EMPTY = ".empty"
"""The folder of our own /dev that covers masked folders."""

_PATH_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Prepared(NamedTuple):
    """Detached mounts, made by the spawner, inherited by the child."""

    root: int
    devices: int
    mounts: tuple[int, ...]
    """One for each MountPlan; -1 for a tmpfs, which the child makes."""

    def close(self) -> None:
        for descriptor in (self.root, self.devices, *self.mounts):
            if descriptor >= 0:
                os.close(descriptor)


class Masks(NamedTuple):
    """What covers masked files and folders: ours, opened before anything of the container's could be mounted on it."""

    null: int
    empty: int

    def close(self) -> None:
        os.close(self.null)
        os.close(self.empty)


class IdMaps:
    """User namespaces that hold a tenant's mapping, made once per tenant and kept."""

    def __init__(self) -> None:
        self._by_base: dict[int, int] = {}

        self._by_owner: dict[tuple[int, ...], int] = {}

    def descriptor(self, uid_base: int) -> int:
        if uid_base not in self._by_base:
            ranges = id_ranges(uid_base)
            self._by_base[uid_base] = idmap.user_namespace(uids=ranges, gids=ranges)
        return self._by_base[uid_base]

    def of_owner(self, uid_base: int, owner: tuple[int, ...]) -> int:
        """Return the mapping of one user's files on disk to the root of a tenant's containers."""
        key = (uid_base, *owner)
        if key not in self._by_owner:
            uid, gid = owner
            self._by_owner[key] = idmap.user_namespace(
                uids=(idmap.Range(uid, uid_base, 1),), gids=(idmap.Range(gid, uid_base, 1),)
            )
        return self._by_owner[key]


def id_ranges(uid_base: int) -> tuple[idmap.Range, ...]:
    """Return the mapping of a container: ids 0 to 65,535 are the host's from `uid_base` on."""
    return (idmap.Range(0, uid_base, ID_COUNT),)


def prepare(plan: StartPlan, maps: IdMaps) -> Prepared:
    """Make every mount of a container that the host's root must make.

    Raises: OSError naming call and path; nothing stays open then.
    """
    userns = maps.descriptor(plan.uid_base)
    with contextlib.ExitStack() as made:
        root = _keep(made, prepare_root(plan, userns))
        devices = _keep(made, prepare_devices(plan))
        mounts = tuple(
            _keep(made, _prepare_mount(each, maps, uid_base=plan.uid_base)) for each in plan.mounts
        )
        made.pop_all()
    return Prepared(root, devices, mounts)


def _keep(made: contextlib.ExitStack, descriptor: int) -> int:
    if descriptor >= 0:
        made.callback(os.close, descriptor)
    return descriptor


@contextlib.contextmanager
def _opened(path: str, flags: int = _PATH_DIRECTORY) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def prepare_root(plan: StartPlan, userns: int) -> int:
    """Mount the overlay, detached.  Upper and work folder stand beneath one id-mapped clone of their parent."""
    root = plan.root
    parent, upper_name = os.path.split(root.upper)
    work_parent, work_name = os.path.split(root.work)
    if parent != work_parent:
        raise OSError(22, "overlay: upper and work folder have different parents", root.upper)
    with contextlib.ExitStack() as held:
        lower = []
        for layer in root.lower:
            source = held.enter_context(_opened(layer))
            lower.append(_keep(held, idmap.idmapped_clone(source, userns, read_only=True)))
        source = held.enter_context(_opened(parent))
        writable = _keep(held, idmap.idmapped_clone(source, userns))
        upper = _keep(held, os.open(upper_name, _PATH_DIRECTORY, dir_fd=writable))
        work = _keep(held, os.open(work_name, _PATH_DIRECTORY, dir_fd=writable))
        return overlay.make(
            lower_fds=lower,
            upper_fd=upper,
            work_fd=work,
            source="insula",
            owner=(plan.uid_base, plan.uid_base),
            attributes=mount.MOUNT_ATTR_NODEV,
        )


def prepare_devices(plan: StartPlan) -> int:
    """Make a container's /dev: a tmpfs of the host's, since only that may hold device nodes that open."""
    uid_base = plan.uid_base
    device_mount = mount.tmpfs(
        size_bytes=65536, mode=0o755, inodes=256, uid=uid_base, gid=uid_base, source="dev",
        attributes=mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NOEXEC,
    )  # fmt: skip
    before = os.umask(0)
    try:
        for name, major, minor in DEVICES:
            os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=device_mount)
        for name, target in DEVICE_LINKS:
            os.symlink(target, name, dir_fd=device_mount)
        for name in ("pts", "shm", "mqueue", _EMPTY):
            os.mkdir(name, 0o755, dir_fd=device_mount)
        for device in plan.devices:
            _make_node(device, device_mount, owner=uid_base)
    except OSError:
        os.close(device_mount)
        raise
    finally:
        os.umask(before)
    return device_mount


def _make_node(plan: DevicePlan, device_mount: int, *, owner: int) -> None:
    *folders, _ = plan.target.split("/")
    for depth in range(1, len(folders) + 1):
        with contextlib.suppress(FileExistsError):
            os.mkdir("/".join(folders[:depth]), 0o755, dir_fd=device_mount)
    kind = stat.S_IFBLK if plan.kind == "b" else stat.S_IFCHR
    os.mknod(plan.target, kind | plan.mode, os.makedev(plan.major, plan.minor), dir_fd=device_mount)
    os.chown(plan.target, owner, owner, dir_fd=device_mount, follow_symlinks=False)


@contextlib.contextmanager
def _opened_source(plan: MountPlan) -> Iterator[int]:
    # A user's is a handle already; any other path was resolved when the container was made, and who has exchanged a part of
    # it by a link since then gets no mount at all.
    if plan.owner:
        descriptor = os.open(plan.source, os.O_PATH | os.O_CLOEXEC)
    else:
        descriptor = paths.open_without_links(plan.source, flags=os.O_PATH)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _prepare_mount(plan: MountPlan, maps: IdMaps, *, uid_base: int) -> int:
    if plan.kind != "bind":
        return -1
    userns = maps.of_owner(uid_base, plan.owner) if plan.owner else maps.descriptor(uid_base)
    with _opened_source(plan) as source:
        if plan.owner:
            # Without the mapping it would be another mount than was permitted: then there is none.
            mapped = idmap.idmapped_clone(source, userns, read_only=plan.read_only)
            mount.set_attributes(mapped, set=mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOSUID)
            return mapped
        if plan.idmapped and (made := _idmapped(source, userns, read_only=plan.read_only)) is not None:
            mount.set_attributes(made, set=mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOSUID)
            return made
        attributes = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV
        return mount.bind_fd(
            source, attributes=attributes | (mount.MOUNT_ATTR_RDONLY if plan.read_only else 0)
        )


def _idmapped(source: int, userns: int, *, read_only: bool) -> int | None:
    """Clone a mount with the container's ids, so that root's files are root's inside; None: its file system cannot.

    Then the files of a bind mount are seen as nobody's.  Source: mount_setattr(2), MOUNT_ATTR_IDMAP, "EINVAL".
    """
    try:
        return idmap.idmapped_clone(source, userns, read_only=read_only)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None


def assemble(plan: StartPlan, prepared: Prepared, *, stage: int) -> Masks:
    """In the child: build the tree at `stage` (an empty folder) and make its root the working directory.

    stage: opened in the child's mount namespace while it still had the host's ids: nobody else may reach that folder.
    Raises: StepFailed for an image that has something else where our mounts go; OSError naming call and path.
    """
    mount.set_propagation("/", propagation=mount.MS_PRIVATE)
    mount.attach(prepared.root, stage)
    os.fchdir(prepared.root)
    root = os.open(".", _PATH_DIRECTORY)
    try:
        for name in ("dev", "proc", "sys"):
            _need_directory(root, name)
        _attach_at(root, "dev", prepared.devices)
        masks = _open_masks(prepared.devices)
        for name, made in (("proc", mount.proc()), ("sys", mount.sysfs())):
            _attach_at(root, name, made, close=True)
        _attach_at(root, "dev/pts", mount.devpts(gid=_TTY_GROUP, terminals=_TERMINALS), close=True)
        _attach_at(root, "dev/shm", mount.tmpfs(mode=0o1777, source="shm"), close=True)
        _attach_at(root, "dev/mqueue", mount.mqueue(), close=True)
        for part in root_parts.find(root, plan.root):
            place, made = root_parts.open_part(root, part)
            mount.attach(made, place)
            os.close(made)
            os.close(place)
        for each, descriptor in zip(plan.mounts, prepared.mounts, strict=True):
            _attach_wished(root, each, descriptor)
        for file in plan.files:
            write_file(root, file)
        return masks
    finally:
        os.close(root)


def _need_directory(root: int, name: str) -> None:
    # Through a link our mounts would stand elsewhere, and what is masked would not be where it is looked for.
    try:
        os.mkdir(name, 0o755, dir_fd=root)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=root, follow_symlinks=False).st_mode):
            raise StepFailed(
                f"cannot use the image: its `/{name}` is no directory", code="invalid_image"
            ) from None


def _open_masks(devices: int) -> Masks:
    null = os.open("null", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=devices)
    found = os.fstat(null)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(1, 3):
        os.close(null)
        raise OSError(errno.ENODEV, "open: it is not the null device", "dev/null")
    return Masks(null, os.open(_EMPTY, _PATH_DIRECTORY | os.O_NOFOLLOW, dir_fd=devices))


def _attach_at(root: int, path: str, made: int, *, close: bool = False) -> None:
    place = paths.make_directories_in_root(root, path, mode=0o755)
    mount.attach(made, place)
    os.close(place)
    if close:
        os.close(made)


def _attach_wished(root: int, plan: MountPlan, descriptor: int) -> None:
    if plan.kind == "tmpfs":
        made = mount.tmpfs(
            size_bytes=plan.size_bytes,
            mode=0o1777,
            attributes=mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV,
        )
        _attach_at(root, plan.target, made, close=True)
    elif stat.S_ISDIR(os.fstat(descriptor).st_mode):
        _attach_at(root, plan.target, descriptor)
    else:
        place = paths.open_in_root(
            root, plan.target, flags=os.O_CREAT | os.O_RDONLY | os.O_NONBLOCK, mode=0o644, create_parents=True
        )
        mount.attach(descriptor, place)
        os.close(place)


def write_file(root: int, file: FilePlan) -> None:
    """Write a file of ours into the root, replacing a link (as distributions make of resolv.conf) by a file."""
    folder = paths.make_directories_in_root(root, os.path.dirname(file.path), mode=0o755)
    name = os.path.basename(file.path)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            pass
        descriptor = os.open(name, flags, 0o644, dir_fd=folder)
        try:
            os.write(descriptor, file.text.encode())
        finally:
            os.close(descriptor)
    finally:
        os.close(folder)


def pivot() -> None:
    """Make the working directory the root and let go of everything outside it.  See pivot_root(2), `pivot_root(".", ".")`."""
    libc.pivot_root(b".", b".")
    libc.umount2(b".", mount.MNT_DETACH)
    os.chdir("/")


def hide(masks: Masks) -> None:
    """Mask and write-protect what is the host's business in /proc and /sys.  After `pivot`; closes the masks."""
    for path in MASKED:
        _cover(path, null=masks.null, empty=masks.empty)
    for path in READ_ONLY:
        try:
            place = os.open("/" + path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        made = mount.bind_fd(place, recursive=True, attributes=mount.MOUNT_ATTR_RDONLY)
        mount.attach(made, place)
        os.close(made)
        os.close(place)
    masks.close()


def _cover(path: str, *, null: int, empty: int) -> None:
    try:
        place = os.open("/" + path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    is_directory = stat.S_ISDIR(os.fstat(place).st_mode)
    made = mount.bind_fd(
        empty if is_directory else null, attributes=mount.MOUNT_ATTR_RDONLY if is_directory else 0
    )
    mount.attach(made, place)
    os.close(made)
    os.close(place)


def protect_root() -> None:
    """Make the root file system read-only: for `--read-only`."""
    root = os.open("/", _PATH_DIRECTORY)
    mount.set_attributes(root, set=mount.MOUNT_ATTR_RDONLY)
    os.close(root)
