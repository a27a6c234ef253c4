# SPDX-License-Identifier: Apache-2.0
"""`insula cp`: a path of a container as a tar, and a tar into a folder of a container.

The container's root is a handle: of one that runs `/proc/PID/root`, with its volumes and mounts; of a stopped one its
root file system alone, mounted for the moment.  The work is done by `archive_worker.py`, a process of its own within a user
namespace of the container's ids: it may do to files what the container's root may, and nothing more, whatever a
symbolic link, a bind mount or /proc leads to; and it stands in the tenant's cgroup (`charged.py`).  A copy that fails on
the way leaves what was copied until then.
"""

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import BinaryIO

from insula.kernel.paths import open_in_root
from insula.model.errors import BadRequest, InsulaError, LimitRefused, WrongState, from_code
from insula.model.grant import Grant
from insula.model.lifecycle import ALIVE, AT_REST
from insula.model.record import ContainerRecord, PathStat
from insula.runtime.charged import Charge, charged_group, let_begin
from insula.runtime.context import Runtime
from insula.runtime.path_errors import explain
from insula.runtime.plan import start_plan
from insula.runtime.worker_words import worker_words

CHUNK_BYTES = 1 << 18
MAX_PATH_BYTES = 4095
ROOT_NAME = "rootfs"
"""What `/` is called in an archive."""


def stat_path(grant: Grant, runtime: Runtime, ref: str, *, path: str) -> PathStat:
    """Tell what a path is.  A link at its end is not followed, unless a slash follows it.

    Raises: ContainerNotFound, WrongState, PathNotFound, PathEscapes.
    """
    with _opened_root(grant, runtime, ref) as root, _explained(path):
        descriptor = _open_path(root, path)
        try:
            status = os.fstat(descriptor)
            is_link = stat.S_ISLNK(status.st_mode)
            return PathStat(
                name=name_of(path),
                mode=status.st_mode,
                size=status.st_size,
                is_directory=stat.S_ISDIR(status.st_mode),
                link_target=os.readlink("", dir_fd=descriptor) if is_link else "",
            )
        finally:
            os.close(descriptor)


def read_archive(grant: Grant, runtime: Runtime, ref: str, *, path: str, output: BinaryIO) -> None:
    """Write a tar of a path; the first name in it is the path's last.

    Raises: as `stat_path`; Denied, Unsupported for a device or socket.
    """
    name_of(path)
    with _opened_root(grant, runtime, ref) as root, _worker(runtime, "read", root=root, path=path) as process:
        if process.stdout is not None:
            while chunk := process.stdout.read(CHUNK_BYTES):
                output.write(chunk)


def write_archive(grant: Grant, runtime: Runtime, ref: str, *, path: str, source: BinaryIO) -> None:
    """Unpack a tar into a folder that is there.  Names in it must not lead through links.

    Raises: as `stat_path`; Denied, InvalidImage for what is no good tar, DiskFull.
    """
    with (
        _opened_root(grant, runtime, ref) as root,
        _worker(runtime, "write", root=root, path=path) as process,
    ):
        if process.stdin is not None:
            with suppress(BrokenPipeError):  # the worker has stopped, and says why
                while chunk := source.read(CHUNK_BYTES):
                    _write_all(process.stdin.fileno(), chunk)
                process.stdin.close()


def _write_all(descriptor: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


class _Root:
    """An opened root, with the mapping of its container."""

    def __init__(self, descriptor: int, record: ContainerRecord) -> None:
        self.descriptor = descriptor
        self.uid_base = record.uid_base
        self.tenant = record.tenant
        self._record = record

    def refuse_absent_mounts(self, path: str, descriptor: int) -> None:
        """Refuse what a volume or bind mount covers while the container runs.  Raises: WrongState."""
        if self._record.status in ALIVE:
            return
        place = os.readlink(f"/proc/self/fd/{descriptor}")
        for mount in self._record.spec.mounts:
            target = os.path.normpath(mount.target)
            if place == target or place.startswith(target + "/"):
                raise WrongState(
                    f"cannot copy `{path}`: `{target}` is mounted only while container `{self._record.name}` runs",
                    hint=f"insula start {self._record.name}",
                )


@contextmanager
def _opened_root(grant: Grant, runtime: Runtime, ref: str) -> Iterator[_Root]:
    # A stopped container stays held: a start would mount its writable layer a second time.
    with ExitStack() as held:
        record = runtime.find(grant, ref)
        held.enter_context(runtime.locked(record.id))
        record = runtime.find(grant, record.id)
        if record.status in ALIVE:
            descriptor = open_root(record)
            held.pop_all().close()
        elif record.status in AT_REST:
            descriptor = runtime.spawner.view(start_plan(runtime, record))
        else:
            raise WrongState(f"cannot copy files of container `{record.name}`: it is {record.status.value}")
        held.callback(os.close, descriptor)
        yield _Root(descriptor, record)


def open_root(record: ContainerRecord) -> int:
    """Open the root of a running container.  Raises: WrongState if it has just ended."""
    try:
        # One handle for all: the pid may be given to another process at any moment, the handle then leads nowhere.
        with ExitStack() as held, ExitStack() as undo:
            process = os.open(f"/proc/{record.pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, process)
            root = os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=process)
            undo.callback(os.close, root)
            with open(
                os.open("cgroup", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process), encoding="utf-8"
            ) as file:
                if record.id in file.read():
                    undo.pop_all()
                    return root
    except (FileNotFoundError, ProcessLookupError):
        pass
    raise WrongState(f"container `{record.name}` is not running: it has just ended")


def name_of(path: str) -> str:
    """Return the name of a path in its archive.  Raises: BadRequest."""
    if "\0" in path or not 0 < len(os.fsencode(path)) <= MAX_PATH_BYTES:
        raise BadRequest("cannot copy: the path is empty, too long, or contains a zero byte")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if parts and parts[-1] == "..":
        raise BadRequest(f"cannot copy `{path}`: it ends with `..`")
    return parts[-1] if parts else ROOT_NAME


def _open_path(root: _Root, path: str) -> int:
    name_of(path)
    follow = path.endswith(("/", "/.")) or path == "."
    descriptor = open_in_root(root.descriptor, path, flags=os.O_PATH | (0 if follow else os.O_NOFOLLOW))
    try:
        root.refuse_absent_mounts(path, descriptor)
    except WrongState:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain(error, path) from error


@contextmanager
def _worker(runtime: Runtime, verb: str, *, root: _Root, path: str) -> Iterator[subprocess.Popen[bytes]]:
    # Judged before anything is sent; the worker opens the path again, by its own right.
    with _explained(path):
        os.close(_open_path(root, path))
    with (
        charged_group(runtime, root.tenant, charge=Charge.COPY) as group,
        _started(verb, root, path=path) as process,
    ):
        let_begin(process, group)
        yield process
        said = process.stderr.read() if process.stderr is not None else b""
        if process.wait() != 0:
            raise _failure_of(said, path)


@contextmanager
def _started(verb: str, root: _Root, *, path: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        (
            *worker_words("insula.runtime.archive_worker", needs_packages=False),
            verb,
            str(root.descriptor),
            str(root.uid_base),
            path,
            name_of(path),
        ),
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if verb == "read" else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=(root.descriptor,),
        cwd="/",
        env={"LC_ALL": "C.UTF-8"},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _failure_of(said: bytes, path: str) -> InsulaError:
    try:
        fields = json.loads(said)
        return from_code(str(fields["code"]), str(fields["message"]), hint=str(fields["hint"]))
    except (ValueError, KeyError, TypeError):
        reason = said.decode("utf-8", "replace").strip()
        if reason:
            return InsulaError(f"cannot copy `{path}`: {reason}")
        return LimitRefused(
            f"cannot copy `{path}`: the process was killed",
            hint="the tenant's memory is used up: stop some of its containers, or raise its limit",
        )
