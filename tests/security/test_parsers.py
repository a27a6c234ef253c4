# SPDX-License-Identifier: Apache-2.0
"""T13: what root reads of others' bytes, altered at random: archives, seals, CRIU's images, frames.  Refused as what they are, never
by a crash.  The same seeds each time; each altered copy is one of a right original.
"""

import contextlib
import hashlib
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.image.layers import Layers
from insula.kernel import criu_images, protobuf
from insula.kernel.caps import DEFAULT
from insula.model.errors import InsulaError
from insula.runtime import compare_place, dump, seal
from insula.runtime.compare import check_rights
from insula.runtime.image_fields import COMMON_MAGIC, INVENTORY_MAGIC
from security import archives

ROUNDS = 400
PROGRAM = struct.pack("=HBBI", 0x06, 0, 0, 0)


def altered(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with a few changes of the kinds that break parsers: bits, numbers at their ends, pieces moved, cut, doubled."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        place = chance.randrange(len(made) or 1)
        match chance.randrange(6):
            case 0:
                made[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                made[place : place + 4] = chance.choice(
                    (b"\xff\xff\xff\xff", bytes(4), b"\xff\xff\xff\x7f", b"\0\0\0\x80")
                )
            case 2:
                del made[place:]
            case 3:
                made[place:place] = made[place : place + chance.randrange(1, 200)]
            case 4:
                del made[place : place + chance.randrange(1, 40)]
            case _:
                made[place:place] = chance.randbytes(chance.randrange(1, 12))
    return bytes(made)


@contextlib.contextmanager
def _folder(place: Path) -> Iterator[int]:
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _image(magic: int, *entries: bytes) -> bytes:
    head = struct.pack("<I", magic) if magic == INVENTORY_MAGIC else struct.pack("<II", COMMON_MAGIC, magic)
    return head + b"".join(struct.pack("<I", len(each)) + each for each in entries)


def _mount(number: int, root: str, place: str, *, kind: int = 1) -> bytes:
    return protobuf.encode(
        [(1, kind), (2, number), (3, 45), (4, 50), (5, 1), (6, root), (7, place), (8, "x"), (9, "")]
    )


def _images() -> dict[str, bytes]:
    """Return the images that are looked at, of a container with one process."""
    credentials = [
        *((field, 0) for field in range(1, 9)),
        (14, 0),
        *((field, 0) for field in (9, 10, 11, 12)),
        (18, 1),
    ]
    thread = protobuf.encode([(10, protobuf.encode(credentials)), (11, 2), (12, 0)])
    core = protobuf.encode([(3, protobuf.encode([(1, 1)])), (5, thread)])
    ids = [*((field, 2) for field in range(1, 5)), *((field, 9 + field) for field in range(5, 13))]
    hosts = protobuf.encode([(field, 1) for field in range(1, 13)])
    return {
        "core-1.img": _image(0x55053847, core),
        "ids-1.img": _image(0x54432030, protobuf.encode(ids)),
        "inventory.img": _image(INVENTORY_MAGIC, protobuf.encode([(1, 2), (3, hosts)])),
        "mountpoints-14.img": _image(0x55563928, _mount(2, "/sys", "/proc/sys"), _mount(3, "/", "/proc"), _mount(4, "/", "/other")),
        "pstree.img": _image(0x50273030, protobuf.encode([(1, 1), (2, 0), (3, 1), (4, 1), (5, 1)])),
        "seccomp.img": _image(0x64413049, protobuf.encode([(1, protobuf.encode([(1, PROGRAM), (3, 0)]))])),
    }  # fmt: skip


def _look(images: int) -> None:
    check_rights(images, capabilities=DEFAULT, has_filter=True)
    compare_place.check_place(images, inventory="inventory.img", may_mount=False)
    compare_place.hold_filters(images, program=PROGRAM)


def test_t13_images_that_are_right_pass(tmp_path: Path) -> None:
    for name, data in _images().items():
        (tmp_path / name).write_bytes(data)
    with _folder(tmp_path) as folder:
        _look(folder)


@pytest.mark.parametrize("name", _images())
def test_t13_images_of_criu(tmp_path: Path, name: str) -> None:
    whole, chance, refused = _images(), random.Random(name), 0
    for each, data in whole.items():
        (tmp_path / each).write_bytes(data)
    with _folder(tmp_path) as folder:
        for _ in range(ROUNDS):
            (tmp_path / name).write_bytes(altered(whole[name], chance))
            (tmp_path / "seccomp.img").touch()
            try:
                _look(folder)
            except InsulaError as error:
                assert error.code == "checkpoint_altered"
                refused += 1
            (tmp_path / "seccomp.img").write_bytes(whole["seccomp.img"])
    assert refused > ROUNDS // 4


def test_t13_map_of_pages() -> None:
    whole = criu_images.encode_pagemap(
        [criu_images.Entry(0x7F0000000000 + (number << 14), 3, 4) for number in range(50)], pages_id=1
    )
    chance = random.Random(1)
    for _ in range(ROUNDS * 5):
        data = altered(whole, chance)
        for parse in (criu_images.decode_pagemap, criu_images.pages_id_of):
            with contextlib.suppress(ValueError):
                parse(data)


def _sealed(place: Path) -> tuple[seal.Secret, str]:
    secret = seal.Secret(b"x" * 32)
    with _folder(place) as folder:
        sealer = seal.Sealer(
            folder, secret=secret, container="c", checkpoint="one", protection=seal.Protection.ENCRYPTED
        )
        for name in ("core-1.img", "pages-1.img"):
            sealer.add(name, [random.Random(name).randbytes(3000)])
        return secret, sealer.finish()


@pytest.mark.parametrize("name", [seal.MANIFEST, seal.MAC, "core-1.img.sealed"])
def test_t13_seal(tmp_path: Path, name: str) -> None:
    """Also one that was sealed with the right key: who has it is still not believed in what the bytes mean."""
    secret, code = _sealed(tmp_path)
    whole, chance = (tmp_path / name).read_bytes(), random.Random(name)
    for number in range(ROUNDS):
        data = altered(whole, chance)
        if data == whole:
            continue
        (tmp_path / name).write_bytes(data)
        with _folder(tmp_path) as folder, pytest.raises(InsulaError) as caught:
            found = seal.open_seal(folder, secret=secret, container="c", checkpoint="one", code=code)
            found.verify_files()
            for each in found.manifest.files:
                assert b"".join(found.read(each.name))
        assert caught.value.code in ("checkpoint_altered", "restore_failed"), number


def test_t13_state_beside_the_images(tmp_path: Path) -> None:
    whole, chance = b'{"version":2,"stdio":["pipe:[4711]","/dev/pts/0","/dev/null"]}', random.Random(2)
    with _folder(tmp_path) as folder:
        for _ in range(ROUNDS * 3):
            (tmp_path / dump.STATE_FILE).write_bytes(altered(whole, chance))
            try:
                dump.read_state(folder)
            except InsulaError as error:
                assert error.code == "restore_failed"


def _tar() -> bytes:
    long = "deep/" * 30 + "name"
    return archives.tar_of(
        archives.file("a", b"x" * 700), archives.link("b", "a"), archives.hard("c", "a"), archives.file(long), archives.file(".wh.gone", b""),
        archives.attributed("d", "user.x"), archives.entry("e/"),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_t13_archives(tmp_path: Path, seed: int) -> None:
    """Not at random alone: half of the altered headers have a right checksum, so that what is behind it is reached."""
    layers, chance, whole = Layers(tmp_path), random.Random(seed), _tar()
    for number in range(ROUNDS // 4):
        data = bytearray(altered(whole, chance))
        if number % 2 and len(data) >= 512:
            block = 512 * chance.randrange(len(data) // 512)
            head = data[block : block + 512]
            head[148:156] = b" " * 8
            data[block + 148 : block + 156] = b"%06o\0 " % sum(head)
        archive = tmp_path / "archive"
        archive.write_bytes(data)
        with archive.open("rb") as stream, contextlib.suppress(InsulaError):
            layers.unpack(stream)
        assert list((tmp_path / "tmp").iterdir()) == [], hashlib.sha256(data).hexdigest()


def test_t13_numbers_of_a_message() -> None:
    chance = random.Random(3)
    for _ in range(ROUNDS * 10):
        with contextlib.suppress(ValueError):
            list(protobuf.decode(chance.randbytes(chance.randrange(1, 40))))
