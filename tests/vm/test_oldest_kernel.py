# SPDX-License-Identifier: Apache-2.0
"""What watches, on Linux 5.15: the programs are loaded, and tell of each kind of event what they tell elsewhere.

That kernel lets no program at a function ask for its result (5.17), maps no ids of layers (5.19), and has no `ancestors`
in a control group (6.1): events come from `sys_exit`, and containers need another kernel.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm import disks, older_kernel
from vm.guest import Guest
from vm.laboratory import Laboratory
from vm.test_two_systems import PROJECT, run_pytest

FILES = ("collect", "collect_calls", "recording")


@pytest.fixture(scope="module")
def host() -> Iterator[Guest]:
    folder = Path(tempfile.mkdtemp(prefix="insula-vm-", dir="/var/tmp"))
    made = Laboratory(folder=folder, names=("gamma",))
    try:
        made.open()
        (guest,) = made.guests.values()
        if older_kernel.VERSION not in guest.system.kernels:
            why = f"no archive of Ubuntu was reached when {disks.CACHE} was filled; without that it is tried anew"
            pytest.skip(f"there is no Linux {older_kernel.VERSION}: {why}")
        guest.boot(older_kernel.VERSION)
        guest.wait_up()
        yield guest
    finally:
        made.close()
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", FILES)
def test_what_watches_works_as_elsewhere(host: Guest, name: str) -> None:
    assert host.run("uname", "-r").startswith(older_kernel.VERSION + ".")
    told = run_pytest(host, f"{PROJECT}/tests/kernel/test_{name}.py")
    print(told)
    assert "skipped" not in told
