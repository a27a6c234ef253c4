# SPDX-License-Identifier: Apache-2.0
"""Sockets, keyrings, and what can be reached or seen of the host and of neighbours."""

import errno
import glob
import os
import socket
import struct

from security.intruder.attempt import (
    DENIED,
    Broke,
    address,
    call,
    check,
    each,
    is_root,
    listed,
    must_fail,
    named,
    shows_nothing,
    told,
)

NO_FAMILY = (
    errno.EAFNOSUPPORT,
    errno.EPERM,
    errno.EPROTONOSUPPORT,
    errno.ESOCKTNOSUPPORT,
    errno.EACCES,
    errno.EINVAL,
)
#: family, kind, protocol of what no container has a use for.
FAMILIES = {
    "vsock": (40, socket.SOCK_STREAM, 0), "alg": (38, socket.SOCK_SEQPACKET, 0), "key": (15, socket.SOCK_RAW, 2),
    "xdp": (44, socket.SOCK_RAW, 0), "rds": (21, socket.SOCK_SEQPACKET, 0), "tipc": (30, socket.SOCK_RDM, 0),
    "can": (29, socket.SOCK_RAW, 1), "bluetooth": (31, socket.SOCK_RAW, 1), "nfc": (39, socket.SOCK_RAW, 0),
    "kcm": (41, socket.SOCK_DGRAM, 0), "qipcrtr": (42, socket.SOCK_DGRAM, 0), "smc": (43, socket.SOCK_STREAM, 0),
    "phonet": (35, socket.SOCK_DGRAM, 0), "ax25": (3, socket.SOCK_DGRAM, 0), "appletalk": (5, socket.SOCK_DGRAM, 0),
    "x25": (9, socket.SOCK_SEQPACKET, 0), "llc": (26, socket.SOCK_DGRAM, 0), "mctp": (45, socket.SOCK_DGRAM, 1),
    "pppox": (24, socket.SOCK_STREAM, 0), "rxrpc": (33, socket.SOCK_DGRAM, 2), "ieee802154": (36, socket.SOCK_DGRAM, 0),
}  # fmt: skip
each("A19", FAMILIES, lambda words: must_fail(lambda: socket.socket(*words).close(), *NO_FAMILY))


@check("A19-packet-is-namespaced")
def _packet() -> str:
    if not is_root():
        return must_fail(lambda: socket.socket(17, socket.SOCK_RAW, 0).close(), errno.EPERM)
    with socket.socket(17, socket.SOCK_RAW, 0):
        names = {name for _, name in socket.if_nameindex()}
    if not names <= {"lo", "eth0"}:
        raise Broke(f"{names}")
    return f"{sorted(names)}"


@check("A19-raw")
def _raw() -> str:
    if is_root():
        return "NET_RAW is among root's rights; its frames are judged at the port"
    return must_fail(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close(), errno.EPERM)


def _netlink_is_deaf(words: tuple[int, int, bytes]) -> str:
    protocol, kind, body = words
    try:
        connection = socket.socket(16, socket.SOCK_RAW, protocol)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    with connection:
        connection.settimeout(3)
        # struct nlmsghdr: length, type, flags (REQUEST | ACK), sequence, pid.
        try:
            connection.send(struct.pack("=IHHII", 16 + len(body), kind, 5, 1, 0) + body)
            answer = connection.recv(65536)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, "no answer")
    (code,) = struct.unpack_from("=i", answer, 16)
    if struct.unpack_from("=H", answer, 4) != (2,) or code == 0:
        raise Broke(f"answered: {answer[:64]!r}")
    return errno.errorcode[-code]


#: audit: AUDIT_GET; netfilter: NFNL_SUBSYS_ULOG config; nftables: a new table; route: a new link of kind dummy.
NETLINK = {
    "audit": (9, 1000, b""),
    "nflog": (12, 0x0401, struct.pack("=BBH", 2, 0, 0) + struct.pack("=HHBxxx", 5, 1, 1)),
    "nftables": (12, 0x0A00, struct.pack("=BBH", 2, 0, 0)),
    "route": (0, 16, struct.pack("=BxHiII", 0, 0, 1, 0, 0xFFFFFFFF)),
}
each("A19-netlink", NETLINK, _netlink_is_deaf)

# KEYCTL_GET_KEYRING_ID 0, JOIN_SESSION 1, DESCRIBE 6, SEARCH 10, READ 11, GET_PERSISTENT 22.
KEYCTL = {
    "session": (0, -3, 1), "user": (0, -4, 1), "user-session": (0, -5, 1), "join": (1, 0), "persistent": (22, 0, -3),
    "describe": (6, -4), "read": (11, -4),
}  # fmt: skip
each("A20", KEYCTL, lambda words: must_fail(lambda: call(250, *words), *DENIED))


@check("A20-serial-scan")
def _scan_keys() -> str:
    buffer = bytearray(256)
    for serial in range(1, 1 << 30, 1 << 17):
        must_fail(lambda serial=serial: call(250, 6, serial, address(buffer), 256), *DENIED)
    return "EPERM"


@check("A20-add_key")
def _add_key() -> str:
    return must_fail(lambda: call(248, address(b"user"), address(b"x"), address(b"y"), 1, -3), *DENIED)


@check("A20-request_key")
def _request_key() -> str:
    return must_fail(lambda: call(249, address(b"user"), address(b"x"), 0, -3), *DENIED)


@check("A21-kernel-log")
def _kernel_log() -> str:
    buffer = bytearray(4096)
    must_fail(lambda: call(103, 3, address(buffer), 4096), *DENIED)
    return must_fail(lambda: os.open("/dev/kmsg", os.O_RDONLY))


@check("A21-kernel-addresses")
def _kernel_addresses() -> str:
    try:
        with open("/proc/kallsyms") as file:
            found = {file.readline().split()[0].strip("0") for _ in range(50)}
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    if found != {""}:
        raise Broke(f"{found}")
    return "zeros"


TOLD_BY = (
    "mountinfo", "mounts", "mountstats", "cgroup", "environ", "maps", "cmdline", "net/dev", "net/unix", "net/route", "net/arp",
    "net/fib_trie", "net/tcp", "net/udp", "net/packet", "net/nf_conntrack", "status", "stat", "autogroup", "cpuset", "limits",
)  # fmt: skip


def _no_word_of_the_host(name: str) -> str:
    if not told.words:
        raise Broke("the host told no words")
    for process in ("self", "1"):
        try:
            with open(f"/proc/{process}/{name}", "rb") as file:
                text = file.read().decode(errors="replace")
            # A volume is a folder of the host's: the kernel shows its place on its file system to who mounts it.
            text = "\n".join(line for line in text.splitlines() if " /data " not in line)
        except OSError:
            continue
        if found := [word for word in told.words if word in text]:
            raise Broke(f"{found} in {[line for line in text.splitlines() if found[0] in line][:2]}")
    return "no word of it"


each("A21", named(TOLD_BY), _no_word_of_the_host)


@check("A21-figures-of-slabs")
def _slabs() -> str:
    # The names of a kernel's caches are the same on each host; their use is the neighbours' doing.
    for path in glob.glob("/sys/kernel/slab/*/*")[:2000]:
        if os.access(path, os.R_OK) and not os.path.isdir(path):
            raise Broke(path)
    return "closed"


@check("A21-interfaces")
def _interfaces() -> str:
    for path in ("/sys/class/net", "/sys/devices/virtual/net"):
        if not set(listed(path)) <= {"lo", "eth0"}:
            raise Broke(f"{path}: {listed(path)}")
    return "its own"


each(
    "A21",
    named(("/proc/net/nf_conntrack_expect", "/proc/net/ip_tables_names", "/proc/sysvipc/shm-")),
    shows_nothing,
)


def _reached(place: list) -> str:
    host, port = place
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as connection:
        connection.settimeout(1.5)
        return must_fail(lambda: connection.connect((host, port)))


@check("A22-listeners-of-the-host")
def _listeners() -> str:
    if not told.listeners:
        raise Broke("the host told no listeners")
    return f"{[(place, _reached(place)) for place in told.listeners]}"


@check("A22-metadata-address")
def _metadata() -> str:
    with socket.socket(socket.AF_INET) as connection:
        connection.settimeout(5)
        return must_fail(lambda: connection.connect(("169.254.169.254", 80)), errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNREFUSED, errno.EACCES)  # fmt: skip


@check("A22-abstract-sockets")
def _abstract() -> str:
    if not told.abstract:
        raise Broke("the host told no names")
    for name in told.abstract:
        with socket.socket(socket.AF_UNIX) as connection:
            must_fail(lambda c=connection, n=name: c.connect("\0" + n), errno.ECONNREFUSED)
    with open("/proc/net/unix") as file:
        if found := [line for line in file if any(name in line for name in told.abstract)]:
            raise Broke(f"{found}")
    return "refused"


@check("A22-sockets-and-folders-of-the-host")
def _paths() -> str:
    if not told.paths:
        raise Broke("the host told no paths")
    for path in told.paths:
        for place in (path, f"/proc/1/root{path}", f"/proc/1/cwd/..{path}", f"/proc/self/root/../..{path}"):
            must_fail(lambda place=place: os.stat(place), errno.ENOENT, errno.EACCES, errno.ENOTDIR)
    return "not there"


@check("A22-bound-sockets")
def _sockets_of_files() -> str:
    found = []
    for folder in ("/run", "/var/run", "/tmp", "/dev", "/var/lib", "/data"):
        for path in glob.glob(f"{folder}/**", recursive=True):
            try:
                if os.path.exists(path) and (os.stat(path).st_mode & 0o170000) == 0o140000:
                    found.append(path)
            except OSError:
                continue
    if found:
        raise Broke(f"{found}")
    return "none"
