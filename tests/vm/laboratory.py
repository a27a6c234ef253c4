# SPDX-License-Identifier: Apache-2.0
"""The place where the guests and their clients stand: a network namespace of the test, without a name, gone with it.

outside
  ctl   10.88.0.250 ── bridge ──┬── tap ── eth0 of alpha 10.88.0.1      agent; insulad to insulad
                                └── tap ── eth0 of beta  10.88.0.2
  lan1  10.99.1.250 ── bridge ──┬── tap ── lan1 of alpha               uplink of the containers' network
                                └── tap ── lan1 of beta
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from demo.hosts import inside, new_network

from insula.kernel.announce import ETH_P_ARP
from insula.kernel.netlink import Route, namespace_entered
from vm import disks
from vm.guest import CONTROL, Guest, Patience

LAN = "10.99.1"
CLIENT_NUMBER = 250
_FRAME_BYTES = 2048
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a part of the tests took."""

    name: str
    seconds: float
    computed: dict[str, float]
    """Guest → seconds of a processor."""

    def __str__(self) -> str:
        guests = ", ".join(f"{name} {seconds:.0f}" for name, seconds in self.computed.items())
        return f"{self.seconds:6.0f} s  {self.name}  (computed: {guests})"


@dataclass(kw_only=True)
class Laboratory:
    """The network outside, and the guests, from `open` to `close`."""

    folder: Path
    names: tuple[str, ...] = ("alpha", "beta")
    guests: dict[str, Guest] = field(default_factory=dict)
    outside: int = -1
    """Descriptor of the network namespace."""
    steps: list[Step] = field(default_factory=list)

    def open(self) -> None:
        """Make the disks, the network and the guests, which are off."""
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

    def _lay_cable(self, wire: str, number: int) -> None:
        self.run("ip", "tuntap", "add", "dev", f"{wire}-{number}", "mode", "tap")
        self.run("ip", "link", "set", f"{wire}-{number}", "master", wire, "up")

    def close(self) -> None:
        """Take everything away."""
        for guest in self.guests.values():
            guest.end()
        if self.outside >= 0:
            os.close(self.outside)
            self.outside = -1

    def run(self, *words: str) -> str:
        """Run a command where the clients stand, and return its output."""
        done = subprocess.run(
            inside(self.outside, *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=Patience.seconds,
        )
        return done.stdout

    def ping(self, address: str) -> None:
        """Have an address answer one packet.  Raises: CalledProcessError if it does not within 10 s."""
        self.run("busybox", "ping", "-c", "1", "-W", "10", address)

    def find_guest_of(self, address: str) -> str | None:
        """Return the guest behind which the switch of the containers' network takes an address to be."""
        known = json.loads(self.run("ip", "-j", "neighbor", "show", address, "dev", "lan1"))
        places = json.loads(self.run("bridge", "-j", "fdb", "show", "br", "lan1"))
        macs = {each.get("lladdr") for each in known}
        ports = {f"lan1-{guest.number}": name for name, guest in self.guests.items()}
        return next((ports[each["ifname"]] for each in places if each["mac"] in macs), None)

    def on_each(self, act: Callable[[Guest], Result]) -> list[Result]:
        """Do something on all guests at once.  Returns: what each gave.  Raises: what the first of them did."""
        with ThreadPoolExecutor(len(self.guests)) as pool:
            try:
                return list(pool.map(act, self.guests.values()))
            except KeyboardInterrupt:
                self.close()  # so that nobody waits any more
                raise

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a part of the tests; its guests stay on."""
        began = time.monotonic()
        before = {name: guest.cpu_seconds for name, guest in self.guests.items()}
        try:
            yield
        finally:
            computed = {
                name: max(0.0, guest.cpu_seconds - before.get(name, 0.0))
                for name, guest in self.guests.items()
            }
            self.steps.append(Step(name=name, seconds=time.monotonic() - began, computed=computed))
            self.say(str(self.steps[-1]))

    def tell_steps(self) -> None:
        """Say how long each part took, and all together."""
        self.say("what took how long:")
        for each in self.steps:
            self.say(str(each))
        self.say(f"{sum(each.seconds for each in self.steps):6.0f} s  all together")

    @contextmanager
    def announcements(self) -> Iterator[socket.socket]:
        """Listen to ARP where the clients stand; the socket gives the frames from now on."""
        with namespace_entered(self.outside):
            listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP))
        with listener:
            listener.bind(("lan1", ETH_P_ARP))
            listener.settimeout(Patience.seconds)
            yield listener

    def say(self, words: str) -> None:
        """Tell how far the test is, past pytest's capture."""
        print(f"vm: {words}", file=sys.__stderr__, flush=True)


def wait_announced(listener: socket.socket, address: str) -> None:
    """Wait for an ARP announcement: sender and target are the same address.  Raises: TimeoutError."""
    packed = socket.inet_aton(address)
    while True:
        frame = listener.recv(_FRAME_BYTES)
        if frame[28:32] == packed == frame[38:42]:
            return
