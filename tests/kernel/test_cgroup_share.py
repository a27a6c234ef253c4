# SPDX-License-Identifier: Apache-2.0
"""Shares of the processors: of all groups below a parent, and of insulad's own group, which is made beside it."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.kernel.cgroup import Hierarchies, delete_parent, own_name, weigh

ENTER = """
import sys
from insula.kernel.cgroup import Hierarchies, enter, leave
enter(Hierarchies.detect(), sys.argv[1])
found = Hierarchies.detect()
cpu = found.find_v1("cpu") or found.v2
print(cpu.own_directory, cpu.base, flush=True)
sys.stdin.read()
leave(found, sys.argv[1])
"""


@pytest.fixture
def name() -> Iterator[str]:
    name = f"insula-test-{uuid.uuid4().hex[:8]}"
    yield name
    for each in (name, own_name(name)):
        delete_parent(Hierarchies.detect(), each)


def base(hierarchies: Hierarchies) -> Path:
    """Where groups that share processors are made."""
    hierarchy = hierarchies.find_v1("cpu") or hierarchies.v2
    assert hierarchy is not None
    return Path(hierarchy.base)


def test_all_groups_together_weigh_what_is_said(name: str) -> None:
    hierarchies = Hierarchies.detect()
    weigh(hierarchies, name, 300)
    file, value = ("cpu.shares", "3072") if hierarchies.find_v1("cpu") else ("cpu.weight", "300")
    assert (base(hierarchies) / name / file).read_text().strip() == value


def test_who_enters_its_own_group_makes_others_beside_it(name: str) -> None:
    own = own_name(name)
    with subprocess.Popen(
        [sys.executable, "-c", ENTER, own],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        where, made_at = process.stdout.readline().decode().split()
        entered = base(Hierarchies.detect()) / own
        assert (Path(where), Path(made_at)) == (entered, entered.parent)
        assert (entered / "cgroup.procs").read_text().split() == [str(process.pid)]
    assert process.returncode == 0
    assert not entered.exists()
