# SPDX-License-Identifier: Apache-2.0
"""Two running operating systems with different kernels: programs move from one to the other under load, and one is patched.

The tests build on each other and run in this order.  Both guests have pure cgroup v2 and soft-dirty, which the machine
that runs the other tests may not have.  Processors are emulated, so the gaps printed say nothing about insula on a machine.
"""

import itertools
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo.hosts import LOG_LINES

from insula.kernel import modules
from leftovers import BY_MODULE, SHARED
from vm import guest
from vm.guest import Guest, Patience
from vm.laboratory import LAN, Laboratory, wait_announced
from vm.programs import IMAGE, IN_LAN, NAMES, Load, names_on, start_programs

OLD, NEW = "6.1", "6.12"
SILENT = f"{LAN}.23"
PROJECT = "/opt/insula"


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    folder = Path(tempfile.mkdtemp(prefix="insula-vm-", dir="/var/tmp"))
    made = Laboratory(folder=folder)
    try:
        with made.step("disks"):
            made.open()
        with made.step("boot"):
            made.guests["alpha"].boot(OLD)
            made.guests["beta"].boot(NEW)
            made.on_each(Guest.wait_up)
        yield made
        made.tell_steps()
    finally:
        made.close()
        shutil.rmtree(folder)


@pytest.fixture
def alpha(laboratory: Laboratory) -> Guest:
    return laboratory.guests["alpha"]


@pytest.fixture
def beta(laboratory: Laboratory) -> Guest:
    return laboratory.guests["beta"]


@pytest.fixture(autouse=True)
def _tell_of_a_failure(request: pytest.FixtureRequest, laboratory: Laboratory) -> Iterator[None]:
    failed = request.session.testsfailed
    with laboratory.step(request.node.name.removeprefix("test_")):
        yield
    if request.session.testsfailed > failed:
        for each in laboratory.guests.values():
            print(each.daemon_logs(LOG_LINES * 3), each.last_words(), sep="\n")


OF_QUOTAS = {"quota_v2", "quota_tree"}
"""They come with the file system that the tests of disk space mount."""
LOAD_MODULES = "from insula.kernel import modules; modules.load_all()"


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """For each guest its kernel modules after the start of insulad."""
    return {}


def modules_of(host: Guest) -> set[str]:
    return {line.split()[0] for line in host.run("cat", "/proc/modules").splitlines()}


def test_modules_are_loaded_before_they_are_needed(
    laboratory: Laboratory, alpha: Guest, loaded: dict[str, set[str]]
) -> None:
    """One by one, amid nft's first transaction, they took so long that insulad gave its start up."""
    alpha.run("python3", "-c", LOAD_MODULES)
    before = modules_of(alpha)
    laboratory.on_each(Guest.start_daemon)
    loaded |= dict(zip(laboratory.guests, laboratory.on_each(modules_of), strict=True))
    assert loaded["alpha"] - before == set()
    assert set(modules.MODULES) <= loaded["beta"]


def test_both_systems_have_what_containers_need(laboratory: Laboratory, alpha: Guest, beta: Guest) -> None:
    releases = [each.run("uname", "-r").strip() for each in (alpha, beta)]
    assert releases[0].startswith(OLD + ".") and releases[1].startswith(NEW + "."), releases
    for host, done in zip(
        (alpha, beta), laboratory.on_each(lambda each: each.try_run("insula", "doctor")), strict=True
    ):
        laboratory.say(f"insula doctor on {host.name}, Linux {host.kernel}:\n{done.output}")
        assert done.code == 0, done.output
        assert "limits and counting (v2)" in done.output


#: Of tests/kernel what the machine outside has not, or other kernels might do otherwise: files, and which of their tests.
KERNEL_TESTS = {
    "marks of memory that was written": (
        "-k", "the_best or (nothing_is_missed and -2-) or another_program or vanished", "kernel/test_track.py",
    ),
    "memory that is filled in": ("-k", "every_byte", "kernel/test_lazy.py"),
    # Layers of an overlay that are not attached are for Linux 6.15 and later.
    "limits, mounts": (
        "-k", "not detached and not [v1]", *(f"kernel/test_{name}.py" for name in ("cgroup", "spawner_limits", "mount")),
    ),
    "limits of disk space": ("-k", "not btrfs", "kernel/test_own_disk.py", "kernel/test_disks.py"),
    "monitor": tuple(f"kernel/test_{name}.py" for name in ("collect", "collect_calls", "recording")),
}  # fmt: skip


@pytest.mark.parametrize("words", KERNEL_TESTS.values(), ids=KERNEL_TESTS)
def test_these_kernels_do_what_the_other_does(laboratory: Laboratory, words: tuple[str, ...]) -> None:
    def run(host: Guest) -> str:
        return run_pytest(
            host, *(f"{PROJECT}/tests/{word}" if word.endswith(".py") else word for word in words)
        )

    for host, told in zip(laboratory.guests.values(), laboratory.on_each(run), strict=True):
        laboratory.say(f"Linux {host.kernel}: " + "\n".join(told.splitlines()[-12:]))
        assert "skipped" not in told


def run_pytest(host: Guest, *words: str) -> str:
    """Run tests of this project in a guest.  Returns: what they say.  Raises: GuestFailed if one fails."""
    return host.run(
        "env", f"PYTHONPATH={PROJECT}", f"{SHARED}=1", f"{BY_MODULE}=1", f"INSULA_TESTS_DEADLINE_S={Patience.seconds / 4}",
        "TMPDIR=/var/tmp",  # ids of a tmpfs cannot be mapped before Linux 6.3
        "python3", "-m", "pytest", "-q", "-x", "--durations=5", "-p", "no:cacheprovider",
        "-c", f"{PROJECT}/pyproject.toml", *words,
    )  # fmt: skip


#: Of tests/security and tests/system what cgroup v2 or another kernel decides; a guest each, both at once.  The intruder and
#: who enters run in the `host` image, whose mask is a tmpfs: ids of one are mapped since Linux 6.3.
SHARED_OUT = {
    OLD: tuple(f"system/test_{name}.py" for name in ("tenant_quotas", "shares", "tenant_disk")),
    NEW: tuple(f"security/test_{name}.py" for name in ("inside", "entering")),
}


def test_nothing_escapes_and_quotas_hold_on_pure_cgroup_v2(laboratory: Laboratory) -> None:
    def run(host: Guest) -> str:
        return run_pytest(host, *(f"{PROJECT}/tests/{file}" for file in SHARED_OUT[host.kernel]))

    answers = dict(zip(SHARED_OUT, laboratory.on_each(run), strict=True))
    for kernel, told in answers.items():
        laboratory.say(f"Linux {kernel}: " + "\n".join(told.splitlines()[-12:]))
        assert "skipped" not in told
    found = re.search(r'SECURITY {"checks": (\d+), "held": (\d+)}', answers[NEW])
    assert found and found[1] == found[2] and int(found[1]) > 0, answers[NEW]


def test_the_systems_are_paired(laboratory: Laboratory, alpha: Guest, beta: Guest) -> None:
    for each in (alpha, beta):
        each.insula("network", "create", "--subnet", f"{LAN}.0/24", "--uplink", "lan1", "lan")
    alpha.insula("image", "import", "/dev/vdc", IMAGE)
    token = beta.insula("host", "token", "-q")
    alpha.insula("host", "add", "--token", token, "beta", f"{beta.address}:{guest.PEER_PORT}")
    for each, other in ((alpha, "beta"), (beta, "alpha")):
        assert each.insula("host", "ls", "-q").splitlines() == [other]


def test_limits_hold_on_pure_cgroup_v2(alpha: Guest) -> None:
    limits = ("--memory", "64m", "--pids", "20", "--cpus", "0.5")
    container = alpha.insula(
        "run", "-d", "--network", "none", *limits, "--name", "small", IMAGE, "sleep", "3600"
    )
    cgroup = alpha.run("find", f"/sys/fs/cgroup/insula-{alpha.name}", "-name", container).strip()
    found = alpha.run("cat", *(f"{cgroup}/{name}" for name in ("memory.max", "pids.max", "cpu.max")))
    assert found.split() == [str(64 << 20), "20", "50000", "100000"]
    eater = alpha.try_run("insula", "exec", "small", "python3", "-c", "len(bytearray(200 << 20))")
    assert eater.code == 137, eater
    alpha.insula("pause", "small")
    assert alpha.run("cat", f"{cgroup}/cgroup.freeze") == "1\n"
    alpha.insula("unpause", "small")
    many = alpha.try_run(
        "insula", "exec", "small", "sh", "-c", "for i in $(seq 40); do sleep 60 & done; wait"
    )
    assert many.code != 0 and "fork" in many.errors.lower(), many
    alpha.insula("rm", "-f", "small")


def test_a_container_that_says_nothing_is_found_in_its_new_place(
    laboratory: Laboratory, alpha: Guest, beta: Guest
) -> None:
    alpha.insula("run", "-d", *IN_LAN, "--ip", SILENT, "--name", "silent", IMAGE, "sleep", "3600")
    laboratory.ping(SILENT)
    assert laboratory.find_guest_of(SILENT) == "alpha"
    with laboratory.announcements() as listener:
        alpha.insula("migrate", "silent", "beta")
        wait_announced(listener, SILENT)
    assert laboratory.find_guest_of(SILENT) == "beta"
    laboratory.ping(SILENT)
    beta.insula("rm", "-f", "silent")


def test_programs_move_to_another_kernel_and_back_under_load(
    laboratory: Laboratory, alpha: Guest, beta: Guest, loaded: dict[str, set[str]]
) -> None:
    start_programs(alpha)
    load = Load(laboratory)
    try:
        load.start()
        for source, target in ((alpha, beta), (beta, alpha)):
            for name in NAMES:
                moved = source.insula("migrate", name, target.name).splitlines()
                laboratory.say(f"{source.kernel} → {target.kernel}: {moved[-1]}")
                load.tell_gaps(f"  {name} moved")
                load.wait_for_more()
            assert (names_on(source), names_on(target)) == ([], list(NAMES))
        load.finish()
    finally:
        load.kill()
    written = alpha.insula(
        "exec", "python", "sh", "-c", "tail -n 1 /root/answers; wc -l < /root/answers"
    ).split()
    assert written[0] == written[1], "the open file has a gap"
    for each in (alpha, beta):
        assert modules_of(each) - loaded[each.name] - OF_QUOTAS == set()


def test_a_system_is_emptied_patched_and_filled_again(
    laboratory: Laboratory, alpha: Guest, beta: Guest
) -> None:
    if not names_on(alpha):
        start_programs(alpha)
    load = Load(laboratory)
    try:
        load.start()
        laboratory.say(alpha.insula("drain"))
        assert (names_on(alpha), names_on(beta)) == ([], list(NAMES))
        load.tell_gaps("drained")
        alpha.shut_down()
        alpha.boot(NEW)
        alpha.wait_up()
        assert alpha.run("uname", "-r").startswith(NEW + ".")
        alpha.start_daemon()
        load.wait_for_more()
        laboratory.say(alpha.insula("undrain"))
        assert (names_on(alpha), names_on(beta)) == (list(NAMES), [])
        load.tell_gaps("brought back")
        load.wait_for_more()
        load.finish()
    finally:
        load.kill()


#: Known: nobody has run `insula setup` in the guests.
EXPECTED_WARNINGS = ("uids of tenants are not reserved",)


def test_the_daemons_have_nothing_to_complain_of(laboratory: Laboratory) -> None:
    def amiss(host: Guest) -> list[str]:
        lines = host.run("cat", guest.DAEMON_LOGS[0]).splitlines()
        return [
            f"{host.name}: {line}"
            for line in lines
            if line.split()[1:2] in (["warning"], ["error"])
            and not any(each in line for each in EXPECTED_WARNINGS)
        ]

    found = list(itertools.chain(*laboratory.on_each(amiss)))
    assert not found, "\n".join(found)
