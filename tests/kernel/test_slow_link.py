# SPDX-License-Identifier: Apache-2.0
"""What travels is compressed on a slow link, and left as it is on a fast one; measured on real ones."""

import os

from netns import world
from slow_link import carry, link

TABLE = b"".join(b"%08d a row of some table, as programs keep them\n" % number for number in range(200_000))
PIECES = [TABLE[at : at + (1 << 20)] for at in range(0, len(TABLE), 1 << 20)]


def test_a_slow_link_carries_fewer_bytes_once_it_is_known_to_be_slow() -> None:
    with world() as made, link(made, rate="80mbit") as (sender, receiver):
        sender.compress()
        assert carry(sender, receiver, pieces=PIECES)
        before = sender.sent_bytes
        assert carry(sender, receiver, pieces=PIECES)
        assert sender.sent_bytes - before < len(TABLE) / 2
        assert sender.raw_bytes >= 2 * len(TABLE)


def test_what_cannot_be_compressed_travels_as_it_is() -> None:
    pieces = [os.urandom(1 << 20) for _ in range(8)]
    with world() as made, link(made, rate="200mbit") as (sender, receiver):
        sender.compress()
        assert carry(sender, receiver, pieces=pieces)
        assert sender.sent_bytes == sender.raw_bytes
