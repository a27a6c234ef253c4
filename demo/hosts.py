# SPDX-License-Identifier: Apache-2.0
"""Two hosts on one machine: network namespaces, an insulad in each, and a place outside where clients stand.

    outside   ctl 10.99.0.254 ── bridge ──┬── ctl of alpha 10.99.0.1     (insulad to insulad)
              lan1 10.99.1.250 ── bridge ─┼── lan1 of alpha and of beta  (uplinks: one LAN for each user)
              lan2 10.99.2.250 ── bridge ─┴── …

The namespaces have no names: they are held by descriptors, so that they vanish with this process and with those in them,
however it ends.  `nsenter --net` enters them (`ip netns exec` would mount another /sys, without cgroups).
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from demo import cleanup
from demo.users import GROUP, CommandFailed
from insula.client.http import Client
from insula.kernel import libc
from insula.kernel.netlink import CLONE_NEWNET, Route
from insula.model.errors import InsulaError
from insula.network.bridge import interface_prefix
from insula.network.firewall import table_name

CONTROL = "10.99.0"
PORT = 7443
CLIENT_HOST = 250
READY_SECONDS = 20.0
LOG_LINES = 12


@dataclass(frozen=True, kw_only=True)
class Lan:
    """A network outside of the hosts, of one tenant.  Its name is that of each host's interface in it."""

    name: str
    tenant: str
    prefix: str
    """As `10.99.1`."""
    prefix6: str = ""
    """As `fd00:99:1`; empty: IPv4 only."""

    def address(self, number: int) -> str:
        return f"{self.prefix}.{number}"


@dataclass(kw_only=True)
class Host:
    """One host: its namespace, folder and insulad."""

    name: str
    address: str
    folder: Path
    cgroup: str
    network: int
    """Descriptor of the network namespace."""
    inode: int
    daemon: subprocess.Popen[bytes] | None = None
    is_off: bool = False

    @property
    def socket(self) -> Path:
        return self.folder / "run/api.sock"

    @property
    def log(self) -> Path:
        return self.folder / "insulad.log"

    def client(self) -> Client:
        """Return a client with the administrator's rights."""
        return Client(f"unix://{self.socket}")

    def processes(self) -> set[int]:
        """Return what runs on this host: insulad, its spawner, containers."""
        return cleanup.in_network(self.network) | cleanup.members(self.cgroup)


@dataclass(kw_only=True)
class World:
    """Hosts, LANs and their clients' place; a context that takes everything away at its end."""

    lans: tuple[Lan, ...] = ()
    names: tuple[str, ...] = ("alpha", "beta")
    folder: Path = field(init=False)
    outside: int = field(init=False)
    hosts: dict[str, Host] = field(default_factory=dict)
    inodes: list[int] = field(default_factory=list)
    marks: set[str] = field(default_factory=set)
    """What names of ours begin with, should they ever stand in the machine's own network namespace."""

    def __enter__(self) -> "World":
        cleanup.adopt_orphans()
        self.folder = Path(tempfile.mkdtemp(prefix="insula-demo-", dir="/var/tmp"))
        self.folder.chmod(0o755)
        self.outside = self._new_network()
        try:
            self._lay_cables()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def cgroups(self) -> list[str]:
        return [host.cgroup for host in self.hosts.values()]

    def _new_network(self) -> int:
        descriptor = new_network()
        self.inodes.append(os.fstat(descriptor).st_ino)
        return descriptor

    def _lay_cables(self) -> None:
        cables = [("ctl", CONTROL), *((lan.name, lan.prefix) for lan in self.lans)]
        with Route.in_namespace(self.outside) as route:
            for name, prefix in cables:
                route.create_bridge(name)
                route.add_address(name, f"{prefix}.{CLIENT_HOST}", 24)
            for lan in self.lans:
                if lan.prefix6:
                    route.add_address(lan.name, f"{lan.prefix6}::1", 64)
            for number, host_name in enumerate(self.names, start=1):
                host = self._add_host(host_name, number=number)
                for name, _ in cables:
                    route.create_veth(f"{name}-{number}", peer=name, peer_netns_fd=host.network, master=name)
                with Route.in_namespace(host.network) as inner:
                    inner.add_address("ctl", host.address, 24)
                    for name, _ in cables:
                        inner.set_up(name)

    def _add_host(self, name: str, *, number: int) -> Host:
        network = self._new_network()
        folder = self.folder / name
        folder.mkdir(mode=0o755)
        host = Host(
            name=name,
            address=f"{CONTROL}.{number}",
            folder=folder,
            cgroup=f"{self.folder.name}-{name}",
            network=network,
            inode=os.fstat(network).st_ino,
        )
        self.hosts[name] = host
        self.marks |= {interface_prefix(name), table_name(name)}
        return host

    def start(self) -> None:
        """Start each host's insulad and wait until all are ready.  Raises: CommandFailed with their last words."""
        waiting = [(host, start_daemon(host)) for host in self.hosts.values()]
        for host, descriptor in waiting:
            with open(descriptor, "rb") as ready:
                if ready.read() != b"ready\n":
                    raise CommandFailed(f"insulad of {host.name} did not start:\n{tail(host)}")

    def pair(self, first: str, second: str) -> None:
        """Have two hosts know each other."""
        token = self.hosts[second].client().call("POST", "/v1/hosts/token")["token"]
        wish = {"name": second, "address": f"{self.hosts[second].address}:{PORT}", "token": token}
        self.hosts[first].client().call("POST", "/v1/hosts", body=wish)

    def create_networks(self) -> None:
        """Give each LAN's tenant a network `lan` on every host, whose uplink is that LAN."""
        for host in self.hosts.values():
            for lan in self.lans:
                wish = {"name": "lan", "subnet": f"{lan.prefix}.0/24", "uplink": lan.name}
                if lan.prefix6:
                    wish |= {"subnet6": f"{lan.prefix6}::/64", "gateway6": f"{lan.prefix6}::1"}
                made = host.client().call("POST", "/v1/networks", query={"tenant": lan.tenant}, body=wish)
                self.marks.add(str(made["bridge"]))

    def power_off(self, name: str) -> list[str]:
        """End a host: its insulad by SIGTERM, then whatever still runs on it, then its cables.  Returns: what stayed."""
        host = self.hosts[name]
        if host.is_off:
            return []
        stop_daemon(host)
        cleanup.end_all(host.processes)
        os.close(host.network)
        host.is_off = True
        cleanup.unmount_below(host.folder)
        cleanup.remove_cgroups(host.cgroup)
        return [str(path) for path in cleanup.cgroups_named(host.cgroup)]

    def close(self) -> None:
        """Take everything away; safe to call again."""
        for host in self.hosts.values():
            remove_containers(host)
        for name in self.hosts:
            self.power_off(name)
        cleanup.end_all(cleanup.own_processes)
        if self.outside >= 0:
            os.close(self.outside)
            self.outside = -1
        cleanup.remove_folder(self.folder)
        cleanup.let_orphans_go()

    def find_leftovers(self, before: cleanup.Machine) -> list[str]:
        """Return what is still there after `close`; what the kernel takes away late has some seconds to go."""

        def look() -> list[str]:
            return cleanup.leftovers(
                before,
                folder=self.folder,
                groups=self.cgroups,
                networks=self.inodes,
                marks=tuple(self.marks),
            )

        cleanup.wait_until(lambda: not look(), deadline_s=5.0)
        return look()


def new_network() -> int:
    """Make a network namespace with its loopback up; it lives as long as the descriptor and what is in it."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.unshare(CLONE_NEWNET)
        try:
            made = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            libc.setns(own, CLONE_NEWNET)
    finally:
        os.close(own)
    with Route.in_namespace(made) as route:
        route.set_up("lo")
    return made


def inside(descriptor: int, *command: str) -> list[str]:
    """Return a command that runs in a network namespace of this process."""
    return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{descriptor}", "--", *command]


def start_daemon(host: Host, *, program: Sequence[str] = ("-m", "insula.cli")) -> int:
    """Start a host's insulad; returns the descriptor that tells when it is ready.  program: for python, another one."""
    reading, writing = os.pipe()
    words = [
        sys.executable, *program, "daemon", "--name", host.name,
        "--state", f"{host.folder}/state", "--run", f"{host.folder}/run",
        "--listen", f"{host.address}:{PORT}", "--group", GROUP,
        "--export", f"{host.folder}/export.toml",
        "--cgroup-parent", host.cgroup, "--ready-fd", str(writing),
    ]  # fmt: skip
    source = str(Path(__file__).resolve().parent.parent / "src")
    with open(host.log, "ab") as log:
        host.daemon = subprocess.Popen(
            inside(host.network, *words),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={**os.environ, "PYTHONPATH": source},
            pass_fds=[writing],
        )
    os.close(writing)
    return reading


def stop_daemon(host: Host) -> None:
    """Ask a host's insulad to end, and make it if it does not."""
    if host.daemon is None or host.daemon.poll() is not None:
        return
    host.daemon.send_signal(signal.SIGTERM)
    try:
        host.daemon.wait(timeout=cleanup.DEADLINE_S)
    except subprocess.TimeoutExpired:
        host.daemon.kill()
        host.daemon.wait()


def remove_containers(host: Host) -> None:
    """Have insulad remove its containers, as far as it is still there to do so."""
    if host.is_off or host.daemon is None or host.daemon.poll() is not None:
        return
    try:
        client = host.client()
        for each in client.get("/v1/containers", {"all": "1", "tenant": "*"}):
            query = {"force": "1", "volumes": "1", "tenant": str(each["tenant"])}
            client.call("DELETE", f"/v1/containers/{each['id']}", query=query)
    except (InsulaError, OSError):
        return  # what it did not remove is ended and removed without it


def tail(host: Host) -> str:
    """Return the last lines of a host's log, indented."""
    try:
        lines: Sequence[str] = host.log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = ()
    return "\n".join(f"    {host.name}: {line}" for line in lines[-LOG_LINES:])
