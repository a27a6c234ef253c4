# SPDX-License-Identifier: Apache-2.0
"""A host whose insulad sees a user database of the test's own: its mount namespace has another /etc.

A whole one: a mount on /etc/passwd itself would vanish whenever a package on this machine replaces that file (rename(2)
takes mounts of other namespaces away).
"""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import hosted

STAFF_ID = 64_901
PORT = 7461


@dataclass(kw_only=True)
class AccountsHost(hosted.Host):
    """As `hosted.Host`, with accounts, a policy file and a port for remote users."""

    accounts: dict[str, int] = field(default_factory=dict)
    """Login → uid; the gid is the same."""
    groups: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    """Name → gid and members."""

    @property
    def policy(self) -> Path:
        return self.folder / "policy.toml"

    @property
    def address(self) -> str:
        return f"tls://127.0.0.1:{PORT}"

    def home(self, login: str) -> Path:
        return self.folder / "home" / login

    def prepare(self) -> None:
        """The usual people have accounts and homes."""
        self.accounts = {"alice": hosted.ALICE_UID, "bob": hosted.BOB_UID}
        self.groups = {}
        subprocess.run(["cp", "-a", "/etc", str(self.folder / "etc")], check=True)
        self.write_accounts()
        for name, uid in self.accounts.items():
            self.home(name).mkdir(parents=True, mode=0o755)
            self.home(name).chmod(0o700)
            os.chown(self.home(name), uid, uid)

    def write_accounts(self) -> None:
        """Let what is in `accounts` and `groups` be so from now on."""
        lines = ["root:x:0:0::/root:/bin/sh"]
        lines += [f"{name}:x:{uid}:{uid}::{self.home(name)}:/bin/sh" for name, uid in self.accounts.items()]
        (self.folder / "etc/passwd").write_text("\n".join(lines) + "\n")
        rows = ["root:x:0:", f"{hosted.GROUP}:x:{hosted.GROUP_ID}:"]
        rows += [f"{name}:x:{uid}:" for name, uid in self.accounts.items()]
        rows += [f"{name}:x:{gid}:{','.join(members)}" for name, (gid, members) in self.groups.items()]
        (self.folder / "etc/group").write_text("\n".join(rows) + "\n")

    def _words(self) -> list[str]:
        return [
            "unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc && exec "$@"', f"{self.folder}/etc",
            *super()._words(), "--policy", str(self.policy), "--listen", f"127.0.0.1:{PORT}",
        ]  # fmt: skip

    def remote(self, *words: str, identity: Path | None = None, **environment: str) -> hosted.Done:
        """Give a command over TLS, from within the host's network."""
        options = ["--identity", str(identity)] if identity else []
        done = subprocess.run(
            ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self.network}", "--", str(self.program), "-H", self.address,
             *options, *words],
            capture_output=True, text=True, timeout=hosted.DEADLINE_S, check=False, stdin=subprocess.DEVNULL, cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TERM": "xterm", "INSULA_DEBUG": "1", **environment},
        )  # fmt: skip
        return hosted.Done(done.returncode, done.stdout.rstrip("\n"), done.stderr)


def people_restored_after(host: hosted.Host) -> Iterator[AccountsHost]:
    """Yield a host; then its two people are as they were, and nobody else is known."""
    assert isinstance(host, AccountsHost)
    yield host
    host.accounts = {"alice": hosted.ALICE_UID, "bob": hosted.BOB_UID}
    host.groups = {}
    host.write_accounts()
    for each in host.root.json("user", "ls", "--format", "json"):
        if each["origin"] != "unix":
            host.root("user", "rm", each["name"])
    for name in ("alice", "bob"):
        host.root("user", "set", name, "--rebind", "--role", "user", "--tenant", name)
        host.root.give("user", "add", name)
        host.root("user", "set", name, "--by-groups")
