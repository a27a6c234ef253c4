# SPDX-License-Identifier: Apache-2.0
"""A seal: whole checkpoints come back byte by byte; whatever was altered, cut, moved or exchanged is refused."""

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.model.errors import BadRequest, CheckpointAltered, RestoreFailed
from insula.runtime import seal
from insula.runtime.seal import PIECE, TAG, Protection, Sealer, Secret, open_seal

SECRET = Secret(b"k" * 32)
BOTH = pytest.mark.parametrize("protection", list(Protection))


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def contents() -> dict[str, bytes]:
    generator = random.Random(7)
    return {
        "pages-1.img": generator.randbytes(3 * PIECE + 17),
        "core-1.img": generator.randbytes(1500),
        "empty.img": b"",
        "exact.img": generator.randbytes(2 * PIECE),
    }


def make(folder: Path, *, protection: Protection, name: str = "one", secret: Secret = SECRET) -> str:
    folder.mkdir()
    images = folder if protection is Protection.AUTHENTICATED else folder.with_name(folder.name + ".images")
    images.mkdir(exist_ok=True)
    for each, data in contents().items():
        (images / each).write_bytes(data)
    (images / "criu-dump.log").write_text("words")
    with opened(folder) as target, opened(images) as source:
        sealer = Sealer(target, secret=secret, container="c" * 64, checkpoint=name, protection=protection)
        sealer.add("upper.tar", iter([b"tar" * 1000, b"", b"end"]))
        sealer.add_folder(source)
        return sealer.finish()


def load(
    folder: Path, code: str, *, name: str = "one", secret: Secret = SECRET, container: str = "c" * 64
) -> dict[str, bytes]:
    """Use a checkpoint as a restore does."""
    with opened(folder) as descriptor:
        found = open_seal(descriptor, secret=secret, container=container, checkpoint=name, code=code)
        found.verify_files()
        return {each.name: b"".join(found.read(each.name)) for each in found.manifest.files}


@BOTH
def test_everything_comes_back(tmp_path: Path, protection: Protection) -> None:
    code = make(tmp_path / "a", protection=protection)
    assert load(tmp_path / "a", code) == contents() | {"upper.tar": b"tar" * 1000 + b"end"}


def test_an_encrypted_checkpoint_shows_nothing(tmp_path: Path) -> None:
    code = make(tmp_path / "a", protection=Protection.ENCRYPTED)
    stored = b"".join(path.read_bytes() for path in (tmp_path / "a").iterdir())
    for data in contents().values():
        assert not data or data[:64] not in stored
    assert b"tartartar" not in stored and b"words" not in stored
    with opened(tmp_path / "a") as folder:
        found = open_seal(folder, secret=SECRET, container="c" * 64, checkpoint="one", code=code)
        assert found.is_encrypted and found.has("upper.tar")
        (tmp_path / "out").mkdir()
        with opened(tmp_path / "out") as into:
            found.unpack(into, without=frozenset(("upper.tar",)))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == contents()


@BOTH
def test_one_altered_bit_anywhere_is_refused(tmp_path: Path, protection: Protection) -> None:
    code = make(tmp_path / "a", protection=protection)
    generator = random.Random(11)
    for path in sorted((tmp_path / "a").iterdir()):
        if path.name.endswith(".log"):
            continue
        data = path.read_bytes()
        places = set(range(len(data))) if len(data) < 700 else {0, len(data) - 1, len(data) - TAG, 14, PIECE}
        places |= {generator.randrange(len(data)) for _ in range(8) if data}
        for place in sorted(each for each in places if each < len(data)):
            altered = bytearray(data)
            altered[place] ^= 1 << generator.randrange(8)
            path.write_bytes(altered)
            with pytest.raises((CheckpointAltered, RestoreFailed)):
                load(tmp_path / "a", code)
        path.write_bytes(data)
    load(tmp_path / "a", code)


@BOTH
def test_what_is_cut_or_longer_is_refused(tmp_path: Path, protection: Protection) -> None:
    code = make(tmp_path / "a", protection=protection)
    suffix = seal.SUFFIX if protection is Protection.ENCRYPTED else ""
    path = tmp_path / "a" / ("pages-1.img" + suffix)
    data = path.read_bytes()
    head = len(seal.MAGIC) if suffix else 0
    step = PIECE + (TAG if suffix else 0)
    for altered in (b"", data[:-1], data[: head + step], data[: head + 3 * step], data + b"\0", data + data):
        path.write_bytes(altered)
        with pytest.raises(CheckpointAltered):
            load(tmp_path / "a", code)
    path.write_bytes(data)
    load(tmp_path / "a", code)


def test_pieces_fit_nowhere_else(tmp_path: Path) -> None:
    code = make(tmp_path / "a", protection=Protection.ENCRYPTED)
    make(tmp_path / "b", protection=Protection.ENCRYPTED)
    path, head, step = tmp_path / "a/pages-1.img.sealed", len(seal.MAGIC), PIECE + TAG
    data = path.read_bytes()
    pieces = [data[head + number * step : head + (number + 1) * step] for number in range(4)]
    other = (tmp_path / "b/pages-1.img.sealed").read_bytes()[head : head + step]
    exact = (tmp_path / "a/exact.img.sealed").read_bytes()[head : head + step]
    swapped = [pieces[1], pieces[0], *pieces[2:]]
    for altered in (swapped, [pieces[0], *pieces[:3]], [other, *pieces[1:]], [exact, *pieces[1:]]):
        path.write_bytes(seal.MAGIC + b"".join(altered))
        with pytest.raises(CheckpointAltered):
            load(tmp_path / "a", code)


@BOTH
def test_another_checkpoint_in_its_place_is_refused(tmp_path: Path, protection: Protection) -> None:
    code = make(tmp_path / "a", protection=protection)
    make(tmp_path / "b", protection=protection)  # same container, same name, same key: an older one, put back
    make(tmp_path / "c", protection=protection, name="two")
    for other in ("b", "c"):
        with pytest.raises(CheckpointAltered):
            load(tmp_path / other, code)
    with pytest.raises(CheckpointAltered):
        load(tmp_path / "a", code, container="d" * 64)
    with pytest.raises(CheckpointAltered):
        load(tmp_path / "a", code, secret=Secret(b"l" * 32))
    with pytest.raises(CheckpointAltered):
        load(tmp_path / "a", "")


@BOTH
def test_files_too_many_or_too_few_are_refused(tmp_path: Path, protection: Protection) -> None:
    code = make(tmp_path / "a", protection=protection)
    (tmp_path / "a/tty-info.img").write_bytes(b"CRIU would read it")
    with pytest.raises(CheckpointAltered):
        load(tmp_path / "a", code)
    (tmp_path / "a/tty-info.img").unlink()
    (tmp_path / "a/parent").symlink_to("/etc")
    with pytest.raises(CheckpointAltered):
        load(tmp_path / "a", code)
    (tmp_path / "a/parent").unlink()
    for path in [each for each in (tmp_path / "a").iterdir() if not each.name.endswith(".log")]:
        path.rename(tmp_path / "kept")
        with pytest.raises(CheckpointAltered):
            load(tmp_path / "a", code)
        (tmp_path / "kept").rename(path)
    load(tmp_path / "a", code)


def test_a_link_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    code = make(tmp_path / "a", protection=Protection.AUTHENTICATED)
    path = tmp_path / "a/core-1.img"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointAltered):
        load(tmp_path / "a", code)


def test_another_version_is_refused_by_name(tmp_path: Path) -> None:
    code = make(tmp_path / "a", protection=Protection.AUTHENTICATED)
    path = tmp_path / "a" / seal.MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"format":1', b'"format":2'))
    with pytest.raises(RestoreFailed, match="format 2, this insula reads 1"):
        load(tmp_path / "a", code)


@settings(max_examples=60)
@given(text=st.binary(max_size=300))
def test_a_manifest_of_any_bytes_is_refused(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / seal.MANIFEST).write_bytes(text)
    (folder / seal.MAC).write_bytes(b"0" * 64)
    with pytest.raises(RestoreFailed):
        load(folder, "0" * 64)
    shutil.rmtree(folder)


def test_keys(tmp_path: Path) -> None:
    first = seal.secret_of_host(tmp_path)
    assert first == seal.secret_of_host(tmp_path)
    assert os.listdir(tmp_path) == ["seal.key"]
    assert (tmp_path / "seal.key").stat().st_mode & 0o777 == 0o600
    for length in (0, 31, 4097):
        with pytest.raises(BadRequest):
            seal.secret_of_file(b"x" * length)
    data = (tmp_path / "seal.key").read_bytes()
    assert seal.secret_of_file(data) != first
    assert "k" * 8 not in repr(SECRET)


def test_a_stream_gives_what_its_pieces_hold() -> None:
    stream = seal.Stream(iter([b"ab", b"", b"cde"]))
    assert (stream.read(1), stream.read(), stream.read()) == (b"a", b"bcde", b"")
