# SPDX-License-Identifier: Apache-2.0
"""Count all that two hosts have of one container, and say what is more than after a move that nothing disturbed.

Everything counts by kind, with what differs from container to container taken out: processes, descriptors that hold memory,
namespaces or page faults, mounts, network namespaces, interfaces, nft's rules, cgroups, files of the state folder, and lines of the
store.  Sources: proc(5), proc_pid_fd(5), proc_pid_mountinfo(5), nft(8).
"""

import os
import re
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from demo import cleanup
from demo.hosts import Host, inside

from insula.kernel.netlink import Route

Count = Counter[str]
_QUERIES = {
    "journal": "SELECT key FROM journal",
    "lease": "SELECT address FROM leases",
    "container": "SELECT id FROM containers",
    "volume": "SELECT name FROM volumes",
}
_HELD = re.compile(r"memfd:|userfaultfd|pidfd|^net:|^mnt:|^user:|^pid:|fanotify|/pagemap|/mem$")
"""Descriptors whose leak would cost memory or keep a namespace; sockets and pipes come and go with every question."""
_SHARED = "/host-view/"
"""Masks of the host's image: made anew when somebody installs a program here."""
_HEX = re.compile(r"[0-9a-f]{8,}")
_CHAIN = re.compile(r"\biv[0-9a-f]{4}\*")
_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
_NUMBER = re.compile(r"\d+")
_DEPTH = 3
"""Folders below `state` that are looked into; what is deeper belongs to the container's own files."""


@dataclass(frozen=True, kw_only=True)
class Container:
    """What a container's traces are known by."""

    id: str
    address: str


def count(host: Host, container: Container) -> Count:
    """Count what a host has now."""
    found: Count = Counter()
    pids = [pid for pid in sorted(host.processes()) if _is_alive(pid)]
    for kind, lines in (
        ("process", _processes(pids)),
        ("descriptor", _descriptors(host, pids)),
        ("namespace", _namespaces(pids)),
        ("mount", _mounts(host, pids)),
        ("link", _links(host)),
        ("nft", _rules(host)),
        ("cgroup", (str(path) for path in cleanup.cgroups_named(host.cgroup))),
        ("file", _files(host.folder / "state")),
        ("store", _lines(host, container)),
    ):
        found.update(f"{kind} {_plain(line, host=host, container=container)}" for line in lines)
    return found


def _plain(line: str, *, host: Host, container: Container) -> str:
    """Take out what differs from container to container and from start to start."""
    line = line.replace(str(host.folder), "HOST").replace(host.cgroup, "GROUP")
    line = line.replace(container.address, "ADDRESS").replace(f"--name {host.name} ", "")
    return _HEX.sub("ID", _CHAIN.sub("iv*", _MAC.sub("MAC", line)))


def _is_alive(pid: int) -> bool:
    """Tell whether it runs; not so: an orphan that its reaper, which is this program, has not collected yet."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] not in "ZX"
    return False


def _processes(pids: list[int]) -> Iterator[str]:
    for pid in pids:
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            yield _NUMBER.sub("N", words[:60].replace("\n", " "))


def _descriptors(host: Host, pids: list[int]) -> Iterator[str]:
    """Return those of insulad and its spawner: what runs in containers has its own."""
    for pid in pids:
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if str(host.folder).encode() not in words:
                continue
            who = "spawner" if b"insula.boot.spawner" in words else "insulad"
            for name in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    place = os.readlink(f"/proc/{pid}/fd/{name}")
                    if _HELD.search(place):
                        yield f"{who} {_NUMBER.sub('N', place)}"


def _namespaces(pids: list[int]) -> Iterator[str]:
    found = set()
    for pid in pids:
        for kind in ("net", "mnt", "pid", "user"):
            with suppress(OSError):
                found.add((kind, os.stat(f"/proc/{pid}/ns/{kind}").st_ino))
    return (kind for kind, _inode in found)


def _mounts(host: Host, pids: list[int]) -> Iterator[str]:
    """Return mounts of this host's folder in each of its mount namespaces."""
    seen = set()
    for pid in pids:
        with suppress(OSError):
            inode = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            if inode in seen:
                continue
            seen.add(inode)
            for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
                fields = line.split()
                if str(host.folder) in line and _SHARED not in line:
                    yield f"{fields[4]} ({fields[fields.index('-') + 1]})"


def _links(host: Host) -> Iterator[str]:
    with Route.in_namespace(host.network) as route:
        yield from (link.name for link in route.links())


def _rules(host: Host) -> Iterator[str]:
    command = inside(host.network, "nft", "--stateless", "list", "ruleset")
    listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    return (" ".join(line.split()) for line in listed.splitlines())


def _files(folder: Path, depth: int = 0) -> Iterator[str]:
    with suppress(OSError):  # it has just gone
        for each in os.scandir(folder):
            if depth == 0 and (each.is_file() or each.name == "host-view"):
                continue  # the store, and masks
            yield each.path
            if each.is_dir(follow_symlinks=False) and depth < _DEPTH:
                yield from _files(Path(each.path), depth + 1)


def _lines(host: Host, container: Container) -> Iterator[str]:
    path = host.folder / "state" / "db.sqlite"
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=20.0) as store:
        for kind, query in _QUERIES.items():
            yield from (f"{kind} {name}" for (name,) in store.execute(query) if _is_of(name, container))
    store.close()


def _is_of(name: str, container: Container) -> bool:
    return len(name) < len(container.id) or container.id in name


@dataclass
class Census:
    """Remembers what there is when nothing went wrong, on the host that has the container and on the one that has not."""

    usual: dict[bool, Count] = field(default_factory=dict)

    def learn(self, host: Host, container: Container, *, has_it: bool) -> None:
        """Take down what is there when nothing went wrong; of several, the most."""
        self.usual[has_it] = self.usual.get(has_it, Counter()) | count(host, container)

    def surplus(self, host: Host, container: Container, *, has_it: bool) -> list[str]:
        """Return what is there beyond that."""
        extra = count(host, container) - self.usual[has_it]
        return [f"{host.name}: {number} × {what}" for what, number in sorted(extra.items())]
