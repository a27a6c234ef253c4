# SPDX-License-Identifier: Apache-2.0
"""Count what a test could leave behind on this machine, and say what is there that was not there before.

Judged are: processes of this test run, descriptors of this process, mounts, network namespaces, links, nft rules, cgroups,
loop devices.
With INSULA_TESTS_SHARE_MACHINE set (other programs work on this machine at the same time), only the first two are; with
INSULA_TESTS_COUNT_BY_MODULE, only around modules: where processors are emulated a count takes longer than most tests.
"""

import gc
import json
import os
import re
import select
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import loops
from waiting import DEADLINE_S

MARKER = "INSULA_TEST_SESSION"
SHARED = "INSULA_TESTS_SHARE_MACHINE"
BY_MODULE = "INSULA_TESTS_COUNT_BY_MODULE"
_INTERVAL_MS = 50
_CGROUP_ROOT = Path("/sys/fs/cgroup")
#: Descriptors that an interpreter opens once and keeps.
_KEPT_DESCRIPTORS = ("/dev/urandom", "/dev/null")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Each kind of thing: its key → words for people."""

    kinds: dict[str, dict[str, str]] = field(default_factory=dict)
    has_descriptors: bool = True


def take_snapshot(*, has_descriptors: bool = True) -> Snapshot:
    """Count everything now."""
    kinds = {"process": _processes()}
    if has_descriptors:
        kinds["descriptor"] = _descriptors()
    if not os.environ.get(SHARED):
        kinds |= {
            "mount": _mounts(),
            "network namespace": _network_namespaces(),
            "link": _links(),
            "nft": _nft_lines(),
            "cgroup": cgroups(),
            "loop device": loops.all_shown(),
        }
    return Snapshot(kinds=kinds, has_descriptors=has_descriptors)


def difference(before: Snapshot, after: Snapshot) -> list[str]:
    """Return a line for each thing that is there now and was not before."""
    return [
        f"{kind}: {words}"
        for kind, things in after.kinds.items()
        for key, words in things.items()
        if key not in before.kinds.get(kind, {})
    ]


def wait_until_gone(before: Snapshot) -> list[str]:
    """Count again until nothing new is there or the deadline passes; return what stayed."""
    deadline = time.monotonic() + DEADLINE_S
    gc.collect()
    while left := difference(before, take_snapshot(has_descriptors=before.has_descriptors)):
        if time.monotonic() > deadline:
            break
        # Nothing tells when a namespace has gone, so this looks again after a while.
        select.select([], [], [], _INTERVAL_MS / 1000)
    return left


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has just ended
        return ""


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _is_our_zombie(pid: int) -> bool:
    # An orphan that was adopted by a test's reaper and has ended: it holds nothing, and nobody is due to wait for it.
    fields = _read(f"/proc/{pid}/stat").rpartition(") ")[2].split()
    return len(fields) > 1 and fields[0] == "Z" and int(fields[1]) == os.getpid()


def _parent_and_start(pid: int) -> tuple[int, str]:
    # proc_pid_stat(5): the name in parentheses may hold anything; then state, ppid, …, the start time is field 22.
    fields = _read(f"/proc/{pid}/stat").rpartition(") ")[2].split()
    return (int(fields[1]), fields[19]) if len(fields) > 19 else (0, "")


def _processes() -> dict[str, str]:
    """Return the descendants of this process, and what carries the run's mark in its environment or insula's cgroup."""
    own = os.getpid()
    parents = {pid: _parent_and_start(pid) for pid in _pids()}
    marker = f"{MARKER}={os.environ.get(MARKER, '')}"
    found = {}
    for pid, (_, start) in parents.items():
        if pid == own or not start or _is_our_zombie(pid):
            continue
        if _is_below(pid, own, parents) or marker in _read(f"/proc/{pid}/environ"):
            command = (
                _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip() or _read(f"/proc/{pid}/comm").strip()
            )
            found[f"{pid}/{start}"] = f"{pid} {command[:120]}"
    return found


def _is_below(pid: int, ancestor: int, parents: dict[int, tuple[int, str]]) -> bool:
    while pid in parents:
        pid = parents[pid][0]
        if pid == ancestor:
            return True
    return False


def _descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the one that listed the folder
            continue
        if target not in _KEPT_DESCRIPTORS:
            found[f"{name}={target}"] = f"{name} → {target}"
    return found


def _mounts() -> dict[str, str]:
    lines = _read("/proc/self/mountinfo").splitlines()
    return {line.split()[0] + line.split()[4]: line for line in lines}


def _network_namespaces() -> dict[str, str]:
    found = {}
    for pid in _pids():
        try:
            name = os.readlink(f"/proc/{pid}/ns/net")
        except OSError:  # ended, or a zombie
            continue
        found.setdefault(name, f"{name} of {pid} {_read(f'/proc/{pid}/comm').strip()}")
    folder = Path("/run/netns")
    names = os.listdir(folder) if folder.is_dir() else []
    return found | {f"/run/netns/{name}": f"/run/netns/{name}" for name in names}


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""


def _links() -> dict[str, str]:
    links = json.loads(_output("ip", "-j", "link") or "[]")
    return {f"{link['ifindex']}": f"{link['ifname']} ({link.get('link_type', '')})" for link in links}


def _nft_lines() -> dict[str, str]:
    # Counters change by themselves; a rule is named by its table, chain and text.
    found = {}
    place: list[str] = []
    for line in _output("nft", "--stateless", "list", "ruleset").splitlines():
        text = re.sub(r"\s+", " ", line).strip()
        if text.endswith("{"):
            place.append(text)
        elif text == "}":
            place.pop()
        found[" / ".join((*place, text))] = " / ".join((*place, text))
    return found


def _others_groups() -> frozenset[str]:
    """Return the groups at the top of each hierarchy that are somebody else's: a manager of sessions makes its own at any moment."""
    places = (_CGROUP_ROOT, *_CGROUP_ROOT.glob("*"))
    tops = [each for each in places if os.path.ismount(each) and (each / "cgroup.procs").is_file()]
    return frozenset(str(each) for top in tops for each in top.glob("*/") if "insula" not in each.name)


_OTHERS_GROUPS = _others_groups()
"""As they were before any test: what a test makes at the top is judged, whatever its name."""


def cgroups(root: Path = _CGROUP_ROOT, *, others: Collection[str] = _OTHERS_GROUPS) -> dict[str, str]:
    """Return the folders of all groups, but for what is below others' without being insula's."""
    found = {}
    for folder, inner, _ in os.walk(root):
        found[folder] = folder
        if folder in others:
            inner[:] = [each for each in inner if "insula" in each]
    return found
