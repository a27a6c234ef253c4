# SPDX-License-Identifier: Apache-2.0
"""The small text files of a cgroup: read, written, and named in the error when the kernel refuses."""

import os

PAGE_BYTES = 4096
READ_BYTES = 65536


def read(directory: str, name: str) -> str:
    """Return the text of a control file.  Raises: OSError naming the file."""
    # Twice as fast as a text file of Python's: statistics of many groups are a dozen such files each.
    handle = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: os.read(handle, READ_BYTES), b"")).decode("ascii")
    finally:
        os.close(handle)


def read_short(directory: str, name: str) -> bytes:
    """Return what fits into a page, by three system calls: for what is read of many groups every few seconds.

    Raises: OSError.
    """
    handle = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(handle, PAGE_BYTES)
    finally:
        os.close(handle)


def write(directory: str, name: str, *, value: str) -> None:
    """Write a control file in one call.  Raises: OSError naming the file and the refused value."""
    handle = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, value.encode())
    except OSError as error:
        raise OSError(error.errno, f"write: {os.strerror(error.errno or 0)}", f"{name} = {value}") from None
    finally:
        os.close(handle)


def read_number(directory: str, name: str) -> int:
    """Return the one number in a control file."""
    return int(read(directory, name))


def read_limit(directory: str, name: str) -> int | None:
    """Return a limit; None if there is none: `max`, or on v1 the largest number of pages."""
    text = read(directory, name).strip()
    if text in ("max", "-1") or int(text) >= 1 << 62:
        return None
    return int(text)


def key_of(text: str, key: str) -> int:
    """Return the number beside a key in a flat keyed file; 0 if the kernel has no such key."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def groups_below(directory: str) -> list[str]:
    """Return the names of the cgroups directly below one; none if it is not there."""
    try:
        return [entry.name for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def remove_tree(directory: str) -> None:
    """Remove a cgroup and those below it, deepest first.  Raises: OSError: EBUSY if a process is in one."""
    for name in groups_below(directory):
        remove_tree(os.path.join(directory, name))
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        pass


def processes_below(directory: str) -> list[int]:
    """Return the ids of all processes in a cgroup and in those below it."""
    found: list[int] = []
    for folder, _, _ in os.walk(directory):
        try:
            found.extend(int(line) for line in read(folder, "cgroup.procs").split())
        except (FileNotFoundError, OSError):
            continue  # removed meanwhile, or a threaded one, whose processes stand in its domain
    return found
