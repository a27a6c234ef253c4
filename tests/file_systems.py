# SPDX-License-Identifier: Apache-2.0
"""File systems in files, mounted for a test: a kind that this machine has not is skipped by the name of what is missing."""

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MIB = 1 << 20
FULL, SIMPLE = 1, 4
"""Kinds of btrfs' quotas: include/uapi/linux/btrfs.h, BTRFS_QUOTA_CTL_ENABLE and its _SIMPLE_QUOTA."""
_BTRFS_IOC_QUOTA_CTL = 0xC0109428
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"


@contextmanager
def ext4_with_projects(folder: Path) -> Iterator[Path]:
    """64 MiB of ext4 whose project quotas are enforced."""
    make = ("mkfs.ext4", "-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota")
    missing = "the kernel has no project quotas (CONFIG_QFMT_V2)"
    with _mounted(folder, *make, size=64 * MIB, options="loop,prjquota", missing=missing) as place:
        yield place


@contextmanager
def btrfs_file_system(folder: Path) -> Iterator[Path]:
    """256 MiB of btrfs without quotas."""
    missing = "the kernel has no btrfs (CONFIG_BTRFS_FS)"
    with _mounted(folder, "mkfs.btrfs", "-q", size=256 * MIB, options="loop", missing=missing) as place:
        yield place


def enable_btrfs_quotas(path: Path, how: int) -> None:
    """As `btrfs quota enable [--simple]`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _BTRFS_IOC_QUOTA_CTL, struct.pack("=2Q", how, 0))
    except OSError:
        pytest.skip("the kernel has no simple quotas of btrfs (Linux 6.7)")
    finally:
        os.close(descriptor)


@contextmanager
def nobody_in(folder: Path) -> Iterator[int]:
    """Be nobody, with a folder's descriptor: who has CAP_SYS_RESOURCE is not held by project quotas (fs/quota/dquot.c)."""
    folder.chmod(0o777)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.seteuid(65534)
    try:
        yield descriptor
    finally:
        os.seteuid(0)
        os.close(descriptor)


def fill(path: Path, size: int) -> int:
    """Write a file until it fails; returns the errno, 0 if all could be written."""
    with nobody_in(path.parent) as folder:
        try:
            file = os.open(path.name, os.O_WRONLY | os.O_CREAT, dir_fd=folder)
        except OSError as error:
            return error.errno or -1
        try:
            for _ in range(size // MIB):
                os.write(file, os.urandom(MIB))
            os.fsync(file)
        except OSError as error:
            return error.errno or -1
        finally:
            os.close(file)
    return 0


def make_files(folder: Path, count: int) -> int:
    """Make empty files until it fails; returns the errno, 0 if all could be made."""
    with nobody_in(folder) as descriptor:
        try:
            for number in range(count):
                os.close(os.open(f"file {number}", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor))
        except OSError as error:
            return error.errno or -1
    return 0


@contextmanager
def _mounted(folder: Path, *make: str, size: int, options: str, missing: str) -> Iterator[Path]:
    image, place = folder / "image", folder / "mounted"
    if shutil.which(make[0], path=_PATH) is None:
        pytest.skip(f"{make[0]} is not installed")
    with open(image, "wb") as file:
        file.truncate(size)
    place.mkdir()
    subprocess.run([*make, str(image)], check=True, capture_output=True)
    done = subprocess.run(["mount", "-o", options, str(image), str(place)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(missing)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
