# SPDX-License-Identifier: Apache-2.0
"""A guest: a QEMU process with a disk of its own, that boots the kernel it is told to, and runs commands.

    outside (a network namespace of the test, where its clients stand)
      ctl   10.88.0.250 ── bridge ──┬── tap ── eth0 of alpha 10.88.0.1      agent; insulad to insulad
                                    └── tap ── eth0 of beta  10.88.0.2
      lan1  10.99.1.250 ── bridge ──┬── tap ── lan1 of alpha               uplink of the containers' network
                                    └── tap ── lan1 of beta

Processors are emulated (TCG): hardware support is not everywhere, and kernels and programs behave the same.  Times seen in
guests say nothing about insula.  QEMU dies with the test (PR_SET_PDEATHSIG), the network with both.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from demo.hosts import inside, new_network

from insula.kernel.netlink import Route, namespace_entered
from vm import disks

AGENT_PORT = 5000
PEER_PORT = 7443
CONTROL, LAN = "10.88.0", "10.99.1"
CLIENT_NUMBER = 250
MEMORY_MB = 1024
BOOT_SECONDS = 240.0
COMMAND_SECONDS = 120.0
OFF_SECONDS = 60.0
#: What this QEMU's emulation gets wrong under Linux 6.12 is left out of the processor (la57, cx16).
PROCESSOR = "max,la57=off,cx16=off"
DAEMON_LOG = "/var/log/insulad.log"


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
    timings: dict[str, float] = field(default_factory=dict)
    _since: float = 0.0

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
        words = ("setpriv", "--pdeathsig", "KILL", "nice", "-n", "5", *self._qemu(kernel, console))
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
            f" mitigations=off fsck.mode=skip vm_name={self.name} vm_number={self.number}",
            "-drive", drive.format("qcow2", self.disk, ",cache=unsafe"),
            "-drive", drive.format("raw", self.folder / "insula.ext4", ",readonly=on"),
            "-drive", drive.format("raw", self.system.image, ",readonly=on"),
        ]  # fmt: skip
        for wire, octet in (("ctl", 1), ("lan1", 2)):
            mac = f"52:54:00:00:{octet:02x}:{self.number:02x}"
            words += ["-netdev", f"tap,id={wire},ifname={wire}-{self.number},script=no,downscript=no"]
            words += ["-device", f"virtio-net-pci,netdev={wire},mac={mac}"]
        return words

    def wait_up(self) -> None:
        """Wait until the agent answers."""
        deadline = self._since + BOOT_SECONDS
        while time.monotonic() < deadline and self.is_on:
            try:
                self._ask({"words": ["true"], "seconds": 30.0, "log": ""}, seconds=30.0, connect_seconds=1.0)
            except (OSError, ValueError):
                _pause(0.2)
                continue
            self.timings[f"boot {self.boots} ({self.kernel})"] = time.monotonic() - self._since
            return
        raise GuestFailed(f"{self.name} with Linux {self.kernel} did not come up:\n{self.last_words()}")

    @property
    def is_on(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def last_words(self, lines: int = 40) -> str:
        """Return the end of its console and of QEMU's own output."""
        found = []
        for path in (self.folder / f"{self.name}.console-{self.boots}", self.folder / f"{self.name}.qemu"):
            if path.exists():
                found += path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        return "\n".join(f"    {self.name}: {line}" for line in found)

    def _ask(self, wish: dict[str, object], *, seconds: float, connect_seconds: float = 10.0) -> Result:
        with namespace_entered(self.network):
            connection = socket.create_connection((self.address, AGENT_PORT), timeout=connect_seconds)
        with connection:
            connection.settimeout(seconds)
            connection.sendall(json.dumps(wish).encode() + b"\n")
            with connection.makefile("rb") as file:
                answer = json.loads(file.readline())
        return Result(code=answer["code"], output=answer["output"], errors=answer["errors"])

    def try_run(self, *words: str, seconds: float = COMMAND_SECONDS) -> Result:
        """Run a command in the guest.  Raises: GuestFailed if the guest does not answer in time."""
        try:
            return self._ask({"words": words, "seconds": seconds, "log": ""}, seconds=seconds + 30.0)
        except (OSError, ValueError) as error:
            raise GuestFailed(
                f"{self.name} does not answer `{' '.join(words)}`: {error}\n{self.last_words()}"
            ) from error

    def run(self, *words: str, seconds: float = COMMAND_SECONDS) -> str:
        """Run a command in the guest and return its output.  Raises: GuestFailed if its exit code is not 0."""
        done = self.try_run(*words, seconds=seconds)
        if done.code != 0:
            raise GuestFailed(
                f"{self.name}: `{' '.join(words)}` ended with {done.code}:\n{done.output[-2000:]}{done.errors[-4000:]}"
            )
        return done.output

    def insula(self, *words: str, seconds: float = COMMAND_SECONDS) -> str:
        """Run the CLI in the guest and return its output."""
        return self.run("insula", *words, seconds=seconds).strip()

    def start_daemon(self) -> None:
        """Start insulad and wait until it answers."""
        words = ["insula", "daemon", "--name", self.name, "--listen", f"{self.address}:{PEER_PORT}"]
        self._ask({"words": words, "seconds": 0.0, "log": DAEMON_LOG}, seconds=30.0)
        deadline = time.monotonic() + COMMAND_SECONDS
        while (done := self.try_run("insula", "host", "ls")).code != 0:
            if time.monotonic() > deadline:
                raise GuestFailed(f"{self.name}: insulad does not answer: {done.errors}\n{self.daemon_log()}")
            _pause(0.2)

    def daemon_log(self, lines: int = 60) -> str:
        """Return the end of insulad's log, as far as the guest still answers."""
        try:
            return self.try_run("tail", "-n", str(lines), DAEMON_LOG, seconds=20.0).output
        except GuestFailed as error:
            return str(error)

    def shut_down(self) -> None:
        """End insulad, write everything to the disk and switch the machine off."""
        self.run(
            "/bin/sh",
            "-c",
            "kill $(cat /run/insula/insulad.pid) || true; sync; mount -o remount,ro / || sync",
        )
        self._switch_off()

    def _switch_off(self) -> None:
        try:
            # Nobody answers any more once it is off.
            self._ask(
                {"words": ["/bin/sh", "-c", "echo o > /proc/sysrq-trigger"], "seconds": 5.0, "log": ""},
                seconds=5.0,
            )
        except (OSError, ValueError):
            pass
        self._wait_off(OFF_SECONDS)

    def _wait_off(self, seconds: float) -> None:
        if self.process is None:
            return
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise GuestFailed(f"{self.name} does not switch itself off:\n{self.last_words()}") from None

    def end(self) -> None:
        """End QEMU, whatever the guest is doing."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process = None


def wait_until(condition: Callable[[], bool], *, seconds: float) -> bool:
    """Wait for a condition; answers whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        _pause(0.1)
    return True


def _pause(seconds: float) -> None:
    # Between two looks at a condition.
    time.sleep(seconds)


@dataclass(kw_only=True)
class Laboratory:
    """The network outside, and the guests; a context that takes everything away at its end."""

    folder: Path
    names: tuple[str, ...] = ("alpha", "beta")
    guests: dict[str, Guest] = field(default_factory=dict)
    outside: int = -1

    def __enter__(self) -> "Laboratory":
        system = disks.find_system()
        disks.make_insula_disk(self.folder / "insula.ext4", work=self.folder)
        self.outside = new_network()
        with Route.in_namespace(self.outside) as route:
            for name, prefix in (("ctl", CONTROL), ("lan1", LAN)):
                route.create_bridge(name)
                route.add_address(name, f"{prefix}.{CLIENT_NUMBER}", 24)
        for number, name in enumerate(self.names, start=1):
            for wire in ("ctl", "lan1"):
                self._lay_cable(wire, number)
            self.guests[name] = Guest(
                name=name, number=number, network=self.outside, folder=self.folder, system=system
            )
        return self

    def _lay_cable(self, wire: str, number: int) -> None:
        tap = f"{wire}-{number}"
        for words in (
            ("tuntap", "add", "dev", tap, "mode", "tap"),
            ("link", "set", tap, "master", wire, "up"),
        ):
            subprocess.run(inside(self.outside, "ip", *words), check=True, stdin=subprocess.DEVNULL)

    def __exit__(self, *_: object) -> None:
        for guest in self.guests.values():
            guest.end()
        if self.outside >= 0:
            os.close(self.outside)
            self.outside = -1

    def say(self, words: str) -> None:
        """Tell how far the test is, past pytest's capture."""
        print(f"vm: {words}", file=sys.__stderr__, flush=True)
