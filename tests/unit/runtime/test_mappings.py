# SPDX-License-Identifier: Apache-2.0
"""What CRIU is told of mappings, out of what was read before the pause."""

import mmap
import os

import pytest

from insula.model.errors import MigrationFailed
from insula.runtime.mappings import describe, parse_smaps, reserved_bytes

SMAPS = b"""\
7f0000000000-7f0000004000 rw-p 00000000 00:00 0                          [heap]
Size:                 16 kB
Rss:                   8 kB
VmFlags: rd wr mr mw me ac sd
7f0000004000-7f0000008000 rw-p 00000000 00:00 0
Size:                 16 kB
VmFlags: rd wr mr mw me ac uw
7f0000010000-7f0000014000 r--p 00000000 08:01 4711                       /srv/a-file: with a name
ProtectionKey:         0
VmFlags: rd mr mw me
"""
MAPS = b"".join(line + b"\n" for line in SMAPS.splitlines() if line.startswith(b"7f"))


def test_lines_of_now_get_the_flags_of_before() -> None:
    now = parse_smaps(SMAPS).of_now(MAPS)
    assert now is not None
    text = now.smaps()
    assert text.splitlines()[:2] == [SMAPS.splitlines()[0], b"VmFlags: rd wr mr mw me ac sd"]
    assert parse_smaps(text) == parse_smaps(SMAPS)


def test_a_mapping_that_is_gone_is_not_told() -> None:
    now = parse_smaps(SMAPS).of_now(MAPS[: MAPS.index(b"7f0000010000")])
    assert now is not None
    assert b"a-file" not in now.smaps()
    now.check(parse_smaps(SMAPS[: SMAPS.index(b"7f0000010000")]))


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"7f0000004000 rw-p", b"7f0000005000 rw-p"), (b"r--p", b"r-xp"), (b"4711", b"4712")],
    ids=["it grew", "other rights", "another file"],
)
def test_another_mapping_is_not_described(old: bytes, new: bytes) -> None:
    assert parse_smaps(SMAPS).of_now(MAPS.replace(old, new, 1)) is None


def test_the_same_with_what_passes_by_itself() -> None:
    joined = SMAPS.replace(b" sd", b"").replace(b"7f0000000000-7f0000004000", b"7f0000000000-7f0000008000", 1)
    kept = joined[: joined.index(b"7f0000004000-")] + joined[joined.index(b"7f0000010000") :]
    parse_smaps(SMAPS).check(parse_smaps(kept))


def test_what_criu_does_not_read_may_change() -> None:
    """A program that maps anew at the same place all the time has other flags each time: accounted for, or not reserved."""
    parse_smaps(SMAPS).check(parse_smaps(SMAPS.replace(b"me ac", b"me nr lf")))


@pytest.mark.parametrize(
    "now",
    [
        SMAPS.replace(b"me ac sd", b"me dc ac sd"),
        SMAPS[: SMAPS.index(b"7f0000010000")],
        SMAPS.replace(b"7f0000014000", b"7f0000012000"),
        b"",
    ],
    ids=["advice", "unmapped", "smaller", "nothing"],
)
def test_a_change_is_noticed(now: bytes) -> None:
    with pytest.raises(MigrationFailed, match="cannot move it now"):
        parse_smaps(SMAPS).check(parse_smaps(now))


def test_advice_to_this_kernel_is_noticed() -> None:
    with mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        before = describe(os.getpid())
        area.madvise(mmap.MADV_DONTFORK)
        with pytest.raises(MigrationFailed):
            before.check(describe(os.getpid()))


RESERVED = b"""\
7e0000000000-7e0100000000 ---p 00000000 00:00 0
VmFlags: mr mw me nr dd sd
7e0200000000-7e0300000000 ---p 00000000 00:00 0
VmFlags: mr mw me ht
7e0400000000-7e0400001000 ---p 00000000 00:00 0
VmFlags: mr mw me nr
7e0500000000-7e0600000000 ---p 00000000 08:01 4711                       /srv/file
VmFlags: mr mw me nr
7e0700000000-7e0800000000 rw-p 00000000 00:00 0
VmFlags: rd wr mr mw me nr
"""


def test_large_reserves_are_known_and_can_be_left_out() -> None:
    described = parse_smaps(RESERVED)
    [reserve] = described.reserves()
    assert reserve == (0x7E0000000000, 0x7E0100000000, 1 << mmap.MADV_DONTDUMP)
    assert described.smaps(without=[reserve]) == RESERVED[RESERVED.index(b"7e02") :]
    assert described.smaps() == RESERVED


def test_how_much_is_reserved_is_told_by_the_lines_alone() -> None:
    lines = b"".join(line + b"\n" for line in RESERVED.splitlines() if line.startswith(b"7e"))
    assert reserved_bytes(lines) == 2 << 32
