# SPDX-License-Identifier: Apache-2.0
"""Quantities as people write them: read exactly, or refused with the word and the reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model import units
from insula.model.errors import InvalidSpec


@pytest.mark.parametrize(
    ("word", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1k", 1024),
        ("512m", 512 << 20),
        ("1.5g", 3 << 29),
        ("10KiB", 10240),
        ("2 GB", 2 << 30),
    ],
)
def test_sizes(word: str, count: int) -> None:
    assert units.parse_size(word) == count


@pytest.mark.parametrize("word", ["", "m", "-1", "1x", "1e9", "nan", "9999999999t", "1 2"])
def test_sizes_that_are_none_are_refused(word: str) -> None:
    with pytest.raises(InvalidSpec):
        units.parse_size(word)


@pytest.mark.parametrize("word", ["0", "-1", "inf", "nan", "x", "5000", ""])
def test_cpus_out_of_range_are_refused(word: str) -> None:
    with pytest.raises(InvalidSpec):
        units.parse_cpus(word)


def test_durations_add_up() -> None:
    assert units.parse_duration("1m30s") == 90
    assert units.parse_duration("250ms") == 0.25
    assert units.parse_duration("7") == 7


@pytest.mark.parametrize(
    ("word", "fields"),
    [
        ("80", ("0.0.0.0", 0, 80, 1, "tcp")),
        ("8080:80", ("0.0.0.0", 8080, 80, 1, "tcp")),
        ("127.0.0.1:53:53/udp", ("127.0.0.1", 53, 53, 1, "udp")),
        ("7000-7002:8000-8002", ("0.0.0.0", 7000, 8000, 3, "tcp")),
        ("127.0.0.1::80", ("127.0.0.1", 0, 80, 1, "tcp")),
    ],
)
def test_ports(word: str, fields: tuple[object, ...]) -> None:
    found = units.parse_ports(word)
    names = ("host_address", "host_port", "container_port", "count", "protocol")
    assert tuple(found[name] for name in names) == fields


@pytest.mark.parametrize("word", ["", "0", "65536", "80/sctp", "1-2:3", "a:80", "80:", "9-8", "٣"])
def test_ports_that_are_none_are_refused(word: str) -> None:
    with pytest.raises(InvalidSpec):
        units.parse_ports(word)


def test_volumes() -> None:
    assert units.parse_volume("data:/var/lib/x:ro") == {
        "kind": "volume",
        "source": "data",
        "target": "/var/lib/x",
        "read_only": True,
    }
    assert units.parse_volume("/srv:/srv")["kind"] == "bind"
    assert units.parse_volume("/data")["source"] == ""


@given(st.text(max_size=40))
def test_parsers_raise_nothing_but_their_own_error(word: str) -> None:
    for parse in (
        units.parse_size,
        units.parse_cpus,
        units.parse_duration,
        units.parse_ports,
        units.parse_volume,
        units.parse_mount,
        units.parse_restart,
    ):
        try:
            parse(word)
        except InvalidSpec as error:
            assert error.message


@given(st.integers(min_value=0, max_value=1 << 62))
def test_a_formatted_size_is_short_and_reads_back_near_the_number(count: int) -> None:
    text = units.format_size(count)
    assert len(text) <= 12
    assert units.parse_size(text) == pytest.approx(count, rel=0.05, abs=1)


def test_a_tmpfs_mount_has_a_size() -> None:
    for word in ("size=64m", "tmpfs-size=64m"):
        mount = units.parse_mount(f"type=tmpfs,target=/t,{word}")
        assert mount == {"kind": "tmpfs", "target": "/t", "size_bytes": 64 << 20}
    with pytest.raises(InvalidSpec, match="only a tmpfs"):
        units.parse_mount("type=bind,source=/a,target=/b,size=1m")
