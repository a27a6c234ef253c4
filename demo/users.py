# SPDX-License-Identifier: Apache-2.0
"""The Unix users who give commands in the demo: made for it, removed after it.

They run the CLI with their own uid from a copy that everybody may read, since the project's folder may be closed to them.
"""

import compileall
import grp
import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src/insula"
GROUP = "insula-demo"
#: All that the CLI imports.
PACKAGES = ("cli", "client", "model")
COMMAND_DEADLINE_S = 120.0


class CommandFailed(Exception):
    """A command of the story ended otherwise than the story says."""


@dataclass(frozen=True, kw_only=True)
class User:
    """Somebody who types `insula …`.  uid 0 is the administrator."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    program: Path

    def run(
        self, socket: Path, *words: str, shows_progress: bool = False, may_fail: bool = False
    ) -> "subprocess.CompletedProcess[str]":
        """Give one command to the insulad at a socket.

        shows_progress: stderr is the terminal's.  Raises: CommandFailed.
        """
        done = subprocess.run(
            [str(self.program), "-H", f"unix://{socket}", *words],
            user=self.uid,
            group=self.gid,
            extra_groups=self.groups,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if shows_progress else subprocess.PIPE,
            text=True,
            cwd="/",
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": "/",
                "TERM": os.environ.get("TERM", "dumb"),
            },
            timeout=COMMAND_DEADLINE_S,
            check=False,
        )
        if done.returncode != 0 and not may_fail:
            raise CommandFailed(
                f"`{shown(words)}` of {self.name} ended with {done.returncode}: {(done.stderr or '').strip()}"
            )
        return done


def shown(words: Sequence[str]) -> str:
    """Return a command as a person would type it; long programs are cut."""
    return " ".join(
        ["insula", *("…" if len(word) > 40 or "\n" in word else shlex.quote(word) for word in words)]
    )


def install_program(folder: Path) -> Path:
    """Put the CLI where every user can run it; returns the program."""
    library = folder / "lib"
    for name in PACKAGES:
        shutil.copytree(
            SOURCE / name, library / "insula" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copyfile(SOURCE / "__init__.py", library / "insula/__init__.py")
    compileall.compile_dir(library, quiet=2)
    for path in (library, *library.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    program = folder / "insula"
    program.write_text(
        f"#!{open_python()} -S\nimport sys\n\nsys.path.insert(0, {str(library)!r})\n"
        "from insula.cli.main import main\n\nsys.exit(main())\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    return program


def open_python() -> str:
    """Return a Python that every user may run.  Raises: CommandFailed."""
    for path in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        if _is_open(Path(path)):
            return path
    raise CommandFailed(
        f"no Python that every user may run: `{sys.executable}` lies in a folder closed to others"
    )


def _is_open(path: Path) -> bool:
    return path.exists() and all(each.stat().st_mode & 0o001 for each in (path, *path.parents))


def administrator(program: Path) -> User:
    """Return root as a giver of commands."""
    return User(name="root", uid=0, gid=0, groups=(), program=program)


def make(names: Sequence[str], *, program: Path) -> list[User]:
    """Make the users in the demo's group; one that a killed run left is used again."""
    if not _has_group():
        _system("groupadd", "--system", GROUP)
    for name in names:
        if not _has_user(name):
            _system(
                "useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent",
                "--shell", "/usr/sbin/nologin", "--gid", GROUP, name,
            )  # fmt: skip
    gid = grp.getgrnam(GROUP).gr_gid
    return [
        User(name=name, uid=pwd.getpwnam(name).pw_uid, gid=gid, groups=(gid,), program=program)
        for name in names
    ]


def remove(names: Sequence[str]) -> list[str]:
    """Remove users and group; returns what stayed."""
    for name in names:
        if _has_user(name):
            _system("userdel", name, may_fail=True)
    if _has_group():
        _system("groupdel", GROUP, may_fail=True)
    stayed = [f"user {name}" for name in names if _has_user(name)]
    return [*stayed, *([f"group {GROUP}"] if _has_group() else [])]


def _has_user(name: str) -> bool:
    return any(each.pw_name == name for each in pwd.getpwall())


def _has_group() -> bool:
    return any(each.gr_name == GROUP for each in grp.getgrall())


def _system(*command: str, may_fail: bool = False) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0 and not may_fail:
        raise CommandFailed(f"`{' '.join(command)}` ended with {done.returncode}: {done.stderr.strip()}")
