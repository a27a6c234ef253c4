# SPDX-License-Identifier: Apache-2.0
"""Wrong profiles are refused with the line and the reason."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.errors import InvalidSpec
from insula.model.folders import common_folder, is_within, merged_folders
from insula.model.peer import parse_peer
from insula.model.profile import Profile, applied
from insula.model.profile_text import MAX_BYTES, MAX_ENTRIES, MAX_FOLDERS, Words, check_applied, read_profile
from insula.model.spec import AppliedProfile, Enforce

WORDS = Words(calls=frozenset({"read", "write"}), capabilities=frozenset({"CHOWN"}))
GOOD = {
    "version": 2,
    "name": "web",
    "calls": {"read": 1},
    "capabilities": {"CHOWN": 2},
    "programs": {"/bin/true": 1},
    "written": {"/tmp": 1},
    "outgoing": {"192.0.2.1:443/tcp": 1},
    "listening": {"0.0.0.0:80/tcp": 1},
}


def text(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}, indent=1).encode()


def read(data: bytes) -> Profile:
    return read_profile(data, words=WORDS)


def test_a_good_one_is_read() -> None:
    assert read(text()).calls == {"read": 1}
    assert read(text(capabilities=None)).capabilities is None


@pytest.mark.parametrize(
    ("data", "line", "reason"),
    [
        (b'{\n "name": "web",\n "calls": {\n', 4, "it is no JSON"),
        (b"[1]", 1, "it is no JSON object"),
        (b"[" * 100_000, 0, "it is no JSON"),
        (b"\xff\xfe", 1, "it is no JSON"),
        (text(version=3), 2, "does not know version 3"),
        (text(version="2"), 2, 'does not know version "2"'),
        (text(more=1), 22, "there is no field `more`"),
        (text(calls={"read": 1, "frobnicate": 2}), 6, "there is no system call `frobnicate`"),
        (text(capabilities={"FLY": 1}), 8, "there is no capability `FLY`"),
        (text(calls={"read": -1}), 5, "`read` was not seen -1 times"),
        (text(calls={"read": "often"}), 4, "Expected `int`, got `str`"),
        (text(calls=[]), 4, "Expected `object`, got `array`"),
        (text(written={"tmp": 1}), 14, "`tmp` is no path"),
        (text(written={"/a/../b": 1}), 14, "is no path"),
        (text(programs={"sh": 1}), 11, "is no path"),
        (text(outgoing={"example.org:443/tcp": 1}), 17, "`example.org` of"),
        (text(outgoing={"192.0.2.1:99999/tcp": 1}), 17, "port 99999"),
        (text(outgoing={"192.0.2.1:1/sctp": 1}), 17, "is no protocol"),
        (text(name="../x"), 3, "Expected `str` matching regex"),
        (b'{"name": "web"}', 0, "missing required field `calls`"),
        (text(written={f"/{number}": 1 for number in range(MAX_FOLDERS + 1)}), 13, "101 folders"),
        (text(written={f"/x/{number}": 1 for number in range(MAX_ENTRIES + 1)}), 13, "10001 entries"),
        (b" " * MAX_BYTES + b"{}", 0, "1048578 bytes"),
    ],
)  # fmt: skip
def test_a_wrong_one_is_refused(data: bytes, line: int, reason: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        read(data)
    assert reason in caught.value.message
    where = f", line {line}: " if line else "cannot use the profile: "
    assert where in caught.value.message, caught.value.message


@given(st.binary(max_size=200))
def test_anything_is_read_or_refused(data: bytes) -> None:
    for each in (data, b'{"name": ' + data + b"}"):
        try:
            read(each)
        except InvalidSpec as error:
            assert error.message


def test_an_old_one_holds_to_calls_and_capabilities() -> None:
    held = applied(read(text(version=1)), enforce=Enforce.DENY)
    assert (held.calls, held.capabilities, held.written, held.outgoing) == (("read",), ("CHOWN",), None, None)


@pytest.mark.parametrize(
    "wrong", [{"written": ("etc",)}, {"programs": ("sh",)}, {"outgoing": ("a:1/tcp",)}, {"serving": ("x",)}]
)
def test_what_is_wished_directly_is_looked_at_too(wrong: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(InvalidSpec, match="cannot hold a container to profile `web`"):
        check_applied(AppliedProfile(name="web", calls=(), capabilities=None, **wrong))  # type: ignore[arg-type]
    check_applied(applied(read(text()), enforce=Enforce.DENY))


def test_what_stays_in_the_container_is_not_limited() -> None:
    peers = {"127.0.0.1:1/tcp": 1, "[::1]:1/tcp": 1, "0.0.0.0:1/udp": 1, "gateway:53/udp": 1, "*:1/tcp": 1}
    assert applied(read(text(outgoing=peers)), enforce=Enforce.DENY).outgoing == ("*:1/tcp", "gateway:53/udp")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("192.0.2.1:443/tcp", "192.0.2.1:443/tcp"),
        ("[2001:DB8::1]:53/udp", "[2001:db8::1]:53/udp"),
        ("[::ffff:192.0.2.1]:443", "192.0.2.1:443"),
        ("gateway:53/udp", "gateway:53/udp"),
        ("*:443/tcp", "*:443/tcp"),
    ],
)
def test_peers(word: str, said: str) -> None:
    assert str(parse_peer(word)) == said


@pytest.mark.parametrize("word", ["", "x", "1.2.3.4", "1.2.3.4:x", "[1.2.3.4:5", "1.2.3:4/tcp", "a:1/tcp"])
def test_what_is_no_peer(word: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_peer(word)


def test_folders() -> None:
    assert merged_folders(["/var/lib", "/var/lib/a", "/var/libx", "/dev", "/dev/shm", "/proc/self", "/tmp"]) == (
        "/tmp", "/var/lib", "/var/libx",
    )  # fmt: skip
    assert merged_folders(["/tmp", "/"]) == ("/",)
    assert (
        is_within("/a/b", "/a")
        and is_within("/a", "/a")
        and is_within("/a", "/")
        and not is_within("/ab", "/a")
    )
    assert common_folder("/var/lib/a", "/var/lib/b/c") == "/var/lib"
