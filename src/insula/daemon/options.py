# SPDX-License-Identifier: Apache-2.0
"""The words of `insula daemon`."""

import argparse
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from insula.network.pool import DEFAULT_POOL

DEFAULT_GROUP = "insula"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    state: Path
    run: Path
    name: str
    listen: str
    """HOST:PORT of the TLS listener for other hosts; empty: none."""
    group: str
    """Whose members may give commands; empty: `insula` if there is such a group, else root only."""
    pool: IPv4Network
    cgroup_parent: str
    admins: frozenset[str]
    policy: Path
    """What users may ask for; no such file: what everybody may."""
    rules: Path
    exports: Path
    """What leaves the host unasked; no such file: nothing."""
    syslog: str
    """Where the audit's lines go, too."""
    ready_fd: int | None
    teardown: bool
    """Take the host down instead of serving."""
    verbose: bool

    @property
    def socket_path(self) -> Path:
        return self.run / "api.sock"


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line.  Ends the process with a message if it makes no sense."""
    parser = argparse.ArgumentParser(prog="insula daemon", description="run insulad, the daemon of this host")
    _add_places(parser)
    _add_files(parser)
    _add_rights_and_limits(parser)
    return _options_of(parser.parse_args(arguments))


def _add_places(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--state",
        metavar="FOLDER",
        type=Path,
        default=Path("/var/lib/insula"),
        help="state folder (default: %(default)s)",
    )
    add(
        "--run",
        metavar="FOLDER",
        type=Path,
        default=Path("/run/insula"),
        help="folder of the sockets (default: %(default)s)",
    )
    add(
        "--name",
        metavar="NAME",
        default=socket.gethostname(),
        help="this host's name among hosts (default: %(default)s)",
    )
    add("--listen", metavar="HOST:PORT", default="", help="TLS listener for paired hosts (default: none)")


def _add_rights_and_limits(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--group",
        metavar="GROUP",
        default="",
        help=f"group that may use the socket (default: {DEFAULT_GROUP}, if it exists)",
    )
    add(
        "--admin",
        action="append",
        default=[],
        metavar="USER",
        help="a user with root's rights here; repeatable",
    )
    add(
        "--pool",
        metavar="SUBNET",
        type=IPv4Network,
        default=DEFAULT_POOL,
        help="where subnets come from (default: %(default)s)",
    )
    add("--cgroup-parent", metavar="NAME", default="", help="cgroup of all containers (default: insula-NAME)")
    add(
        "--ready-fd",
        metavar="FD",
        type=int,
        default=None,
        help="descriptor that gets a line when insulad is ready",
    )
    add(
        "--teardown",
        action="store_true",
        help="end all containers, take bridges, rules and cgroups away, and end; the state folder stays",
    )
    add("--verbose", action="store_true", help="log also what went as usual")


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--policy",
        metavar="FILE",
        type=Path,
        default=Path("/etc/insula/policy.toml"),
        help="what users may ask for (default: %(default)s)",
    )
    add(
        "--rules",
        metavar="FOLDER",
        type=Path,
        default=Path("/etc/insula/rules.d"),
        help="which events are an alarm, in *.toml (default: %(default)s)",
    )
    add(
        "--export",
        metavar="FILE",
        type=Path,
        default=Path("/etc/insula/export.toml"),
        help="where events and traces are exported to: OpenTelemetry, files, syslog (default: %(default)s)",
    )
    add(
        "--syslog",
        metavar="ADDRESS",
        default="",
        help="/dev/log, udp://HOST:PORT or tcp://HOST:PORT that gets the audit's lines, too",
    )


def _options_of(words: argparse.Namespace) -> Options:
    return Options(
        state=words.state.absolute(),
        run=words.run.absolute(),
        name=words.name,
        listen=words.listen,
        group=words.group,
        pool=words.pool,
        cgroup_parent=words.cgroup_parent or f"insula-{words.name}",
        admins=frozenset(words.admin),
        policy=words.policy.absolute(),
        rules=words.rules.absolute(),
        exports=words.export.absolute(),
        syslog=words.syslog,
        ready_fd=words.ready_fd,
        teardown=words.teardown,
        verbose=words.verbose,
    )
