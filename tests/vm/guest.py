# SPDX-License-Identifier: Apache-2.0
"""A guest: a QEMU process with a disk of its own, that boots the kernel it is told to, and runs commands.

Processors are emulated (TCG), with /dev/kvm and without: a machine that is itself a guest often has one that runs nothing,
and kernels and programs behave the same.  Times seen in guests say nothing about insula.  QEMU dies with the thread that
booted it (PR_SET_PDEATHSIG).
"""

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from demo.hosts import inside

from insula.kernel.netlink import namespace_entered
from vm import disks

AGENT_PORT = 5000
PEER_PORT = 7443
CONTROL = "10.88.0"
MEMORY_MB = 2048
#: Left out of the processor: what this QEMU's emulation gets wrong under Linux 6.12 (la57, cx16), and what has kernel and libc
#: copy by `rep movsb`, which is emulated byte by byte: with it everything takes twice as long (erms, fsrm).
PROCESSOR = "max,la57=off,cx16=off,erms=off,fsrm=off"
#: A guest that gets no processor for seconds must not conclude that its clocks or its timer are broken.
STEADY = "no_timer_check tsc=reliable nowatchdog rcupdate.rcu_cpu_stall_suppress=1"
END_DAEMON = "at=/run/insula/insulad.pid; kill $(cat $at) && while test -e $at; do sleep 0.1; done; sync"
DAEMON_LOGS = ("/var/log/insulad.log", "/var/lib/insula/spawner.log")


class Patience:
    """How long to wait for anything in a guest: processors are emulated and shared with whatever else this machine does.

    What fails tells so at once, so that only a hang lasts so long.
    """

    seconds: ClassVar[float] = 900.0
    _BOOTS: ClassVar[float] = 60.0

    @classmethod
    def learn(cls, boot_seconds: float) -> None:
        """Hear how long a boot took: so many times that, where the machine is slower than was thought."""
        cls.seconds = max(cls.seconds, cls._BOOTS * boot_seconds)


class GuestFailed(Exception):
    """A guest did not do what it was told; the message has its last words."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a command."""

    code: int
    output: str
    errors: str


@dataclass(kw_only=True)
class Guest:
    """One machine.  It is off until `boot`."""

    name: str
    number: int
    network: int
    """Descriptor of the test's network namespace."""
    folder: Path
    system: disks.System
    process: subprocess.Popen[bytes] | None = None
    kernel: str = ""
    boots: int = 0
    _since: float = 0.0
    _asked: set[socket.socket] = field(default_factory=set)
    """Connections on which somebody waits for an answer."""

    @property
    def address(self) -> str:
        return f"{CONTROL}.{self.number}"

    @property
    def disk(self) -> Path:
        return self.folder / f"{self.name}.qcow2"

    def boot(self, kernel: str) -> None:
        """Start the machine with a kernel, as `6.1`; `wait_up` tells when it answers."""
        if not self.disk.exists():
            disks.make_overlay(self.disk, self.system.disk)
        self.kernel = kernel
        self.boots += 1
        console = self.folder / f"{self.name}.console-{self.boots}"
        words = ("setpriv", "--pdeathsig", "KILL", *self._qemu(kernel, console))
        with open(self.folder / f"{self.name}.qemu", "ab") as log:
            self.process = subprocess.Popen(
                inside(self.network, *words), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._since = time.monotonic()

    def _qemu(self, kernel: str, console: Path) -> list[str]:
        chosen = self.system.kernels[kernel]
        drive = "if=virtio,format={},file={}{}"
        words = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-machine", "pc,accel=tcg", "-cpu", PROCESSOR, "-smp", "1", "-m", str(MEMORY_MB),
            "-serial", f"file:{console}", "-kernel", str(chosen.image), "-initrd", str(chosen.initrd),
            "-append", f"root=/dev/vda rw init=/sbin/guest-init console=ttyS0 quiet loglevel=4 net.ifnames=0 panic=-1"
            f" mitigations=off {STEADY} vm_name={self.name} vm_number={self.number}",
            "-drive", drive.format("qcow2", self.disk, ",cache=unsafe"),
            "-drive", drive.format("raw", self.folder / "insula.ext4", ",readonly=on"),
            "-drive", drive.format("raw", self.system.image, ",readonly=on"),
        ]  # fmt: skip
        for wire, octet in (("ctl", 1), ("lan1", 2)):
            mac = f"52:54:00:00:{octet:02x}:{self.number:02x}"
            words += ["-netdev", f"tap,id={wire},ifname={wire}-{self.number},script=no,downscript=no"]
            words += ["-device", f"virtio-net-pci,netdev={wire},mac={mac}"]
        return words

    def wait_up(self) -> float:
        """Wait until the agent answers.  Returns: seconds since `boot`."""
        deadline = self._since + Patience.seconds
        while time.monotonic() < deadline and self.is_on:
            try:
                self._ask("true", connect_seconds=1.0)
            except (OSError, ValueError):
                _pause(0.2)
                continue
            took = time.monotonic() - self._since
            Patience.learn(took)
            return took
        raise GuestFailed(f"{self.name} with Linux {self.kernel} did not come up:\n{self.last_words()}")

    @property
    def is_on(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def cpu_seconds(self) -> float:
        """What QEMU has computed since it was last booted: a measure of work that a loaded machine leaves as it is."""
        if self.process is None or not self.is_on:
            return 0.0
        # proc_pid_stat(5): utime and stime are the fields 14 and 15.
        fields = (
            Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
        )
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def last_words(self, lines: int = 40) -> str:
        """Return the end of its console and of QEMU's own output."""
        found = []
        for path in (self.folder / f"{self.name}.console-{self.boots}", self.folder / f"{self.name}.qemu"):
            if path.exists():
                found += path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        return "\n".join(f"    {self.name}: {line}" for line in found)

    @contextlib.contextmanager
    def _told(self, *words: str, log: str = "", connect_seconds: float = 10.0) -> Iterator[socket.socket]:
        """Tell the agent a command; gives the connection on which the answer comes."""
        wish = {"words": words, "seconds": Patience.seconds, "log": log}
        with namespace_entered(self.network):
            connection = socket.create_connection((self.address, AGENT_PORT), timeout=connect_seconds)
        with connection:
            connection.settimeout(Patience.seconds + 30.0)
            connection.sendall(json.dumps(wish).encode() + b"\n")
            self._asked.add(connection)
            try:
                yield connection
            finally:
                self._asked.discard(connection)

    def _ask(self, *words: str, log: str = "", connect_seconds: float = 10.0) -> Result:
        with (
            self._told(*words, log=log, connect_seconds=connect_seconds) as connection,
            connection.makefile("rb") as file,
        ):
            return Result(**json.loads(file.readline()))

    def try_run(self, *words: str, log: str = "") -> Result:
        """Run a command in the guest.  Raises: GuestFailed if the guest does not answer.

        log: of a daemon that runs on, as the agent says.
        """
        try:
            return self._ask(*words, log=log)
        except (OSError, ValueError) as error:
            raise GuestFailed(
                f"{self.name} does not answer `{' '.join(words)}`: {error}\n{self.last_words()}"
            ) from error

    def run(self, *words: str, log: str = "") -> str:
        """Run a command in the guest and return its output.  Raises: GuestFailed if its exit code is not 0."""
        done = self.try_run(*words, log=log)
        if done.code != 0:
            raise GuestFailed(
                f"{self.name}: `{' '.join(words)}` ended with {done.code}:\n{done.output[-4000:]}{done.errors[-4000:]}"
            )
        return done.output

    def insula(self, *words: str) -> str:
        """Run the CLI in the guest and return its output."""
        return self.run("insula", *words).strip()

    def start_daemon(self) -> None:
        """Start insulad and wait until it is ready.  Raises: GuestFailed with what it wrote if it is not."""
        address = f"{self.address}:{PEER_PORT}"
        self.run("insula", "daemon", "--name", self.name, "--listen", address, log=DAEMON_LOGS[0])

    def daemon_logs(self, lines: int = 60) -> str:
        """Return the ends of insulad's log and its spawner's, as far as the guest still answers."""
        try:
            return self.try_run("tail", "-n", str(lines), *DAEMON_LOGS).output
        except GuestFailed as error:
            return str(error)

    def shut_down(self) -> None:
        """End insulad, write everything to the disk and switch the machine off."""
        self.run("/bin/sh", "-c", END_DAEMON)
        if self.process is not None:
            with self._told("/bin/sh", "-c", "echo o > /proc/sysrq-trigger"):  # nobody is left to answer
                self.process.wait(timeout=Patience.seconds)

    def end(self) -> None:
        """End QEMU, whatever the guest is doing."""
        if self.process is not None and self.is_on:
            self.process.kill()
            self.process.wait()
        for connection in tuple(self._asked):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                connection.shutdown(socket.SHUT_RDWR)
        self.process = None


def wait_until(condition: Callable[[], bool]) -> bool:
    """Wait for a condition; answers whether it came true in time."""
    deadline = time.monotonic() + Patience.seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        _pause(0.1)
    return True


def _pause(seconds: float) -> None:
    # Between two looks at a condition.
    time.sleep(seconds)
