# SPDX-License-Identifier: Apache-2.0
"""Images on their way: each arrives as it was, whatever the pieces; what cannot be is refused."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.migrate.images import receive_images
from insula.model.errors import ProtocolError
from insula.model.migration import Files
from insula.runtime.dump import INVENTORY, INVENTORY_KEPT


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@given(contents=st.lists(st.binary(max_size=20), min_size=1, max_size=5), step=st.integers(1, 7))
def test_pieces_need_not_end_with_files(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], step: int
) -> None:
    made = tmp_path_factory.mktemp("images")
    message = Files(files=tuple((f"image-{number}", len(each)) for number, each in enumerate(contents)))
    whole = b"".join(contents)
    folder = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
    try:
        pieces = [whole[start : start + step] for start in range(0, len(whole), step)]
        receive_images(message, pieces, folder, is_inventory_kept=False)
    finally:
        os.close(folder)
    assert [(made / name).read_bytes() for name, _size in message.files] == contents


def test_what_comes_again_replaces_what_was(tmp_path: Path, folder: int) -> None:
    for data in (b"longer", b"short"):
        message = Files(files=((INVENTORY, len(data)),))
        receive_images(message, [data], folder, is_inventory_kept=True)
    assert (tmp_path / INVENTORY_KEPT).read_bytes() == b"short"


@pytest.mark.parametrize(
    ("files", "data"),
    [
        ((("a", 3),), b"12"),
        ((("a", 1),), b"12"),
        ((("../a", 1),), b"1"),
        (((".shared-1", 1),), b"1"),
        ((("", 1),), b"1"),
        ((("a\0", 1),), b"1"),
        ((("a" * 300, 1),), b"1"),
        ((("a", -1),), b""),
    ],
)
def test_what_cannot_be(folder: int, files: tuple[tuple[str, int], ...], data: bytes) -> None:
    with pytest.raises(ProtocolError):
        receive_images(Files(files=files), [data], folder, is_inventory_kept=False)


def test_a_link_is_not_followed(tmp_path: Path, folder: int) -> None:
    (tmp_path / INVENTORY).symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        receive_images(Files(files=((INVENTORY, 1),)), [b"1"], folder, is_inventory_kept=False)
