# SPDX-License-Identifier: Apache-2.0
"""An event in words: where its paths begin, and that nobody knows where the kernel had no room to say it."""

import os

import pytest

from insula.kernel import syscalls
from insula.model.monitor import Event
from insula.monitor.describe import call_names, describe
from insula.monitor.layout import Kind, Raw
from insula.monitor.usage import is_unknown

NUMBERS = syscalls.numbers(os.uname().machine)
FOLDER, OTHER_FOLDER = 5, 6


def told(call: str, text: bytes, *, other: bytes, folder: bytes, others: bytes = b"") -> Event:
    """Return what is told of a call whose first and third argument are descriptors of folders."""
    arguments = (FOLDER, 0, OTHER_FOLDER, 0, 0, 0)
    raw = Raw(
        0, 1, arguments, 0, 1, 1, 0, Kind.FILE, NUMBERS[call], b"mv", text, other, folder, others
    )  # fmt: skip
    return describe(
        raw, container="id", name="web", calls=call_names(NUMBERS), clock=0.0, inner_user=lambda user: user
    )


@pytest.mark.parametrize(
    ("call", "others", "path"),
    [
        ("renameat2", b"b\0\0", "/b/new"),
        ("linkat", b"b\0\0", "/b/new"),
        ("renameat2", b"", "…/new"),  # the first one's names took all the room
        ("linkat", b"", "…/new"),
    ],
)
def test_another_path_begins_in_its_own_folder_or_nobody_knows_where(
    call: str, others: bytes, path: str
) -> None:
    event = told(call, b"old\0", other=b"new\0", folder=b"a\0\0", others=others)
    assert (event.path, event.other_path) == ("/a/old", path)
    assert is_unknown(event) is (others == b"")


def test_another_path_from_the_root_needs_no_folder() -> None:
    event = told("renameat2", b"old\0", other=b"/new\0", folder=b"a\0\0")
    assert (event.path, event.other_path) == ("/a/old", "/new")


def test_what_a_link_says_stays_as_it_is() -> None:
    event = told("symlinkat", b"link\0", other=b"../there\0", folder=b"a\0\0")
    assert (event.path, event.other_path) == ("/a/link", "../there")
