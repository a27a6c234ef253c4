# SPDX-License-Identifier: Apache-2.0
"""The built-in image `host`: this host's own user space, copy-on-write, without its secrets.

Two lower layers: `/` itself (that mount only, nothing mounted below it), and over it a small tmpfs, the mask:

    /etc              a copy of what everybody may read, less keys; nothing that appears later in the host's /etc shows
    /usr /opt         shown as they are; what not everybody may read is hidden by whiteouts, since a container's root
                      would be its owner
    /bin /sbin /lib*  shown as they are (links into /usr on a merged Debian)
    /var              the host's folders to the second level, empty;  /root /home /tmp /run /srv /mnt …: empty
    anything else     hidden by whiteouts

What remains: a file that is put below /usr or /opt later and is not for everybody shows until `refresh` walks again
(when dpkg ran, or a folder of /etc or /opt changed); files that everybody on the host may read are no secrets here.
The mask must be on another file system than `/`, for overlayfs refuses a lower layer within another (ELOOP), and
id-mapped: tmpfs can be since Linux 6.3.

Sources: overlayfs.rst, "whiteouts and opaque directories"; hier(7).
"""

import hashlib
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from insula.image.tarball import MAX_ID, OPAQUE
from insula.kernel import mount
from insula.model.record import ImageRecord

HOST_IMAGE = ImageRecord(
    id="sha256:" + hashlib.sha256(b"insula host image").hexdigest(), names=("host:latest",), source="host"
)
SHOWN = ("usr", "opt", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
WALKED = ("usr", "opt")
#: Empty folders that a program expects, with their modes.
FRESH = {
    "root": 0o700, "home": 0o755, "tmp": 0o1777, "run": 0o755, "srv": 0o755, "mnt": 0o755, "media": 0o755,
    "dev": 0o755, "proc": 0o555, "sys": 0o555, "var": 0o755,
}  # fmt: skip
#: Names in /etc that are not copied, even if everybody may read them.
SECRET = (
    "shadow*", "gshadow*", "sudoers*", "ssh_host_*_key", "machine-id", "opasswd", "*.keytab", "private", "credstore*",
    "auth.conf*", "netrc", "insula", "*.key", ".pwd.lock",
)  # fmt: skip
CHECK_INTERVAL_S = 2.0  # looking at every folder of /etc and /opt costs some milliseconds: not at each start
_MASK = "mask"
_MASK_BYTES = 256 << 20
_COPIED_FILE_BYTES = 4 << 20  # larger files of /etc are caches (hwdb.bin) and are left out
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class _Survey:
    hidden: tuple[str, ...]
    """Paths below `/` that not everybody may read."""
    identity: str


class HostView:
    """The view of this host's user space that containers of the image `host` get.

    folder: below it masks are mounted.  `close` takes them away; containers keep theirs alive.
    """

    def __init__(self, folder: Path, *, root: Path = Path("/")) -> None:
        self._folder = folder
        self._root = root
        self._lock = threading.Lock()
        self._fingerprint: tuple[int, ...] = ()
        self._watched: tuple[str, ...] = ()
        self._checked = 0.0
        self._survey = _Survey(hidden=(), identity="")
        self._mounted: list[Path] = []
        self.added: dict[str, Path] = {}
        """Programs of insula's own that the view shows beside the host's: path below `/` → file to copy.

        They stand in the mask because another layer on the host's own file system would overlap with `/` (ELOOP).
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def lower_folders(self) -> tuple[Path, ...]:
        """Return the lower layers, bottom first; the mask is made now if there is none or the host changed.

        The mask is a folder within its mount: were that away, opening it fails, and nothing is shown unmasked.
        """
        self.refresh()
        return (self._root, self._mounted[-1] / _MASK)

    def identity(self) -> str:
        """Return a digest of names, sizes and times of the programs and libraries of this host.

        Hosts with equal digests have equal user spaces: a running container of this image can move between them.
        """
        self.refresh()
        return self._survey.identity

    def refresh(self) -> bool:
        """Make the mask anew if the host's tree changed; looked for every CHECK_INTERVAL_S.  Returns: whether it did."""
        with self._lock:
            if self._mounted and not self._has_changed():
                return False
            if not self._mounted:
                self._remove_all()  # what a daemon that was killed left
            self._watched = tuple(_watched(self._root))
            self._fingerprint = tuple(_changed_ns(path) for path in self._watched)
            self._survey = _survey(self._root)
            self._mount_mask()
            # The one before stays a while: somebody may be about to open it.
            for place in self._mounted[:-2]:
                _remove(place)
            del self._mounted[:-2]
            self._checked = time.monotonic()
            return True

    def close(self) -> None:
        """Take the masks away."""
        with self._lock:
            self._remove_all()
            self._mounted.clear()

    def _has_changed(self) -> bool:
        if time.monotonic() - self._checked < CHECK_INTERVAL_S:
            return False
        self._checked = time.monotonic()
        return tuple(_changed_ns(path) for path in self._watched) != self._fingerprint

    def _mount_mask(self) -> None:
        place = Path(tempfile.mkdtemp(prefix="mask-", dir=self._folder))
        fd = mount.tmpfs(size_bytes=_MASK_BYTES, source="insula-host", attributes=mount.MOUNT_ATTR_NODEV)
        try:
            mask = _Mask(Path(f"/proc/self/fd/{fd}/{_MASK}"), self._root)
            mask.fill(self._survey.hidden)
            for path, source in self.added.items():
                mask.add(path, source)
            mount.set_attributes(fd, set=mount.MOUNT_ATTR_RDONLY, propagation=mount.MS_PRIVATE)
            mount.attach(fd, str(place))
        except BaseException:
            place.rmdir()
            raise
        finally:
            os.close(fd)
        self._mounted.append(place)

    def _remove_all(self) -> None:
        for place in self._folder.glob("mask-*"):
            _remove(place)


def _remove(place: Path) -> None:
    while os.path.ismount(place):
        mount.detach(str(place))
    place.rmdir()


def _watched(root: Path) -> Iterator[str]:
    yield str(root)
    yield str(root / "usr")
    yield str(root / "var/lib/dpkg/status")
    for top in ("etc", "opt"):
        for folder, _, _ in os.walk(root / top):
            yield folder


def _changed_ns(path: str) -> int:
    try:
        status = os.lstat(path)
    except OSError:
        return 0
    return status.st_mtime_ns ^ status.st_ctime_ns << 1


def _is_public(status: os.stat_result) -> bool:
    if stat.S_ISLNK(status.st_mode):
        return True
    wanted = stat.S_IROTH | stat.S_IXOTH if stat.S_ISDIR(status.st_mode) else stat.S_IROTH
    return status.st_mode & wanted == wanted or bool(
        # a program that everybody may run, though not read, is no secret
        stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IXOTH
    )


def _survey(root: Path) -> _Survey:
    digest, hidden = hashlib.sha256(), list[str]()
    device = os.stat(root).st_dev
    waiting = [str(root / top) for top in reversed(WALKED) if (root / top).is_dir()]
    skip = len(str(root).rstrip("/")) + 1
    while waiting:
        folder = waiting.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda each: each.name)
        except OSError:
            continue
        below = []
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # somebody installs or removes programs just now
                continue
            if not _is_public(status):
                hidden.append(entry.path[skip:])
            elif stat.S_ISDIR(status.st_mode):
                if status.st_dev == device and entry.name != "__pycache__":
                    below.append(entry.path)
            elif stat.S_ISREG(status.st_mode):
                line = f"{entry.path[skip:]}\0{status.st_size}\0{status.st_mtime_ns}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
        waiting += reversed(below)
    return _Survey(hidden=tuple(hidden), identity=f"sha256:{digest.hexdigest()}")


class _Mask:
    """Fills a new folder of a tmpfs.  The tree below `root` is the host's own; links in it are not followed."""

    def __init__(self, to: Path, root: Path) -> None:
        self._to = to
        self._root = root

    def fill(self, hidden: Iterable[str]) -> None:
        self._to.mkdir(mode=0o755)
        self._to.chmod(0o755)
        for entry in os.scandir(self._root):
            if entry.name not in FRESH and entry.name not in SHOWN and entry.name != "etc":
                self._whiteout(entry.name)
        for name, mode in FRESH.items():
            self._folder(name, mode=mode)
        self._var()
        self._folder("etc", mode=0o755)
        self._copy("etc")
        (self._to / "etc/machine-id").touch(mode=0o444)
        for path in hidden:
            self._parents(path)
            self._whiteout(path)

    def add(self, path: str, source: Path) -> None:
        """Show a program that the host does not have there."""
        place = self._to / path
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        shutil.copyfile(source, place)
        place.chmod(0o755)

    def _folder(self, path: str, *, mode: int) -> None:
        place = self._to / path
        place.mkdir()
        place.chmod(mode)
        os.setxattr(place, OPAQUE, b"y")

    def _whiteout(self, path: str) -> None:
        os.mknod(self._to / path, stat.S_IFCHR, os.makedev(0, 0))

    def _parents(self, path: str) -> None:
        # Folders over a whiteout are the host's own: same owner, mode and time, not opaque.
        made = self._to
        for part in Path(path).parent.parts:
            made = made / part
            if not made.exists():
                made.mkdir()
                with suppress(FileNotFoundError):
                    _adopt(made, os.lstat(self._root / made.relative_to(self._to)))

    def _var(self) -> None:
        for first in ("cache", "lib", "log", "spool"):
            self._empty_folder(f"var/{first}")
            if (self._root / "var" / first).is_dir():
                for entry in os.scandir(self._root / "var" / first):
                    if entry.is_dir(follow_symlinks=False):
                        self._empty_folder(f"var/{first}/{entry.name}")
        (self._to / "var/tmp").mkdir()
        (self._to / "var/tmp").chmod(0o1777)
        os.symlink("/run", self._to / "var/run")
        os.symlink("/run/lock", self._to / "var/lock")

    def _empty_folder(self, path: str) -> None:
        (self._to / path).mkdir()
        try:
            _adopt(self._to / path, os.lstat(self._root / path))
        except FileNotFoundError:
            pass

    def _copy(self, folder: str) -> None:
        for entry in os.scandir(self._root / folder):
            if not any(fnmatch(entry.name, pattern) for pattern in SECRET):
                with suppress(FileNotFoundError):  # it has gone meanwhile
                    self._copy_entry(entry, f"{folder}/{entry.name}")

    def _copy_entry(self, entry: os.DirEntry[str], path: str) -> None:
        status, target = entry.stat(follow_symlinks=False), self._to / path
        if not _is_public(status):
            return
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(entry.path), target)
        elif stat.S_ISDIR(status.st_mode):
            target.mkdir()
            self._copy(path)
            _adopt(target, status)
        elif stat.S_ISREG(status.st_mode) and status.st_size <= _COPIED_FILE_BYTES:
            _copy_file(entry.path, target)


def _copy_file(source: str, target: Path) -> None:
    try:
        fd = os.open(source, _FILE)
    except FileNotFoundError:
        return
    with os.fdopen(fd, "rb") as reading:
        status = os.fstat(fd)
        if not (stat.S_ISREG(status.st_mode) and _is_public(status)):
            return
        with os.fdopen(os.open(target, _NEW, 0o600), "wb") as writing:
            writing.write(reading.read(_COPIED_FILE_BYTES))
    _adopt(target, status)


def _adopt(target: Path, status: os.stat_result) -> None:
    if status.st_uid <= MAX_ID and status.st_gid <= MAX_ID:
        os.chown(target, status.st_uid, status.st_gid)
    os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
