# SPDX-License-Identifier: Apache-2.0
"""The process above a build: it becomes root of the tenant's ids, with mounts and processes of its own, and starts the program.

    stdin: READY when it stands in its tenant's cgroup, then nothing; its end is insulad's, and ends the program
    stdout, stderr, exit code: the program's

Arguments: the tenant's first host id, the folder that is /tmp in there, the program's words.  The program is pid 1 of its
namespace, so all that it has started ends with it.  The network is the host's.  Started by `building.py`.

Sources: user_namespaces(7), pid_namespaces(7), mount_namespaces(7).
"""

import os
import select
import signal
import sys
from typing import NoReturn

from insula.kernel import libc, lifeline, mount, namespace
from insula.runtime.archive_worker import take_identity
from insula.runtime.worker_words import wait_ready

OOM_SCORE_ADJ = 500
"""Where the tenant's memory ends, a build goes before the tenant's containers."""
NOT_STARTED = 127
"""Exit code, as a shell's."""
_SEPARATE = namespace.CLONE_NEWPID | namespace.CLONE_NEWNS | namespace.CLONE_NEWIPC | namespace.CLONE_NEWUTS


def main() -> int:
    """Do what the arguments say."""
    uid_base, folder, *words = sys.argv[1:]
    if not wait_ready():
        return NOT_STARTED  # insulad ended before this was moved
    try:
        _separate(int(uid_base), folder)
        child = namespace.spawn(_SEPARATE)
        if child.pid == 0:
            _become(words)
        return _outcome(child)
    except OSError as error:
        sys.stderr.write(f"E: {error.strerror}: {error.filename}\n")
        return NOT_STARTED


def _separate(uid_base: int, folder: str) -> None:
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(OOM_SCORE_ADJ))
    # The folder lies below one that is root's alone, so it is led to while this is root.
    libc.unshare(namespace.CLONE_NEWNS)
    mount.set_propagation("/", propagation=mount.MS_REC | mount.MS_PRIVATE)
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    mount.attach(mount.bind_fd(descriptor, attributes=mount.MOUNT_ATTR_NODEV), "/tmp")
    os.close(descriptor)
    take_identity(uid_base)
    os.umask(0o022)
    os.chdir("/")


def _become(words: list[str]) -> NoReturn:
    try:
        lifeline.end_with_parent()
        mount.attach(mount.proc(), "/proc")
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.execvp(words[0], words)
    except OSError as error:
        os.write(2, f"E: {words[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(NOT_STARTED)


def _outcome(child: namespace.Child) -> int:
    poll = select.poll()
    poll.register(child.pidfd, select.POLLIN)
    poll.register(0, 0)  # POLLHUP: insulad has ended, or wants this to
    if child.pidfd not in {descriptor for descriptor, _ in poll.poll()}:
        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
    _, status = os.waitpid(child.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
