# SPDX-License-Identifier: Apache-2.0
"""Two running operating systems with different kernels: programs move from one to the other under load, and one is patched.

The tests build on each other and run in this order.  Both guests have pure cgroup v2 and soft-dirty, which the machine
that runs the other tests may not have.  Processors are emulated, so the gaps printed say nothing about insula on a machine.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo.clients import LoadClient
from demo.hosts import LOG_LINES

from insula.kernel import modules
from leftovers import SHARED
from vm import guest
from vm.guest import PATIENCE_SECONDS, Guest, wait_until
from vm.laboratory import LAN, Laboratory, wait_announced
from vm.postgres import PgBench

OLD, NEW = "6.1", "6.12"
REDIS, POSTGRES, PYTHON, SILENT = (f"{LAN}.{number}" for number in (20, 21, 22, 23))
#: Emulated processors are tens of times slower than the pause that insula promises.
IN_LAN = ("--network", "lan", "--max-pause", "60s")
IMAGE = "debian"
#: A web server that numbers its answers; a thread for each connection, one that ticks, and a file kept open for writing.
SERVER = """
import http.server, threading, time
out = open("/root/answers", "w", buffering=1)
lock = threading.Lock()
count = ticks = 0

def tick():
    global ticks
    while True:
        time.sleep(0.05)
        ticks += 1

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536

    def do_GET(self):
        global count
        with lock:
            count += 1
            answer = count
            out.write("%d\\n" % answer)
        body = b"%d\\n" % answer
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass

threading.Thread(target=tick, daemon=True).start()
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    folder = Path(tempfile.mkdtemp(prefix="insula-vm-", dir="/var/tmp"))
    began = time.monotonic()
    try:
        with Laboratory(folder=folder) as made:
            made.say(f"disks ready after {time.monotonic() - began:.0f} s")
            alpha, beta = made.guests["alpha"], made.guests["beta"]
            alpha.boot(OLD)
            beta.boot(NEW)
            for each in (alpha, beta):
                made.say(f"{each.name}: Linux {each.kernel} up after {each.wait_up():.0f} s")
            yield made
    finally:
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
    yield
    if request.session.testsfailed > failed:
        for each in laboratory.guests.values():
            print(each.daemon_logs(LOG_LINES * 3), each.last_words(), sep="\n")


LOAD_MODULES = "from insula.kernel import modules; modules.load_all()"


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """For each guest its kernel modules after the start of insulad."""
    return {}


def modules_of(host: Guest) -> set[str]:
    return {line.split()[0] for line in host.run("cat", "/proc/modules").splitlines()}


def test_modules_are_loaded_before_they_are_needed(
    alpha: Guest, beta: Guest, loaded: dict[str, set[str]]
) -> None:
    """One by one, amid nft's first transaction, they took so long that insulad gave its start up."""
    alpha.run("python3", "-c", LOAD_MODULES)
    before = modules_of(alpha)
    for each in (alpha, beta):
        each.start_daemon()
        loaded[each.name] = modules_of(each)
    assert loaded["alpha"] - before == set()
    assert set(modules.MODULES) <= loaded["beta"]


def test_the_systems_are_paired(laboratory: Laboratory, alpha: Guest, beta: Guest) -> None:
    for each in (alpha, beta):
        each.insula("network", "create", "--subnet", f"{LAN}.0/24", "--uplink", "lan1", "lan")
    began = time.monotonic()
    alpha.insula("image", "import", "/dev/vdc", IMAGE)
    laboratory.say(f"image imported in {time.monotonic() - began:.0f} s")
    token = beta.insula("host", "token", "-q")
    alpha.insula("host", "add", "--token", token, "beta", f"{beta.address}:{guest.PEER_PORT}")
    for each, other in ((alpha, "beta"), (beta, "alpha")):
        assert each.insula("host", "ls", "-q").splitlines() == [other]


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


class Load:
    """The three programs and their clients."""

    def __init__(self, laboratory: Laboratory) -> None:
        self.laboratory = laboratory
        outside = laboratory.outside
        self.redis = LoadClient("redis", REDIS, port=6379, network=outside, megabytes=10)
        self.python = LoadClient("http", PYTHON, port=8000, network=outside)
        self.postgres = PgBench(laboratory.guests["alpha"].system.tree, POSTGRES, network=outside)

    def start(self) -> None:
        assert wait_until(self.postgres.is_ready), "PostgreSQL does not answer"
        self.postgres.fill()
        self.postgres.start()
        for client in (self.redis, self.python):
            client.wait_ready()
            client.take_gap_ms()

    def wait_for_more(self, count: int = 20) -> None:
        """Wait until PostgreSQL has done so many transactions from now on."""
        wanted = len(self.postgres.transactions()) + count
        assert wait_until(
            lambda: len(self.postgres.transactions()) >= wanted or not self.postgres.is_running(),
        ), "pgbench gets no answers any more"

    def tell_gaps(self, what: str) -> None:
        redis, python = self.redis.take_gap_ms(), self.python.take_gap_ms()
        self.laboratory.say(f"{what}: longest gap of redis {redis:.0f} ms, of python {python:.0f} ms")

    def kill(self) -> None:
        for client in (self.redis, self.python, self.postgres):
            client.kill()

    def finish(self) -> None:
        """End all clients: none has seen a failure."""
        redis, python = self.redis.finish(), self.python.finish()
        done, failed, gap = self.postgres.finish()
        self.laboratory.say(f"redis {redis}")
        self.laboratory.say(f"python {python}")
        self.laboratory.say(
            f"postgres: {done} transactions, {failed} failed, longest gap {gap * 1000:.0f} ms"
        )
        for outcome in (redis, python):
            assert (outcome.failed, outcome.lost) == (0, 0), outcome
        assert failed == 0 and done > 0


def start_programs(host: Guest) -> None:
    run = ("run", "-d", *IN_LAN)
    quiet = ("--save", "", "--protected-mode", "no")
    host.insula(*run, "--ip", REDIS, "--name", "redis", IMAGE, "redis-server", *quiet)
    host.insula(
        *run, "--ip", POSTGRES, "--name", "postgres", "--user", "postgres", IMAGE,
        "/usr/lib/postgresql/15/bin/postgres", "-c", "config_file=/etc/postgresql/15/main/postgresql.conf",
        "-c", "external_pid_file=", "-c", "unix_socket_directories=/tmp",
    )  # fmt: skip
    host.insula(*run, "--ip", PYTHON, "--name", "python", IMAGE, "python3", "-c", SERVER)


NAMES = ("postgres", "python", "redis")


def names_on(host: Guest) -> list[str]:
    return sorted(host.insula("ps", "--format", "{{.name}}").split())


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
        assert modules_of(each) - loaded[each.name] == set()


def test_both_systems_have_what_containers_need(laboratory: Laboratory, alpha: Guest, beta: Guest) -> None:
    releases = [each.run("uname", "-r").strip() for each in (alpha, beta)]
    assert releases[0].startswith(OLD + ".") and releases[1].startswith(NEW + "."), releases
    for each in (alpha, beta):
        done = each.try_run("insula", "doctor")
        laboratory.say(f"insula doctor on {each.name}, Linux {each.kernel}:\n{done.output}")
        assert done.code == 0, done.output
        assert "limits and counting (v2)" in done.output


def test_limits_hold_on_pure_cgroup_v2(alpha: Guest) -> None:
    limits = ("--memory", "64m", "--pids", "20", "--cpus", "0.5")
    container = alpha.insula(
        "run", "-d", "--network", "none", *limits, "--name", "small", IMAGE, "sleep", "3600"
    )
    cgroup = alpha.run("find", "/sys/fs/cgroup/insula-alpha", "-name", container).strip()
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


#: What the machine outside has not, of tests/kernel: marks of written memory (soft-dirty), limits of cgroup v2, layers of an
#: overlay and memory filled in on an older kernel.
KERNEL_TESTS = (
    "tests/kernel/test_track.py", "tests/kernel/test_lazy.py", "tests/kernel/test_cgroup.py",
    "tests/kernel/test_spawner_limits.py", "tests/kernel/test_mount.py",
)  # fmt: skip
KERNEL_TESTS_CHOSEN = "not test_track or (soft-dirty and -2-) or the_best or another_program"


def test_kernel_tests_pass_on_the_older_kernel(laboratory: Laboratory, alpha: Guest) -> None:
    told = alpha.run(
        "env", f"{SHARED}=1", f"INSULA_TESTS_DEADLINE_S={PATIENCE_SECONDS / 4}",
        "TMPDIR=/var/tmp",  # ids of a tmpfs cannot be mapped before Linux 6.3
        "python3", "-m", "pytest", "-q", "-x", "--durations=5", "-p", "no:cacheprovider", "-c", "/opt/insula/pyproject.toml",
        "-k", KERNEL_TESTS_CHOSEN, *(f"/opt/insula/{name}" for name in KERNEL_TESTS),
    )  # fmt: skip
    laboratory.say(told)
    assert "skipped" not in told


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
