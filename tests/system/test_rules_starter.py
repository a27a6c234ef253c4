# SPDX-License-Identifier: Apache-2.0
"""Each rule of the starter set: a real program that it is about, and one that only nearly is."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hosted import Host, wait_until
from insula.kernel.bpf_object import knows_tracepoint
from insula.monitor import rules
from insula.monitor.rule_text import read_rules

STARTER = Path(rules.__file__).parent / "starter.toml"


@dataclass(frozen=True)
class Case:
    """What provokes a rule, and what must not; programs of Python."""

    rule: str
    provokes: str
    nearly: str
    user: str = "0"


CASES = (
    Case(
        "shell-in-a-server",
        provokes="import os; os.execv('/bin/sh', ['sh', '-c', 'true'])",
        nearly="import os; open('/bin/sh').close(); os.system.__doc__; os.execv('/bin/echo', ['sh'])",
    ),
    Case(
        "write-below-usr",
        provokes="import os; os.chdir('/usr'); open('planted', 'w').close()",
        nearly="import os; open('/usr/bin/env').close(); os.makedirs('/tmp/usr'); open('/tmp/usr/x', 'w').close()"
        "\ntry: os.unlink('/usr/bin/nothing')\nexcept FileNotFoundError: pass",
    ),
    Case(
        "new-outgoing-address",
        provokes="import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        nearly="import socket"
        "\ntry: socket.socket().connect(('127.0.0.1', 9))\nexcept OSError: pass"
        "\ns = socket.socket(socket.AF_UNIX); s.bind('/tmp/s'); s.listen(); socket.socket(socket.AF_UNIX).connect('/tmp/s')",
    ),
    Case(
        "privilege-change",
        provokes="import os\ntry: os.setuid(0)\nexcept PermissionError: pass",
        nearly="import os; os.nice(3); x = bytearray(64 << 20); open('/proc/self/status').read()",
        user="1000",
    ),
    Case(
        "kernel-tampering",
        provokes="import ctypes; ctypes.CDLL(None).mount(b'x', b'/mnt', b'tmpfs', 0, None)",
        nearly="import os; open('/proc/mounts').read(); os.kill(os.getpid(), 0)",
    ),
    Case(
        "crypto-miner-ports",
        provokes="import socket\ntry: socket.socket().connect(('127.0.0.1', 3333))\nexcept OSError: pass",
        nearly="import socket\ns = socket.socket(); s.bind(('127.0.0.1', 3333))"
        "\ntry: socket.socket().connect(('127.0.0.1', 33))\nexcept OSError: pass",
    ),
)


@pytest.fixture(scope="module")
def ruled(module_host: Host) -> Iterator[Host]:
    file = module_host.folder / "rules.d" / "starter.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(STARTER.read_text())
    module_host.root("rule", "reload")
    yield module_host
    file.unlink()
    module_host.root("rule", "reload")


def alarms(host: Host, name: str) -> set[str]:
    """Return the rules that a container has set off, from insulad's log."""
    found = set()
    whole, _, _ = host.log().rpartition("\n")
    for line in whole.splitlines():
        if " alarm " in line and f'container="{name}"' in line:
            found.add(line.split('rule="', 1)[1].split('"', 1)[0])
    return found


def run(host: Host, name: str, text: str, *, user: str) -> None:
    """Run a program as the container's own, so that what it does is all that is done."""
    done = host.root.give(
        "run", "--name", name, "-u", user, "--network", "none", "host", "/usr/bin/python3", "-SIc", text
    )
    assert done.code == 0, done


def test_every_rule_is_here() -> None:
    assert [case.rule for case in CASES] == [rule.name for rule in read_rules(STARTER.read_text(), file="")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_a_rule_is_set_off_by_what_it_is_about_and_by_nothing_near(ruled: Host, case: Case) -> None:
    """The container's first program does it: a rule sees a container from its first moment."""
    if case.rule == "privilege-change" and not knows_tracepoint("cap_capable"):
        pytest.skip("the kernel has no tracepoint cap_capable")
    name = case.rule.replace("-", "")
    run(ruled, f"near{name}", case.nearly, user=case.user)
    run(ruled, name, case.provokes, user=case.user)
    wait_until(lambda: case.rule in alarms(ruled, name), what=lambda: ruled.log()[-2000:])
    assert alarms(ruled, f"near{name}") == set(), json.dumps(ruled.log()[-3000:])
    for each in (name, f"near{name}"):
        ruled.root("rm", each)
