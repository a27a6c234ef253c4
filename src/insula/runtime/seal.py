# SPDX-License-Identifier: Apache-2.0
"""The seal of a checkpoint: one altered bit anywhere is noticed before anything of it is used; nothing is readable, if asked for.

    seal.json          what belongs to it: container, name, salt, and of each file its name, length and SHA-256
    seal.mac           HMAC-SHA256 of seal.json
    NAME               a file as it is, or
    NAME.sealed        encrypted: "INSULA-SEAL-1\\n", then AES-256-GCM of pieces of 1 MiB, 16 bytes of tag behind each

Every key is drawn (HKDF-SHA256) from one secret, the checkpoint's random salt and the file's name, so that a piece fits
nowhere else: not into another file, not into another checkpoint.  The nonce counts the pieces and marks the last one
(as the STREAM construction does), so that none can be moved, left out or cut off.

The secret is a key file that the caller holds, or this host's own `pki/seal.key`, made at the first use.  A seal by the
host's key does not protect against who can read that file; it does against a disk, a backup or a hand that alters a
checkpoint.  Out of scope: when (`checkpoint`, `restore`).

Sources: NIST SP 800-38D; RFC 5869; Hoang and others, "Online Authenticated-Encryption" (STREAM), CRYPTO 2015.
"""

import hashlib
import hmac
import io
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from insula.model.errors import BadRequest, CheckpointAltered, RestoreFailed
from insula.model.record import Fact

FORMAT = 1
MANIFEST, MAC = "seal.json", "seal.mac"
SUFFIX = ".sealed"
MAGIC = b"INSULA-SEAL-1\n"
PIECE = 1 << 20
TAG = 16
MIN_KEY_BYTES, MAX_KEY_BYTES = 32, 4096
MAX_MANIFEST_BYTES = 16 << 20

#: What CRIU writes beside its images, and reads never.
LEFT_OUT = frozenset(
    ("criu-dump.log", "criu-restore.log", "criu-pages.log", "stats-dump", "stats-restore", MANIFEST, MAC)
)
_FILE_MODE = 0o644


class Protection(StrEnum):
    AUTHENTICATED = "authenticated"
    ENCRYPTED = "encrypted"


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """What every key is drawn from."""

    value: bytes


class Entry(Fact, kw_only=True, frozen=True):
    name: str
    size: int
    digest: str
    """SHA-256 of its content, hexadecimal; of an encrypted file empty: its pieces are authenticated."""


class Manifest(Fact, kw_only=True, frozen=True):
    format: int
    container: str
    checkpoint: str
    protection: Protection
    salt: str
    files: tuple[Entry, ...]


class _Version(msgspec.Struct):
    format: int


def secret_of_file(data: bytes) -> Secret:
    """Take the content of a key file.  Raises: BadRequest if it is too short to be a key."""
    if not MIN_KEY_BYTES <= len(data) <= MAX_KEY_BYTES:
        raise BadRequest(
            f"cannot use the key file: it has {len(data)} bytes, not {MIN_KEY_BYTES} to {MAX_KEY_BYTES}",
            hint=f"name the file that it was sealed with; a new key: head -c {MIN_KEY_BYTES} /dev/urandom > NEWFILE",
        )
    return Secret(b"file" + data)


def secret_of_host(folder: Path) -> Secret:
    """Read this host's own key; make it at the first use.  folder: STATE/pki, root's alone."""
    path = folder / "seal.key"
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        found = _make_host_key(path)
    if len(found) != MIN_KEY_BYTES:
        raise RestoreFailed(f"cannot use `{path}`: it is no key any more", hint="put it back from a backup")
    return Secret(b"host" + found)


def _make_host_key(path: Path) -> bytes:
    made = secrets.token_bytes(MIN_KEY_BYTES)
    fresh = path.with_name(f"seal.key.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(fresh, flags, 0o600), "wb") as file:
        file.write(made)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(fresh, path)  # who comes second takes the first one's
    except FileExistsError:
        made = path.read_bytes()
    finally:
        fresh.unlink()
    return made


def _draw(secret: Secret, *, salt: bytes, purpose: str) -> bytes:
    info = f"insula checkpoint {FORMAT}\n{purpose}".encode()
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=info).derive(secret.value)


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([is_last])


class Sealer:
    """Seals a checkpoint into a folder, file by file; `finish` writes the manifest, and without it there is no checkpoint."""

    def __init__(
        self, folder: int, *, secret: Secret, container: str, checkpoint: str, protection: Protection
    ) -> None:
        self._folder = folder
        self._secret = secret
        self._container = container
        self._checkpoint = checkpoint
        self._protection = protection
        self._salt = secrets.token_bytes(32)
        self._entries: list[Entry] = []

    @property
    def is_encrypting(self) -> bool:
        return self._protection is Protection.ENCRYPTED

    def add(self, name: str, pieces: Iterable[bytes]) -> None:
        """Write a file of the checkpoint from pieces of any length.  Raises: OSError (ENOSPC)."""
        _check_name(name)
        stored = name + SUFFIX if self.is_encrypting else name
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(stored, flags, _FILE_MODE, dir_fd=self._folder), "wb") as file:
            if self.is_encrypting:
                entry = self._encrypt(name, pieces, file=file)
            else:
                entry = _copy(name, pieces, file=file)
            file.flush()
            os.fsync(file.fileno())
        self._entries.append(entry)

    def _encrypt(self, name: str, pieces: Iterable[bytes], *, file: BinaryIO) -> Entry:
        cipher = AESGCM(_draw(self._secret, salt=self._salt, purpose=f"file {name}"))
        file.write(MAGIC)
        number = size = 0
        held: bytes | None = None
        for piece in _even(pieces):
            if held is not None:
                file.write(cipher.encrypt(_nonce(number, is_last=False), held, MAGIC))
                number += 1
            held = piece
            size += len(piece)
        file.write(cipher.encrypt(_nonce(number, is_last=True), held or b"", MAGIC))
        return Entry(name=name, size=size, digest="")

    def add_folder(self, images: int) -> None:
        """Seal the files of a folder of images; those that lie in the checkpoint's own folder already stay as they are."""
        in_place = os.path.sameopenfile(images, self._folder)
        known = {each.name for each in self._entries}
        for name in sorted(os.listdir(images)):
            if name in LEFT_OUT or name in known:
                continue
            with _open_file(images, name) as file:
                if not in_place:
                    self.add(name, _read(file))
                    continue
                digest, size = _digest(file)
                os.fsync(file.fileno())
            self._entries.append(Entry(name=name, size=size, digest=digest))

    def finish(self) -> str:
        """Write manifest and code.  Returns: the code, which names exactly this checkpoint."""
        manifest = Manifest(
            format=FORMAT,
            container=self._container,
            checkpoint=self._checkpoint,
            protection=self._protection,
            salt=self._salt.hex(),
            files=tuple(sorted(self._entries, key=lambda each: each.name)),
        )
        text = msgspec.json.encode(manifest)
        code = _code(self._secret, salt=self._salt, text=text)
        for name, data in ((MANIFEST, text), (MAC, code.encode())):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(name, flags, _FILE_MODE, dir_fd=self._folder), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        os.fsync(self._folder)
        return code


class Sealed:
    """A checkpoint whose manifest is authentic.  Raises, in each method: CheckpointAltered."""

    def __init__(self, folder: int, *, secret: Secret, manifest: Manifest) -> None:
        self._folder = folder
        self._secret = secret
        self.manifest = manifest
        self._entries = {each.name: each for each in manifest.files}

    @property
    def is_encrypted(self) -> bool:
        return self.manifest.protection is Protection.ENCRYPTED

    def has(self, name: str) -> bool:
        return name in self._entries

    def verify_files(self) -> None:
        """Compare the folder with the manifest: nothing more, nothing less, nothing else.  CRIU's old logs are removed."""
        stored = {name + (SUFFIX if self.is_encrypted else "") for name in self._entries}
        found = set(os.listdir(self._folder))
        for name in found & (LEFT_OUT - {MANIFEST, MAC}):
            os.unlink(name, dir_fd=self._folder)
        if strange := sorted(found - LEFT_OUT - stored):
            raise self._altered(strange[0], "it does not belong to it")
        if missing := sorted(stored - found):
            raise self._altered(missing[0], "it is missing")
        if self.is_encrypted:
            return
        for entry in self.manifest.files:
            with self._open(entry.name, entry.name) as file:
                digest, size = _digest(file)
            if size != entry.size or not hmac.compare_digest(digest, entry.digest):
                raise self._altered(entry.name, "its content is another")

    def read(self, name: str) -> Iterator[bytes]:
        """Give a file's content, each piece authentic; of a plain file as `verify_files` has found it."""
        entry = self._entries.get(name)
        if entry is None:
            raise self._altered(name, "it is missing")
        if not self.is_encrypted:
            with self._open(name, name) as file:
                yield from _read(file)
            return
        with self._open(name, name + SUFFIX) as file:
            yield from self._decrypt(entry, file)

    def _decrypt(self, entry: Entry, file: BinaryIO) -> Iterator[bytes]:
        salt = bytes.fromhex(self.manifest.salt)
        cipher = AESGCM(_draw(self._secret, salt=salt, purpose=f"file {entry.name}"))
        if file.read(len(MAGIC)) != MAGIC:
            raise self._altered(entry.name, "its head is another")
        count = max(1, -(-entry.size // PIECE))
        for number in range(count):
            is_last = number == count - 1
            length = entry.size - number * PIECE if is_last else PIECE
            data = file.read(length + TAG)
            try:
                piece = cipher.decrypt(_nonce(number, is_last=is_last), data, MAGIC)
            except (InvalidTag, ValueError) as error:
                raise self._altered(entry.name, f"its piece {number} is another") from error
            yield piece
        if file.read(1):
            raise self._altered(entry.name, "it is too long")

    def unpack(self, into: int, *, without: frozenset[str] = frozenset()) -> None:
        """Decrypt every file into a folder, which had better be in memory."""
        for entry in self.manifest.files:
            if entry.name in without:
                continue
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(entry.name, flags, _FILE_MODE, dir_fd=into), "wb") as file:
                for piece in self.read(entry.name):
                    file.write(piece)

    def _open(self, name: str, stored: str) -> BinaryIO:
        try:
            return _open_file(self._folder, stored)
        except OSError as error:
            raise self._altered(name, f"it cannot be opened: {error.strerror}") from error

    def _altered(self, name: str, reason: str) -> CheckpointAltered:
        return CheckpointAltered(
            f"cannot use checkpoint `{self.manifest.checkpoint}`: file `{name[:80]}` was altered: {reason}"
        )


def open_seal(folder: int, *, secret: Secret, container: str, checkpoint: str, code: str) -> Sealed:
    """Read and authenticate the manifest of a checkpoint.

    code: what `Sealer.finish` returned.  Raises: CheckpointAltered; RestoreFailed for another version's.
    """
    text = _small_file(folder, MANIFEST, checkpoint=checkpoint)
    written = _small_file(folder, MAC, checkpoint=checkpoint)
    manifest = _decode(text, checkpoint=checkpoint)
    expected = _code(secret, salt=bytes.fromhex(manifest.salt), text=text)
    if not hmac.compare_digest(expected.encode(), written):
        raise CheckpointAltered(
            f"cannot use checkpoint `{checkpoint}`: its manifest was altered, or this is not its key",
            hint="name the key file that it was made with: --key-file",
        )
    if not hmac.compare_digest(expected, code) or (manifest.container, manifest.checkpoint) != (
        container,
        checkpoint,
    ):
        raise CheckpointAltered(
            f"cannot use checkpoint `{checkpoint}`: another one lies in its place, `{manifest.checkpoint[:80]}`"
        )
    return Sealed(folder, secret=secret, manifest=manifest)


def _decode(text: bytes, *, checkpoint: str) -> Manifest:
    try:
        version = msgspec.json.decode(text, type=_Version).format
        if version != FORMAT:
            raise RestoreFailed(
                f"cannot use checkpoint `{checkpoint}`: it has format {version}, this insula reads {FORMAT}",
                hint="restore it with the insula that made it",
            )
        manifest = msgspec.json.decode(text, type=Manifest)
        bytes.fromhex(manifest.salt)
        for each in manifest.files:
            _check_name(each.name)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise CheckpointAltered(
            f"cannot use checkpoint `{checkpoint}`: its manifest cannot be read"
        ) from error
    return manifest


def _small_file(folder: int, name: str, *, checkpoint: str) -> bytes:
    try:
        with _open_file(folder, name) as file:
            return file.read(MAX_MANIFEST_BYTES)
    except OSError as error:
        raise CheckpointAltered(
            f"cannot use checkpoint `{checkpoint}`: its file `{name}` cannot be read: {error.strerror}"
        ) from error


def _code(secret: Secret, *, salt: bytes, text: bytes) -> str:
    return hmac.new(_draw(secret, salt=salt, purpose="manifest"), text, hashlib.sha256).hexdigest()


def _check_name(name: str) -> None:
    if not name or "/" in name or "\0" in name or name.startswith(".") or name in LEFT_OUT:
        raise ValueError(f"not the name of an image: {name[:80]!r}")


def _open_file(folder: int, name: str) -> BinaryIO:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    return os.fdopen(os.open(name, flags, dir_fd=folder), "rb")


def _read(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(PIECE):
        yield piece


def _digest(file: BinaryIO) -> tuple[str, int]:
    made, size = hashlib.sha256(), 0
    for piece in _read(file):
        made.update(piece)
        size += len(piece)
    return made.hexdigest(), size


def _copy(name: str, pieces: Iterable[bytes], *, file: BinaryIO) -> Entry:
    made, size = hashlib.sha256(), 0
    for piece in pieces:
        file.write(piece)
        made.update(piece)
        size += len(piece)
    return Entry(name=name, size=size, digest=made.hexdigest())


def _even(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Cut a stream into pieces of PIECE bytes; only the last may be shorter."""
    held = bytearray()
    for piece in pieces:
        if not held and len(piece) == PIECE:
            yield piece
            continue
        held += piece
        while len(held) >= PIECE:
            yield bytes(held[:PIECE])
            del held[:PIECE]
    if held:
        yield bytes(held)


class Stream(io.RawIOBase):
    """A file to read from, made of an iterator of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill what there is room for."""
        while not self._rest:
            try:
                self._rest = memoryview(next(self._pieces))
            except StopIteration:
                return 0
        count = min(len(self._rest), len(buffer))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
