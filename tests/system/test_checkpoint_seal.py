# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on disk: nothing readable when encrypted, nothing altered is restored, the container is what it was."""

import base64
import os
from pathlib import Path
from typing import Any

import pytest

from insula.model.errors import InsulaError
from two_hosts import Conversation, Pair

WORD = "a-word-that-only-this-memory-holds"


@pytest.fixture
def pair(module_pair: Pair) -> Pair:
    return module_pair


def _folder(pair: Pair, name: str) -> Path:
    (found,) = Path(pair.host("alpha").folder, "state").glob(f"containers/*/checkpoints/{name}")
    return found


def _say(pair: Pair, address: str) -> None:
    talk = Conversation(pair.world, address)
    assert talk.run(f"kept = ''.join({list(WORD)!r}); answer = True")
    talk.close()


def _still_there(pair: Pair, address: str) -> bool:
    talk = Conversation(pair.world, address)
    try:
        return bool(talk.run(f"answer = kept == {WORD!r}"))
    finally:
        talk.close()


@pytest.mark.parametrize(
    "wish",
    [{}, {"encrypt": True}, {"encrypt": True, "key": base64.b64encode(os.urandom(32)).decode()}],
    ids=["plain", "host's key", "key file"],
)
@pytest.mark.parametrize("leave_running", [False, True], ids=["ends", "runs on"])
def test_sealed_and_used(pair: Pair, wish: dict[str, Any], leave_running: bool) -> None:
    address = pair.run("c")
    try:
        _say(pair, address)
        pair.act("alpha", "c", "checkpoints", name="one", leave_running=leave_running, **wish)
        folder = _folder(pair, "one")
        stored = b"".join(path.read_bytes() for path in folder.iterdir())
        assert (WORD.encode() in stored) == ("encrypt" not in wish)
        if leave_running:
            pair.client("alpha").call("POST", "/v1/containers/c/stop", body={"timeout_s": 0})
        key = {"key": wish["key"]} if "key" in wish else {}
        for path in sorted(folder.iterdir()):
            if path.suffix == ".log" or path.name.startswith("stats-") or not path.stat().st_size:
                continue
            _refused_if_altered(pair, path, key=key)
        if key:
            with pytest.raises(InsulaError) as caught:
                pair.act("alpha", "c", "restore", checkpoint="one")
            assert caught.value.code == "bad_request"
        pair.act("alpha", "c", "restore", checkpoint="one", **key)
        assert _still_there(pair, address)
        pair.client("alpha").call("POST", "/v1/containers/c/stop", body={"timeout_s": 0})
        pair.act("alpha", "c", "restore", checkpoint="one", **key)  # a restore alters nothing of it
        assert _still_there(pair, address)
    finally:
        pair.remove("c")


def _refused_if_altered(pair: Pair, path: Path, *, key: dict[str, str]) -> None:
    data = path.read_bytes()
    place = len(data) // 2
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes([data[place] ^ 4]))
    with pytest.raises(InsulaError) as caught:
        pair.act("alpha", "c", "restore", checkpoint="one", **key)
    assert caught.value.code in ("checkpoint_altered", "restore_failed"), path.name
    with path.open("r+b") as file:
        file.seek(place)
        file.write(data[place : place + 1])
