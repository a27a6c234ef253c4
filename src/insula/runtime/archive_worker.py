# SPDX-License-Identifier: Apache-2.0
"""The process that copies files of a container: packs or unpacks a tar as the container's root, and ends.

    stdin: READY when it stands in its tenant's cgroup, then (write) the tar
    stdout (read): the tar        stderr: a failure as JSON {"code", "message", "hint"}; exit code 1

Arguments: verb, descriptor of the container's root, first host id, path, name in the archive.  Its user namespace has
the container's mapping and holds nothing else: no mount, no network, no process of the container.  Standard library only.
"""

import codecs
import json
import os
import stat
import sys

from insula.image.pack import pack_file, pack_tree
from insula.image.tarball import Form, unpack_tree
from insula.kernel import idmap, libc
from insula.kernel.paths import open_in_root
from insula.model.errors import DiskFull, InsulaError, LimitRefused, Unsupported
from insula.runtime.path_errors import explain
from insula.runtime.worker_words import wait_ready

ID_COUNT = 65536
_MADE_UP = (b"proc", b"sys")
"""By the kernel, on the spot: no files of the container's, and many cannot be read."""


def main() -> int:
    """Do what the arguments say."""
    verb, root, uid_base, path, name = sys.argv[1:]
    if not wait_ready():
        return 1
    try:
        take_identity(int(uid_base))
        if verb == "read":
            read(int(root), path, name=name)
        else:
            write(int(root), path)
    except InsulaError as error:
        return _fail(error)
    except BlockingIOError:  # EAGAIN of fork: a user namespace takes a process for a moment
        return _fail(
            LimitRefused(
                f"cannot copy `{path}`: the tenant may have no more processes",
                hint="stop some of its containers, or raise its limit",
            )
        )
    except OSError as error:
        return _fail(explain(error, path))
    return 0


def _fail(error: InsulaError) -> int:
    sys.stderr.write(json.dumps({"code": error.code, "message": error.message, "hint": error.hint}))
    return 1


def take_identity(uid_base: int) -> None:
    """Become root of a new user namespace whose ids are the container's.  Raises: OSError."""
    # What is imported lazily must be here by now: the interpreter's own folders need not be open to everybody.
    codecs.lookup("unicode_escape")
    ids = (idmap.Range(0, uid_base, ID_COUNT),)
    namespace = idmap.user_namespace(uids=ids, gids=ids)
    libc.setns(namespace, idmap.CLONE_NEWUSER)
    os.close(namespace)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.umask(0)


def read(root: int, path: str, *, name: str) -> None:
    """Write the tar of a path to stdout.  Raises: OSError, Unsupported."""
    if path.endswith(("/", "/.")) or path == ".":
        is_root = set(path.split("/")) <= {"", "."}
        folder_fd = open_in_root(root, path, flags=os.O_RDONLY | os.O_DIRECTORY)
        _read_folder(folder_fd, name, empty=_MADE_UP if is_root else ())
        return
    folder, _, last = path.rpartition("/")
    parent = open_in_root(root, folder or "/", flags=os.O_PATH | os.O_DIRECTORY)
    mode = os.stat(last, dir_fd=parent, follow_symlinks=False).st_mode
    if stat.S_ISDIR(mode):
        _read_folder(os.open(last, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent), name)
        return
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISFIFO(mode)):
        raise Unsupported(f"cannot copy `{path}`: it is a device or a socket")
    for piece in pack_file(parent, os.fsencode(last)):
        _write_all(piece)


def _read_folder(descriptor: int, name: str, *, empty: tuple[bytes, ...] = ()) -> None:
    for piece in pack_tree(descriptor, form=Form.PLAIN, prefix=os.fsencode(name) + b"/", empty=empty):
        _write_all(piece)


def _write_all(piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(1, rest) :]


def write(root: int, path: str) -> None:
    """Unpack the tar on stdin into a folder.  Raises: OSError, InvalidImage, DiskFull."""
    folder = open_in_root(root, path, flags=os.O_PATH | os.O_DIRECTORY)
    try:
        unpack_tree(sys.stdin.buffer, folder, form=Form.PLAIN)
    except DiskFull as error:
        raise DiskFull(error.message, hint="what was copied before is there; free some space") from error
