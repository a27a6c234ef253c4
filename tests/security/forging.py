# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that this host's own key seals although they were altered: what only the look at their images can refuse.

The container keeps, beside its memory: a file, a deleted file, a named socket, a tmpfs, a second thread.
"""

import io
import os
import shutil
import sqlite3
import struct
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from insula.kernel import protobuf
from insula.model.record import CheckpointRecord
from insula.runtime.seal import Protection, Sealer, Secret, secret_of_host
from two_hosts import Conversation, Pair

#: What the program makes; `deleted` is a ghost, as CRIU calls it.
KEPT = """
import ctypes, os, socket, threading
kept = open("/tmp/kept", "w+")
deleted = open("/tmp/deleted", "w+")
os.unlink("/tmp/deleted")
named = socket.socket(socket.AF_UNIX)
named.bind("/tmp/named")
open("/dev/shm/kept", "w").close()
threading.Thread(target=threading.Event().wait, daemon=True).start()
libc = ctypes.CDLL(None, use_errno=True)
answer = ""
"""
Fields = list[tuple[int, int | bytes]]
Change = Callable[[Fields], Fields]


@dataclass(frozen=True)
class Forge:
    """A stopped container `c` on alpha, and its checkpoint `new`."""

    pair: Pair
    address: str
    folder: Path
    whole: Path
    """As it was made."""

    def begin(self) -> None:
        """Put the checkpoint back as it was made, to be altered."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.whole, self.folder)

    def seal(self, *, pki: Path | None = None) -> None:
        """Seal what lies there with the host's key, or that of another folder, and let the store believe it."""
        state = self.pair.host("alpha").folder / "state"
        with sqlite3.connect(state / "db.sqlite", timeout=10) as store:
            query = "SELECT record FROM checkpoints WHERE container = ? AND name = 'new'"
            name = self.folder.parents[1].name
            record = msgspec.json.decode(store.execute(query, (name,)).fetchone()[0], type=CheckpointRecord)
            code = self._sealed(secret_of_host(pki or state / "pki"), record)
            update = "UPDATE checkpoints SET record = ? WHERE container = ? AND name = 'new'"
            store.execute(update, (msgspec.json.encode(msgspec.structs.replace(record, seal=code)), name))
        store.close()

    def _sealed(self, secret: Secret, record: CheckpointRecord) -> str:
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            sealer = Sealer(
                descriptor,
                secret=secret,
                container=record.container,
                checkpoint=record.name,
                protection=Protection.AUTHENTICATED,
            )
            sealer.add_folder(descriptor)
            return sealer.finish()
        finally:
            os.close(descriptor)

    def restore(self) -> None:
        self.pair.act("alpha", "c", "restore", checkpoint="new")

    def stop(self) -> None:
        if self.pair.status("alpha", "c") == "running":
            self.pair.client("alpha").call("POST", "/v1/containers/c/stop", body={"timeout_s": 0})

    def ask(self, source: str) -> object:
        """Have the restored program execute something; returns what it assigned to `answer`."""
        talk = Conversation(self.pair.world, self.address)
        try:
            return talk.run(source)
        finally:
            talk.close()


def image(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def edit(path: Path, change: Callable[[int, Fields], Fields | None], *, head: int = 8) -> None:
    """Change the entries of an image, by number and fields; None leaves one out.  What is not an entry stays."""
    data = path.read_bytes()
    out, position, count = [data[:head]], head, 0
    while position + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, position)
        if position + 4 + size > len(data):
            break
        fields = change(count, list(protobuf.decode(data[position + 4 : position + 4 + size])))
        if fields is not None:
            made = protobuf.encode(fields)
            out.append(struct.pack("<I", len(made)) + made)
        position, count = position + 4 + size, count + 1
    path.write_bytes(b"".join([*out, data[position:]]))


def put(fields: Fields, number: int, *values: int | bytes) -> Fields:
    """Return fields with these values for a number, where the first stood."""
    return [each for each in fields if each[0] != number] + [(number, value) for value in values]


def get(fields: Fields, number: int) -> int | bytes | None:
    return next((value for each, value in fields if each == number), None)


def inner(fields: Fields, number: int, change: Change) -> Fields:
    """Change a message within."""
    return [
        (each, protobuf.encode(change(list(protobuf.decode(value))))) if each == number and isinstance(value, bytes) else (each, value)
        for each, value in fields
    ]  # fmt: skip


def tar_of(entries: Iterable[tuple[str, str]]) -> bytes:
    """Return a tar of names and, for links, targets; "" is a file.  As it stands in an image: without a head."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, target in entries:
            entry = tarfile.TarInfo(name)
            entry.mode = 0o666
            if target:
                entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return buffer.getvalue()
