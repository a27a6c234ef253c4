# SPDX-License-Identifier: Apache-2.0
"""The last steps before a program runs in a container: who, where, what, with which rights.

Everything is looked up in the container's own files, after the root was changed, by a parser of our own: no NSS, no
locale, no import happens in there (CVE-2019-14271, CVE-2024-40635).

Sources: passwd(5), group(5), execve(2), capabilities(7), seccomp(2).  Standard library only.
"""

import errno
import os
import resource
import stat
from collections.abc import Mapping
from typing import NamedTuple, NoReturn

from insula.boot import counts, interpreters
from insula.boot.protocol import ProgramPlan
from insula.kernel import caps, keyring, libc, lifeline, paths, seccomp

PR_SET_NO_NEW_PRIVS = 38
CLOSE_RANGE_CLOEXEC = 4
MAX_ID = 65535
_DATABASE_BYTES = 4 << 20
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class StepFailed(Exception):
    """A step that cannot be done, with the code of `model/errors.py` that says why."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class Identity(NamedTuple):
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def _lines(path: str) -> list[list[str]]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        text = os.read(descriptor, _DATABASE_BYTES).decode(errors="replace") if is_regular(descriptor) else ""
    finally:
        os.close(descriptor)
    return [line.split(":") for line in text.split("\n") if line and not line.startswith("#")]


def is_regular(descriptor: int) -> bool:
    """Tell whether an open file is a regular one: a fifo or device in its place could block us."""
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _identifier(word: str, *, what: str) -> int | None:
    if not (word.isascii() and word.isdigit()):
        return None
    value = int(word)
    if value > MAX_ID:
        raise StepFailed(f"cannot run as {what} `{word}`: not within 0 to {MAX_ID}", code="invalid_spec")
    return value


def _known_identifier(word: str, *, what: str) -> int:
    # What is no number must not become root's (CVE-2026-30892).
    value = _identifier(word, what=what)
    if value is None:
        raise StepFailed(
            f"cannot run as {what} `{word}`: the image's database names no number", code="invalid_spec"
        )
    return value


def find_identity(user: str) -> Identity:
    """Resolve `name`, `uid`, `name:group` or `uid:gid`; empty is root.

    Raises: StepFailed for a name that the container does not know.
    """
    name, _, group_name = user.partition(":")
    uid = _identifier(name, what="user") if name else 0
    entry = next(
        (
            e
            for e in _lines("/etc/passwd")
            if len(e) >= 6 and (e[0] == name if uid is None else e[2] == str(uid))
        ),
        None,
    )
    if uid is None:
        if entry is None:
            raise StepFailed(
                f"cannot run as user `{name}`: not in the image's /etc/passwd", code="invalid_spec"
            )
        uid = _known_identifier(entry[2], what="user")
    gid = _known_identifier(entry[3], what="group") if entry else 0
    groups = _lines("/etc/group")
    if group_name:
        found = _identifier(group_name, what="group")
        if found is None:
            match = next((g for g in groups if len(g) >= 3 and g[0] == group_name), None)
            if match is None:
                raise StepFailed(
                    f"cannot run as group `{group_name}`: not in the image's /etc/group", code="invalid_spec"
                )
            found = _known_identifier(match[2], what="group")
        gid = found
    member = entry[0] if entry else None
    extra = tuple(
        int(g[2])
        for g in groups
        if len(g) >= 4 and g[2].isdigit() and int(g[2]) <= MAX_ID and member in g[3].split(",")
    )
    return Identity(uid, gid, (gid, *extra), entry[5] if entry and entry[5] else "/")


def find_program(word: str, environment: Mapping[str, str]) -> str:
    """Find an executable file, as execvp(3) does.

    Raises: StepFailed: command_not_found, command_not_executable.
    """
    candidates = [word] if "/" in word else [f"{d or '.'}/{word}" for d in environment["PATH"].split(":")]
    blocked = False
    for path in candidates:
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            blocked = blocked or error.errno == errno.EACCES
            continue
        if stat.S_ISREG(mode) and os.access(path, os.X_OK):
            return path
        blocked = True
    if blocked:
        raise StepFailed(f"cannot execute `{word}`: permission denied", code="command_not_executable")
    raise StepFailed(f"cannot execute `{word}`: not found in the image", code="command_not_found")


def refuse_ours(path: str) -> None:
    """Refuse a program that is, or is run by, /proc/self/exe or its like: nothing of the host's runs inside.

    Who exchanges the file at this very moment gains nothing either: what is ours belongs to nobody in there.
    """
    refuse_magic_links(path)
    try:
        for each in interpreters.chain(path):
            refuse_magic_links(each)
    except OSError:  # the kernel says what is wrong with it
        return


def refuse_magic_links(path: str) -> None:
    """Refuse a path through a magic link of /proc, which leads to what is ours.  Raises: StepFailed, OSError."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(paths.open_in_root(root, os.path.join(os.getcwd(), path), flags=os.O_PATH))
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise StepFailed(
            f"cannot execute `{path}`: it leads out of the container", code="path_escapes"
        ) from None
    finally:
        os.close(root)


def complete_environment(plan: ProgramPlan, identity: Identity) -> dict[str, str]:
    """Return the environment with PATH, HOME, HOSTNAME (of the namespace that this runs in) and TERM where the plan has none."""
    environment = dict(each.partition("=")[::2] for each in plan.environment)
    environment.setdefault("PATH", _DEFAULT_PATH)
    environment.setdefault("HOME", identity.home)
    environment.setdefault("HOSTNAME", os.uname().nodename)
    if plan.tty:
        environment.setdefault("TERM", "xterm")
    return environment


def set_limits(limits: Mapping[str, int]) -> None:
    """Set soft and hard resource limits; what exceeds the spawner's own hard limit is refused by the kernel."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name.upper()}", None)
        if kind is None:
            raise StepFailed(f"cannot limit `{name}`: no such resource", code="invalid_spec")
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError) as error:
            raise StepFailed(f"cannot limit `{name}` to {value}: {error}", code="limit_refused") from None


def change_directory(path: str, identity: Identity) -> None:
    """Enter the working directory, made if missing, as docker does.

    Raises: StepFailed if it is no directory; the place reached must lie within the root (CVE-2024-21626).
    """
    try:
        if not os.path.isdir(path):
            os.makedirs(path, exist_ok=True)
            os.chown(path, identity.uid, identity.gid)
        os.chdir(path)
        inside = os.getcwd()
    except OSError as error:
        raise StepFailed(f"cannot enter `{path}`: {error.strerror}", code="start_failed") from None
    if not inside.startswith("/"):
        raise StepFailed(f"cannot enter `{path}`: it lies outside the container", code="path_escapes")


def give_streams(identity: Identity) -> None:
    """Make the program's user the owner of its pipes and terminal, so that it may open /dev/stdout again."""
    for descriptor in (0, 1, 2):
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode) or os.isatty(descriptor):
            os.fchown(descriptor, identity.uid, -1)


def execute(plan: ProgramPlan, *, filter_program: bytes) -> NoReturn:
    """Become the program.  Standard input, output and error must be in place.

    Raises: StepFailed, OSError.
    """
    identity = find_identity(plan.user)
    environment = complete_environment(plan, identity)
    counts.limit_program()
    set_limits(plan.rlimits)
    change_directory(plan.working_directory or "/", identity)
    path = find_program(plan.argv[0], environment)
    refuse_ours(path)
    give_streams(identity)
    argv = list(plan.argv)
    if plan.init:
        argv, path = [plan.init, "--", path, *argv[1:]], plan.init
    keyring.join_new_session()
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    caps.become(frozenset(plan.capabilities), uid=identity.uid, gid=identity.gid, groups=identity.groups)
    # After the ids, whose change clears it.  Nobody could reap, stop or hear a container whose spawner has gone.
    lifeline.end_with_parent()
    if plan.seccomp:
        seccomp.install(filter_program)
    libc.close_range(3, 0xFFFFFFFF, CLOSE_RANGE_CLOEXEC)
    try:
        os.execve(path, argv, environment)
    except OSError as error:
        if error.errno == errno.ENOEXEC or error.errno == errno.EACCES:
            raise StepFailed(
                f"cannot execute `{path}`: {error.strerror}", code="command_not_executable"
            ) from None
        if error.errno == errno.ENOENT:
            raise StepFailed(
                f"cannot execute `{path}`: its interpreter is not in the image", code="command_not_found"
            ) from None
        raise
