# SPDX-License-Identifier: Apache-2.0
"""A host whose kernel refuses bpf(2): containers run, cgroup and proc figures go on, and what is lost is said.

The refusal is the kernel's own: insulad starts under a seccomp filter, and with it all that it starts.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hosted
from hosted import SOURCE, Host, wait_until

UNDER = """
import errno, os, struct, sys
from insula.kernel import seccomp, syscalls
number = syscalls.numbers(os.uname().machine)["bpf"]
seccomp.install(struct.pack("=" + "HBBI" * 4,
    0x20, 0, 0, 0,                       # load the number
    0x15, 0, 1, number,                  # bpf?
    0x06, 0, 0, 0x50000 | errno.EPERM,   # refused
    0x06, 0, 0, 0x7FFF0000))             # else allowed
os.execvp(sys.argv[1], sys.argv[1:])
"""


class BareHost(Host):
    """Its insulad, its spawner and its containers cannot call bpf(2)."""

    def _words(self) -> list[str]:
        return [sys.executable, "-c", UNDER, *super()._words()]


@pytest.fixture(scope="module")
def bare(program: Path, image: bytes) -> Iterator[Host]:
    with hosted.host(program, image, kind=BareHost) as made:
        rules = made.folder / "rules.d" / "all.toml"
        rules.parent.mkdir(exist_ok=True)
        rules.write_text('[[rule]]\nname = "shell"\nkinds = ["exec"]\n')
        made.root("rule", "reload")
        made.root("run", "-d", "--name", "web", "box", "sh", "-c", "while :; do :; done")
        yield made


def test_figures_go_on(bare: Host) -> None:
    def used() -> float:
        (now,) = bare.root.json("stats", "--no-stream", "--format", "json", "web")
        assert now["memory_bytes"] > 0
        assert now["pids"] >= 1
        return float(now["cpu_usage_us"])

    before = used()
    wait_until(lambda: used() > before, what="the processor time grows")


@pytest.mark.parametrize("words", [("trace", "web"), ("profile", "record", "web")])
def test_what_needs_it_is_refused_with_the_cure(bare: Host, words: tuple[str, ...]) -> None:
    said = bare.root.fails(*words)
    assert "cannot watch containers" in said
    assert "insula doctor" in said


def test_a_rule_that_cannot_hold_is_said_and_the_container_runs(bare: Host) -> None:
    assert bare.root.look("web")["status"] == "running"
    wait_until(lambda: "a container is not watched" in bare.log(), what=bare.log)


def test_doctor_says_what_is_lost(bare: Host) -> None:
    words = [sys.executable, "-c", UNDER, sys.executable, "-m", "insula.cli", "doctor"]
    said = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "200"}, capture_output=True, text=True, timeout=60,
        check=False,
    ).stdout  # fmt: skip
    flat = " ".join(said.split())
    assert "no trace, counts of system calls, profiles, rules" in flat
    assert "go on" in flat
