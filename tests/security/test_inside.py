# SPDX-License-Identifier: Apache-2.0
"""What a program in a container tries against kernel, host and neighbours: as root in there, as a plain user, and by exec."""

import itertools
import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hosted import DEADLINE_S, Host, wait_until
from security import intruder

#: Which way the intruder came in → words of the command.
WAYS = {"root": ("-u", "0"), "user": ("-u", "1000:1000"), "exec": ()}
#: Of the host, which nothing inside may change: read before and after.
KEPT = (
    "kernel/core_pattern", "kernel/modprobe", "kernel/panic", "kernel/sysrq", "kernel/pid_max", "kernel/randomize_va_space",
    "vm/overcommit_memory", "fs/file-max", "fs/inotify/max_user_instances", "net/ipv4/ip_forward", "kernel/hostname",
    "user/max_user_namespaces",
)  # fmt: skip
Answers = dict[str, dict[str, object]]


def _settings() -> dict[str, str]:
    places = [Path("/proc/sys", name) for name in KEPT]
    return {str(place): place.read_text() for place in places if place.exists()}


def _told(host: Host, held: ExitStack) -> dict[str, object]:
    """Open what must not be reached, and gather what must not be seen."""
    name = f"insula-test-{secrets.token_hex(8)}"
    with host.entered():
        gateway = host.alice.json("network", "inspect", "default")[0]["gateway"]
        abstract = held.enter_context(socket.socket(socket.AF_UNIX))
        listeners = []
        for address in (gateway, "127.0.0.1"):
            server = held.enter_context(socket.create_server((address, 0)))
            listeners.append([address, server.getsockname()[1]])
    abstract.bind("\0" + name)
    abstract.listen()
    neighbour = host.bob.look("neighbour")
    words = [
        str(host.folder),
        host.folder.name,
        host.cgroup,
        neighbour["id"],
        "neighbour",
        host.bob.tenant,
        "insulad",
    ]
    return {
        "words": [*words, socket.gethostname()] if len(socket.gethostname()) > 5 else words,
        "pids": [os.getpid(), neighbour["pid"], host.daemon.pid if host.daemon else 1],
        "listeners": [*listeners, [neighbour["attachment"]["address"], 80]],
        "abstract": [name],
        "paths": [
            str(host.socket_path),
            str(host.folder / "state"),
            "/run/insula",
            str(Path(__file__).resolve()),
        ],
    }


@pytest.fixture(scope="module")
def answers(the_host: Host) -> Iterator[dict[str, Answers]]:
    """Run the intruder each way, once."""
    alice, found = the_host.alice, {}
    the_host.bob("run", "-d", "--name", "neighbour", "box", "sleep", "1000")
    alice("run", "-d", "--name", "entered", "-v", "data:/data", "host", "sleep", "1000")
    before = _settings()
    with ExitStack() as held:
        program = intruder.program(_told(the_host, held))
        for way, words in WAYS.items():
            options = (
                ("run", "--rm", "-i", "-v", "data:/data", *words, "host")
                if words
                else ("exec", "-i", "entered")
            )
            done = alice.give(*options, "python3", "-IS", "-", data=program, deadline_s=6 * DEADLINE_S)
            lines = [json.loads(line) for line in done.out.splitlines()]
            found[way] = {line["check"]: line for line in lines}
            assert done.code == 0, done
    assert _settings() == before
    wait_until(lambda: the_host.bob.look("neighbour")["status"] == "running", what="the neighbour runs on")
    yield found
    the_host.remove_all()


def _id(name: str) -> str:
    return name


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test of a number the checks of that number, each way."""
    if "attempt" in metafunc.fixturenames:
        number = metafunc.function.__name__.split("_")[1].upper()
        checks = [name for name in intruder.names() if name.startswith(f"{number}-")]
        metafunc.parametrize("attempt", checks)
        metafunc.parametrize("way", WAYS)


def _held(answers: dict[str, Answers], way: str, attempt: str) -> None:
    answer = answers[way].get(attempt)
    assert answer is not None, f"{attempt} was not answered: the intruder ended before"
    assert answer["held"], answer["detail"]


def test_a1_ids(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


def test_a1_ids_and_namespaces_are_no_one_elses(the_host: Host) -> None:
    """Seen from outside: every namespace is another than the host's and the neighbours', every id a range of its tenant's."""
    people = (the_host.alice, the_host.bob, the_host.root)
    spaces, ranges = [{each: os.stat(f"/proc/self/ns/{each}").st_ino for each in NAMESPACES}], {}
    for person in people:
        for name in ("one", "two"):
            person("run", "-d", "--name", name, "box", "sleep", "1000")
            pid = person.look(name)["pid"]
            spaces.append({each: os.stat(f"/proc/{pid}/ns/{each}").st_ino for each in NAMESPACES})
            maps = {
                tuple(map(int, Path(f"/proc/{pid}/{kind}_map").read_text().split()))
                for kind in ("uid", "gid")
            }
            ((inside, outside, count),) = maps
            assert inside == 0 and outside >= 1 << 16, "an id of the host's own"
            ranges.setdefault(person.name, set()).add((outside, count))
            status = Path(f"/proc/{pid}/status").read_text().split("Uid:")[1].split("\n")[0].split()
            assert {int(each) for each in status} == {outside}
    for kind in NAMESPACES:
        assert len({each[kind] for each in spaces}) == len(spaces), f"two share a {kind} namespace"
    taken = sorted(each for found in ranges.values() for each in found)
    assert len(taken) == len(people), "a tenant has several ranges"
    for (first, count), (following, _) in itertools.pairwise(taken):
        assert first + count <= following, "ranges of two tenants overlap"
    the_host.remove_all()


def test_a2_rights(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a3_setuid_files(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a4_descriptors(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a6_own_program(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a7_processes_outside(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a8_processes(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a9_masked_paths(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a10_settings(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a11_own_settings(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a12_mounts_and_namespaces(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a13_cgroups(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a14_devices(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a15_file_handles(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a16_calls(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a17_other_tables_of_calls(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a18_unknown_calls(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a19_sockets(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a20_keyrings(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a21_what_is_seen(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a22_what_is_reached(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a28_clocks(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)


def test_a30_questions_of_known_tools(answers: dict[str, Answers], way: str, attempt: str) -> None:
    _held(answers, way, attempt)
