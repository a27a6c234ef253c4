# SPDX-License-Identifier: Apache-2.0
"""F1, F2, F4, F10: checkpoints that somebody has touched, or that say more than they may, or that tell what they hold."""

import os
import secrets
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from insula.api.routes import ROUTES
from insula.kernel import protobuf
from insula.kernel.caps import DEFAULT
from insula.model.errors import CheckpointAltered, InsulaError
from insula.runtime.compare import check_rights
from searched import files_holding
from two_hosts import Conversation, Pair, start_pair, wait_until

CANARY = secrets.token_hex(16)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    yield from start_pair()


@pytest.fixture(scope="module")
def kept(pair: Pair) -> Iterator[Path]:
    """A stopped container with two checkpoints, `old` and `new`, and another container with one; its folder of checkpoints."""
    address = pair.run("c")
    talk = Conversation(pair.world, address)
    talk.run(f"kept = ''.join({list(CANARY)!r})")
    talk.close()
    pair.act("alpha", "c", "checkpoints", name="old", leave_running=True)
    pair.act("alpha", "c", "checkpoints", name="new")
    pair.run("d")
    pair.act("alpha", "d", "checkpoints", name="new")
    (folder,) = Path(pair.host("alpha").folder, "state").glob(
        f"containers/{pair.find('alpha', 'c')['id']}/checkpoints"
    )  # type: ignore[index]
    yield folder
    pair.remove("c")
    pair.remove("d")


@pytest.fixture
def altered(kept: Path, tmp_path: Path) -> Iterator[Path]:
    """The folder of checkpoint `new`, to be altered; it is put back afterwards."""
    shutil.copytree(kept / "new", tmp_path / "whole", symlinks=True)
    yield kept / "new"
    shutil.rmtree(kept / "new")
    shutil.copytree(tmp_path / "whole", kept / "new", symlinks=True)


def first(folder: Path, pattern: str) -> Path:
    return sorted(folder.glob(pattern))[0]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _other(folder: Path) -> Path:
    (found,) = [each for each in folder.parents[2].glob("*/checkpoints/new") if each != folder]
    return found


ALTERATIONS: dict[str, Callable[[Path], object]] = {
    **{f"bit-of-{name}": (lambda folder, name=name: _flip(first(folder, f"{name}*"))) for name in ("core", "inventory", "pstree", "mm", "files", "mountpoints", "pages", "creds") if name != "creds"},
    "bit-of-the-manifest": lambda folder: _flip(folder / "seal.json"),
    "cut": lambda folder: os.truncate(first(folder, "pages*"), 4096),
    "cut-to-nothing": lambda folder: os.truncate(first(folder, "core*"), 0),
    "longer": lambda folder: first(folder, "core*").write_bytes(first(folder, "core*").read_bytes() + b"\0"),
    "without-one": lambda folder: first(folder, "core*").unlink(),
    "without-the-manifest": lambda folder: (folder / "seal.json").unlink(),
    "with-one-more": lambda folder: (folder / "core-77.img").write_bytes(b"x"),
    "link-for-a-file": lambda folder: (first(folder, "core*").rename(folder.parent / "elsewhere"), first(folder.parent, "elsewhere").rename(folder / "x"), (folder / "core-1.img").symlink_to("x")),
    "fifo-for-a-file": lambda folder: (first(folder, "core*").unlink(), os.mkfifo(folder / "core-1.img")),
    "folder-for-a-file": lambda folder: (first(folder, "core*").unlink(), (folder / "core-1.img").mkdir()),
    "old-in-its-place": lambda folder: (shutil.rmtree(folder), shutil.copytree(folder.parent / "old", folder)),
    "anothers-in-its-place": lambda folder: (shutil.rmtree(folder), shutil.copytree(_other(folder), folder)),
    "one-file-of-anothers": lambda folder: shutil.copy(first(_other(folder), "pages*"), first(folder, "pages*")),
    "one-file-of-the-old": lambda folder: shutil.copy(first(folder.parent / "old", "pages*"), first(folder, "pages*")),
}  # fmt: skip


@pytest.mark.parametrize("name", ALTERATIONS)
def test_f1_checkpoint_that_was_touched(pair: Pair, altered: Path, name: str) -> None:
    ALTERATIONS[name](altered)
    with pytest.raises(InsulaError) as caught:
        pair.act("alpha", "c", "restore", checkpoint="new")
    assert caught.value.code in ("checkpoint_altered", "checkpoint_not_found"), caught.value
    assert pair.status("alpha", "c") == "exited"


def test_f1_what_was_not_touched_is_restored(pair: Pair, kept: Path) -> None:
    pair.act("alpha", "c", "restore", checkpoint="new")
    try:
        assert pair.status("alpha", "c") == "running"
    finally:
        pair.client("alpha").call("POST", "/v1/containers/c/stop", body={"timeout_s": 0})


# core_entry → thread_core_entry → creds_entry; see `insula.runtime.compare`.
Fields = list[tuple[int, int | bytes]]


def _replaced(data: bytes, path: tuple[int, ...], change: Callable[[Fields], Fields]) -> bytes:
    fields: Fields = list(protobuf.decode(data))
    if not path:
        return protobuf.encode(change(fields))
    return protobuf.encode(
        [
            (n, _replaced(v, path[1:], change) if n == path[0] and isinstance(v, bytes) else v)
            for n, v in fields
        ]
    )


def _set(number: int, *values: int) -> Callable[[Fields], Fields]:
    return lambda fields: (
        [each for each in fields if each[0] != number] + [(number, value) for value in values]
    )


CREDENTIALS, THREAD = (5, 10), (5,)
CLAIMS: dict[str, tuple[tuple[int, ...], Callable[[Fields], Fields]]] = {
    "uid-of-the-host": (CREDENTIALS, _set(1, 0x20000000)),
    "uid-65536": (CREDENTIALS, _set(3, 65536)),
    "uid-minus-one": (CREDENTIALS, _set(5, 0xFFFFFFFF)),
    "group-of-the-host": (CREDENTIALS, _set(14, 70000)),
    "effective-everything": (CREDENTIALS, _set(11, 0xFFFFFFFF, 0x1FF)),
    "permitted-sys-admin": (CREDENTIALS, _set(10, 1 << 21, 0)),
    "inheritable-sys-ptrace": (CREDENTIALS, _set(9, 1 << 19, 0)),
    "bounding-everything": (CREDENTIALS, _set(12, 0xFFFFFFFF, 0x1FF)),
    "ambient-net-admin": (CREDENTIALS, _set(19, 1 << 12, 0)),
    "bits-that-no-kernel-knows": (CREDENTIALS, _set(11, 0, 0, 0, 1)),
    "may-gain-rights": (CREDENTIALS, _set(18, 0)),
    "gain-is-not-said": (CREDENTIALS, _set(18)),
    "no-filter": (THREAD, _set(11, 0)),
    "strict-filter": (THREAD, _set(11, 1)),
    "filter-is-not-said": (THREAD, _set(11)),
    "no-credentials": (THREAD, _set(10)),
    "credentials-twice": (THREAD, lambda fields: [*fields, *[each for each in fields if each[0] == 10]]),
    "no-thread": ((), _set(5)),
    "thread-twice": ((), lambda fields: [*fields, *[each for each in fields if each[0] == 5]]),
}


@pytest.fixture
def images(kept: Path, tmp_path: Path) -> Path:
    """Images of a real container, as CRIU wrote them."""
    for path in (kept / "new").glob("core-*.img"):
        shutil.copy(path, tmp_path)
    return tmp_path


def _check(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        check_rights(descriptor, capabilities=DEFAULT, has_filter=True)
    finally:
        os.close(descriptor)


def test_f2_what_a_container_may_be_passes(images: Path) -> None:
    _check(images)


@pytest.mark.parametrize("name", CLAIMS)
def test_f2_process_that_would_be_more_than_its_container(images: Path, name: str) -> None:
    for path in images.iterdir():
        data = path.read_bytes()
        entry = _replaced(data[12:], *CLAIMS[name])
        path.write_bytes(data[:8] + struct.pack("<I", len(entry)) + entry)
        with pytest.raises(CheckpointAltered):
            _check(images)
        path.write_bytes(data)


def test_f2_map_of_ids_is_the_stores(pair: Pair, kept: Path) -> None:
    pair.act("alpha", "c", "restore", checkpoint="new")
    try:
        found = pair.find("alpha", "c")
        assert found is not None
        assert Path(f"/proc/{found['pid']}/uid_map").read_text().split() == [
            "0",
            str(found["uid_base"]),
            "65536",
        ]
    finally:
        pair.client("alpha").call("POST", "/v1/containers/c/stop", body={"timeout_s": 0})


def test_f4_encrypted_checkpoint_is_nowhere_in_clear(pair: Pair) -> None:
    word, address = secrets.token_hex(16), pair.run("e")
    try:
        talk = Conversation(pair.world, address)
        talk.run(f"kept = ''.join({list(word)!r})")
        talk.close()
        pair.act("alpha", "e", "checkpoints", name="one", encrypt=True)
        pair.act("alpha", "e", "restore", checkpoint="one")
        for host in pair.world.hosts.values():
            for folder in (host.folder, Path("/tmp/criu"), Path("/dev/shm")):
                holding = files_holding(folder, word.encode())
                assert not holding, holding
    finally:
        pair.remove("e")


def test_f4_checkpoints_are_roots_alone(kept: Path) -> None:
    for path in (kept, *kept.parents[:3]):
        if path.stat().st_mode & 0o077 == 0:
            break
    else:
        raise AssertionError("every folder on the way is open")


def test_f10_nothing_is_made_to_run_twice(pair: Pair, kept: Path) -> None:
    """There is no clone; two restores at once make one container, whose secrets, name and address are its own."""
    assert not [route for route in ROUTES if "clone" in route.path]
    problems: list[str] = []

    def act() -> None:
        try:
            pair.act("alpha", "c", "restore", checkpoint="new")
        except InsulaError as error:
            problems.append(error.code)

    both = [threading.Thread(target=act) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert len(problems) == 1, problems
    assert pair.status("alpha", "c") == "running"
    pair.client("alpha").call("POST", "/v1/containers/c/stop", body={"timeout_s": 0})


#: Looks at each clock as often as it can, across whatever happens to it; `back` is how far one went back, in nanoseconds.
CLOCKS = """
import threading, time
clocks = [time.CLOCK_MONOTONIC, time.CLOCK_MONOTONIC_RAW, time.CLOCK_BOOTTIME, time.CLOCK_REALTIME]
back, looks = 0, 0
def watch():
    global back, looks
    last = [time.clock_gettime_ns(each) for each in clocks]
    while True:
        now = [time.clock_gettime_ns(each) for each in clocks]
        back = max(back, *(before - after for before, after in zip(last, now)))
        last, looks = now, looks + 1
        time.sleep(0.001)
threading.Thread(target=watch, daemon=True).start()
answer = True
"""


def test_a28_no_clock_goes_back_in_a_restore(pair: Pair) -> None:
    """The program that was restored sees time go on: also in /proc/uptime, and from there on in the usual measure."""
    address = pair.run("f")
    look = "answer = [looks, back, time.clock_gettime(time.CLOCK_BOOTTIME), float(open('/proc/uptime').read().split()[0]), time.clock_gettime(time.CLOCK_BOOTTIME), time.clock_gettime(time.CLOCK_REALTIME)]"
    try:
        talk = Conversation(pair.world, address)
        assert talk.run(CLOCKS) is True
        assert wait_until(lambda: talk.run(look)[0] > 20)
        before = talk.run(look)
        talk.close()
        pair.act("alpha", "f", "checkpoints", name="one")
        pair.act("alpha", "f", "restore", checkpoint="one")
        talk = Conversation(pair.world, address)
        assert wait_until(lambda: talk.run(look)[0] > before[0] + 20)
        after = talk.run(look)
        talk.close()
        assert after[1] <= 0, f"a clock went back by {after[1]} ns"
        assert all(now >= then for then, now in zip(before[2:], after[2:], strict=True)), (before, after)
        assert after[2] - 1 < after[3] < after[4] + 1, "what /proc says is another clock"
    finally:
        pair.remove("f")
