# SPDX-License-Identifier: Apache-2.0
"""Identity, rights, descriptors, other processes."""

import errno
import os
import struct
import sys

from security.intruder.attempt import (
    Broke,
    address,
    call,
    check,
    is_root,
    listed,
    must_fail,
    told,
    write,
)

#: What root in a container holds without asking for more: bits of CapEff, as `insula.kernel.caps.DEFAULT`.
DEFAULT_CAPABILITIES = 0xA80425FB


def status() -> dict[str, str]:
    with open("/proc/self/status") as file:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in file)}


@check("A1-ids-are-mapped-high")
def _map() -> str:
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}") as file:
            first, base, width = map(int, file.read().split())
        # Within the user namespace itself the base is seen as it is on the host: the container has no other parent.
        if first != 0 or base < 0x20000000 or width != 65536:
            raise Broke(f"{name}: {first} {base} {width}")
    return "mapped"


@check("A1-maps-cannot-be-written")
def _map_is_fixed() -> str:
    return must_fail(lambda: write("/proc/self/uid_map", b"0 0 4294967295\n"), errno.EPERM, errno.EACCES)


@check("A2-five-sets")
def _sets() -> str:
    held = DEFAULT_CAPABILITIES if is_root() else 0
    wanted = {"CapInh": 0, "CapPrm": held, "CapEff": held, "CapBnd": DEFAULT_CAPABILITIES, "CapAmb": 0}
    found = {name: int(status()[name], 16) for name in wanted}
    if found != wanted:
        raise Broke(f"{found}")
    return "exactly the list"


@check("A2-no-new-privileges-and-filter")
def _no_new_privileges() -> str:
    found = status()["NoNewPrivs"], status()["Seccomp"]
    if found != ("1", "2"):
        raise Broke(f"{found}")
    return "1, 2"


@check("A2-rights-cannot-be-raised")
def _raise_rights() -> str:
    # capset with every bit permitted and inheritable.
    header, data = (
        struct.pack("=Ii", 0x20080522, 0),
        struct.pack("=6I", *(0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0x1FF, 0x1FF, 0x1FF)),
    )
    return must_fail(lambda: call(126, address(header), address(data)), errno.EPERM)


SHOW_RIGHTS = """
import os
with open("/proc/self/status") as file:
    print(os.geteuid(), next(line.split()[1] for line in file if line.startswith("CapEff")))
"""


def _copied_python(path: str) -> None:
    with open(os.path.realpath(sys.executable), "rb") as source, open(path, "wb") as target:
        target.write(source.read())


def _said_as_user(path: str) -> str:
    def act() -> str:
        os.setgroups([])
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
        os.execv(path, [path, "-ISc", SHOW_RIGHTS])

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(writing, 1)
            act()
        except OSError as error:
            os.write(1, errno.errorcode[error.errno or 0].encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        said = file.read().strip()
    os.waitpid(child, 0)
    return said


@check("A3-setuid-file")
def _setuid() -> str:
    if not is_root():
        return must_fail(lambda: os.setuid(0), errno.EPERM)
    path = "/tmp/inside-setuid"
    _copied_python(path)
    try:
        os.chmod(path, 0o6755)
        if (said := _said_as_user(path)) != "1000 0000000000000000":
            raise Broke(said)
        return said
    finally:
        os.unlink(path)


@check("A3-file-capabilities")
def _file_capabilities() -> str:
    if not is_root():
        return must_fail(lambda: os.setgroups([0]), errno.EPERM)
    path = "/tmp/inside-capable"
    _copied_python(path)
    try:
        os.chmod(path, 0o755)
        # struct vfs_cap_data, revision 2, effective: the rights that a container has.
        data = struct.pack("<5I", 0x02000001, DEFAULT_CAPABILITIES, 0, 0, 0)
        os.setxattr(path, "security.capability", data)
        if (said := _said_as_user(path)) not in ("1000 0000000000000000", "EPERM"):
            raise Broke(said)
        return said
    finally:
        os.unlink(path)


@check("A4-own-descriptors")
def _descriptors() -> str:
    return _judge_descriptors("self")


@check("A4-descriptors-of-pid-1")
def _descriptors_of_1() -> str:
    try:
        return _judge_descriptors("1")
    except PermissionError:
        return "EACCES"


def _judge_descriptors(process: str) -> str:
    found = {}
    for name in os.listdir(f"/proc/{process}/fd"):
        try:
            target = os.readlink(f"/proc/{process}/fd/{name}")
        except FileNotFoundError:  # the one that lists the folder
            continue
        found[int(name)] = target
    if process == "self":
        found = {number: target for number, target in found.items() if number in told.descriptors}
    kinds = ("pipe:", "/dev/null", "/dev/pts/", "socket:[")
    wrong = {
        n: t
        for n, t in found.items()
        if n > 2 or not t.startswith(kinds) or (process != "self" and "socket" in t)
    }
    if wrong:
        raise Broke(f"{wrong}")
    return f"{sorted(found)}"


@check("A6-own-program-cannot-be-written")
def _exe() -> str:
    for process in ("self", "1"):
        must_fail(
            lambda process=process: os.open(f"/proc/{process}/exe", os.O_RDWR),
            errno.ETXTBSY,
            errno.EACCES,
            errno.EPERM,
        )
    return "refused"


@check("A7-processes-outside-do-not-exist")
def _processes_outside() -> str:
    visible = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    for pid in set(told.pids) - visible:
        must_fail(lambda pid=pid: os.kill(pid, 0), errno.ESRCH)
        must_fail(lambda pid=pid: os.close(os.pidfd_open(pid)), errno.ESRCH)
        must_fail(lambda pid=pid: call(101, 0x4206, pid), errno.ESRCH, errno.EPERM)  # ptrace: PTRACE_SEIZE
        vector = struct.pack("=QQ", address(b"12345678"), 8)
        must_fail(
            lambda pid=pid, v=vector: call(311, pid, address(v), 1, address(v), 1, 0),
            errno.ESRCH,
            errno.EPERM,
        )
    return f"{len(told.pids)} pids"


@check("A7-parent-of-pid-1")
def _parent_of_1() -> str:
    with open("/proc/1/status") as file:
        parent = next(line.split()[1] for line in file if line.startswith("PPid"))
    if parent != "0":
        raise Broke(f"pid 1 has a parent here: {parent}")
    return "none"


@check("A8-only-own-processes")
def _own_processes() -> str:
    visible = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    tasks = {int(name) for pid in visible for name in listed(f"/proc/{pid}/task")}
    for pid in range(1, 33000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            continue
        except PermissionError:
            pass
        if pid not in visible | tasks and pid > 2:
            raise Broke(f"process {pid} is there and not in /proc")
    if len(visible) > 20:
        raise Broke(f"{len(visible)} processes")
    return f"{sorted(visible)}"
