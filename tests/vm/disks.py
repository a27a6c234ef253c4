# SPDX-License-Identifier: Apache-2.0
"""The guests' disks: a Debian 12 with three kernels, built once and kept, and a small one with insula, made for each run.

    system.ext4     root file system: Debian 12, kernels 6.1 and 6.12 (backports) and 5.15 (`older_kernel.py`), Redis,
                    PostgreSQL; each guest writes into a qcow2 file of its own over it
    image.tar       the containers' image: the same without kernels; a guest reads it as a disk
    tree/           the same as files, for the clients' pgbench
    insula.ext4     this working tree with the guest's init and agent, the locked packages, CRIU

No mount is needed for any of it: `mke2fs -d` fills a file system while it makes it.  Source: mmdebstrap(1), mke2fs(8).
"""

import compileall
import fcntl
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode

from insula.image.debian import machine_mirror
from insula.kernel.criu_find import PREFIX
from vm import older_kernel

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = Path(os.environ.get("INSULA_VM_CACHE", "/var/cache/insula-vm"))
RECIPE = HERE / "recipe.sh"
PACKAGES = (
    "busybox-static", "ca-certificates", "initramfs-tools", "iproute2", "kmod", "linux-image-cloud-amd64",
    "netbase", "nftables", "postgresql-15", "procps", "python3", "redis-server", "tini", "util-linux",
)  # fmt: skip
SYSTEM_SIZE = "4G"
#: What the containers' image leaves out, so that the move of its layer does not take longer than all the rest.
NOT_IN_IMAGE = (
    "boot", "dev", "etc/ssl", "opt", "run", "usr/bin/busybox", "usr/bin/perl*", "usr/bin/udevadm", "usr/lib/apt",
    "usr/bin/dpkg*", "usr/bin/localedef", "usr/bin/redis-benchmark",
    "usr/lib/initramfs-tools", "usr/lib/klibc", "usr/lib/modules", "usr/lib/postgresql/15/lib/bitcode",
    "usr/lib/postgresql/15/lib/llvmjit.so", "usr/lib/python3.11/ensurepip", "usr/lib/python3.11/lib2to3",
    "usr/lib/python3.11/pydoc_data", "usr/lib/python3.11/test", "usr/lib/python3.11/unittest", "usr/lib/systemd", "usr/lib/udev",
    "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/libLLVM-*", "usr/lib/x86_64-linux-gnu/libapt-*",
    "usr/lib/x86_64-linux-gnu/libperl.so.*", "usr/lib/x86_64-linux-gnu/libz3.so.*", "usr/lib/x86_64-linux-gnu/perl*",
    "usr/share/bash-completion", "usr/share/bug", "usr/share/ca-certificates", "usr/share/doc", "usr/share/i18n",
    "usr/share/lintian", "usr/share/man", "usr/share/perl*", "usr/share/postgresql-common/t", "usr/share/postgresql/15/man",
    "usr/share/zoneinfo/posix", "usr/share/zoneinfo/right", "var/cache", "var/lib/apt",
    "var/lib/dpkg", "var/lib/systemd", "var/log",
)  # fmt: skip
#: Beside the lock: the guests run some of the tests themselves.
FOR_TESTS = ("iniconfig", "packaging", "pluggy", "pygments", "pytest")
_FORMAT = 4
_BUILD_SECONDS = 1800.0


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel that guests can boot."""

    version: str
    """As `6.1`."""
    image: Path
    initrd: Path


@dataclass(frozen=True, kw_only=True)
class System:
    """What was built once."""

    folder: Path
    kernels: dict[str, Kernel]

    @property
    def disk(self) -> Path:
        return self.folder / "system.ext4"

    @property
    def image(self) -> Path:
        return self.folder / "image.tar"

    @property
    def tree(self) -> Path:
        return self.folder / "tree"


def find_system() -> System:
    """Return the guests' system; build it if it is not there in the form that this file describes."""
    words = (
        repr((_FORMAT, PACKAGES, older_kernel.FILES, SYSTEM_SIZE, NOT_IN_IMAGE)).encode()
        + RECIPE.read_bytes()
    )
    folder = CACHE / hashlib.sha256(words).hexdigest()[:16]
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _build(folder)
    return System(folder=folder, kernels=_kernels(folder / "boot"))


def _kernels(boot: Path) -> dict[str, Kernel]:
    found = {}
    for image in sorted(boot.glob("vmlinuz-*")):
        release = image.name.removeprefix("vmlinuz-")
        version = ".".join(release.split(".")[:2])
        found[version] = Kernel(version=version, image=image, initrd=boot / f"initrd.img-{release}")
    return found


def _build(folder: Path) -> None:
    for old in CACHE.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
    part = folder.with_suffix(".part")
    part.mkdir(mode=0o700)
    tree = part / "tree"
    _debootstrap(tree, kernels=older_kernel.fetch(part / "kernels"))
    (tree / "boot").rename(part / "boot")
    (tree / "boot").mkdir()
    excluded = [f"--exclude=./{name}" for name in NOT_IN_IMAGE]
    _run("tar", "-C", str(tree), "--numeric-owner", *excluded, "-cf", str(part / "image.tar"), ".")
    make_disk(part / "system.ext4", tree, size=SYSTEM_SIZE)
    part.rename(folder)


def _debootstrap(tree: Path, *, kernels: Path) -> None:
    mirror = machine_mirror()
    unneeded = ("doc", "man", "locale", "info")
    _run(
        "unshare", "--mount",  # what it mounts goes with it, however it ends
        "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory",
        "--dpkgopt=force-unsafe-io", '--aptopt=Acquire::Languages "none"', '--aptopt=APT::Install-Recommends "false"',
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in unneeded),
        "--include=" + ",".join(PACKAGES),
        f"--customize-hook=copy-in {RECIPE} {kernels} /",
        f'--customize-hook=chroot "$1" sh /{RECIPE.name} {mirror}',
        f'--customize-hook=rm -r "$1"/{RECIPE.name} "$1"/{kernels.name}',
        "bookworm", str(tree), mirror,
    )  # fmt: skip


def make_disk(path: Path, tree: Path, *, size: str) -> None:
    """Make an ext4 file system in a file and fill it from a folder."""
    path.unlink(missing_ok=True)
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-d", str(tree), str(path), size)


def make_insula_disk(path: Path, *, work: Path) -> None:
    """Put this working tree, what it needs of PyPI and CRIU onto a disk, compiled, since guests compute slowly."""
    tree = work / "insula"
    tree.mkdir()
    for name in ("src", "tests", "demo"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    _copy_packages(tree / "packages")
    compileall.compile_dir(
        tree,
        quiet=2,
        stripdir=str(tree),
        prependdir="/opt/insula",
        invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
    )
    shutil.copytree(PREFIX, tree / "criu", symlinks=True)
    make_disk(path, tree, size="256M")
    shutil.rmtree(tree)


def _copy_packages(target: Path) -> None:
    # The very files that pip has installed from the hashed lock on this machine; Debian 12 has the same Python.
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    for name in (*re.findall(r"^([A-Za-z0-9._-]+)==", lock, re.MULTILINE), *FOR_TESTS):
        for file in importlib.metadata.distribution(name).files or ():
            if ".." in file.parts or file.suffix == ".pyc":
                continue
            place = target / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), place)


def make_overlay(path: Path, system: Path) -> None:
    """Make a guest's own disk over the one that all share."""
    _run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(system), str(path))


def _run(*command: str) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_BUILD_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        tail = done.stdout.decode(errors="replace")[-3000:]
        raise RuntimeError(f"`{command[0]}` ended with {done.returncode}:\n{tail}")
