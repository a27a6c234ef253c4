# SPDX-License-Identifier: Apache-2.0
"""F1, F2: checkpoints whose seal is right and whose images say more than they may, restored through the API."""

import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from insula.kernel import protobuf
from insula.model.errors import InsulaError
from security.forging import KEPT, Fields, Forge, edit, get, image, inner, put, tar_of
from two_hosts import Conversation, Pair, start_pair

UNSHARE = "libc.unshare(0x10000000); answer = ctypes.get_errno()"
EPERM = 1
ALLOW_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
OVERLAY_KIND, PROC_KIND = 17, 1


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    yield from start_pair()


@pytest.fixture(scope="module")
def outside() -> Iterator[Path]:
    """A folder of the host that everybody may write to, and no container sees."""
    folder = Path(tempfile.mkdtemp(prefix="insula-forged-", dir="/var/tmp"))
    folder.chmod(0o777)
    (folder / "secret").write_text("of the host")
    (folder / "secret").chmod(0o666)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def made(pair: Pair, outside: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    address = pair.run("c")
    talk = Conversation(pair.world, address)
    assert talk.run(KEPT) == ""
    assert talk.run(f"answer = os.path.exists({str(outside)!r})") is False
    assert talk.run(UNSHARE) == EPERM
    talk.close()
    pair.act("alpha", "c", "checkpoints", name="new")
    found = pair.find("alpha", "c")
    assert found is not None
    folder = pair.host("alpha").folder / f"state/containers/{found['id']}/checkpoints/new"
    whole = tmp_path_factory.mktemp("made") / "whole"
    shutil.copytree(folder, whole)
    yield Forge(pair, address, folder, whole)
    pair.remove("c")


@pytest.fixture
def forge(made: Forge) -> Iterator[Forge]:
    made.begin()
    yield made
    made.stop()


def _as_container(folder: Path, change: Callable[[Fields], Fields]) -> None:
    """Change what CRIU says were its own namespaces."""
    edit(folder / "inventory.img", lambda _, fields: inner(fields, 3, change), head=4)


def _own(folder: Path, field: int) -> int:
    found: list[int] = []

    def look(_: int, fields: Fields) -> Fields:
        value = get(fields, field)
        assert isinstance(value, int)
        found.append(value)
        return fields

    edit(folder / "ids-1.img", look)
    return found[0]


def _in_the_hosts(field: int) -> Callable[[Path], None]:
    return lambda folder: _as_container(folder, lambda ids: put(ids, field, _own(folder, field)))


def _thread(change: Callable[[Fields], Fields]) -> Callable[[Path], None]:
    """Change thread_core_entry of every process."""

    def alter(folder: Path) -> None:
        for path in folder.glob("core-*.img"):
            edit(path, lambda _, fields: inner(fields, 5, change))

    return alter


def _credentials(field: int, *values: int) -> Callable[[Path], None]:
    return _thread(lambda thread: inner(thread, 10, lambda creds: put(creds, field, *values)))


def _mount(at: str, **values: str | int) -> Callable[[Path], None]:
    """Change the mount at a place."""
    numbers = {"kind": 1, "device": 3, "root": 6, "place": 7, "external": 18}

    def change(_: int, fields: Fields) -> Fields:
        if get(fields, 7) == at.encode():
            for name, value in values.items():
                fields = put(fields, numbers[name], value.encode() if isinstance(value, str) else value)
        return fields

    return lambda folder: edit(image(folder, "mountpoints-*.img"), change)


def _device(folder: Path, place: str) -> int:
    found: list[int] = []
    edit(image(folder, "mountpoints-*.img"), lambda _, fields: (found.append(int(get(fields, 3) or 0)) if get(fields, 7) == place.encode() else None, fields)[1])  # fmt: skip
    return found[0]


def _filters(change: Callable[[int, Fields], Fields]) -> Callable[[Path], None]:
    """Change each seccomp_filter."""

    def entry(_: int, fields: Fields) -> Fields:
        return [
            (1, protobuf.encode(change(place, list(protobuf.decode(value)))))
            for place, (_number, value) in enumerate(fields)
            if isinstance(value, bytes)
        ]

    return lambda folder: edit(folder / "seccomp.img", entry)


REFUSED: dict[str, Callable[[Path], object]] = {
    "in-the-hosts-pid-namespace": _in_the_hosts(5),
    "in-the-hosts-network": _in_the_hosts(6),
    "in-the-hosts-ipc": _in_the_hosts(7),
    "in-the-hosts-uts": _in_the_hosts(8),
    "in-the-hosts-mounts": _in_the_hosts(9),
    "in-the-hosts-user-namespace": _in_the_hosts(10),
    "says-no-user-namespace-at-all": lambda folder: (_as_container(folder, lambda ids: put(ids, 10)), [edit(each, lambda _, fields: put(fields, 10)) for each in folder.glob("ids-*.img")]),
    "says-it-twice": lambda folder: _as_container(folder, lambda ids: [*ids, (10, _own(folder, 10))]),
    "uid-of-the-host": _credentials(1, 0x20000000),
    "every-capability": _credentials(11, 0xFFFFFFFF, 0x1FF),
    "every-capability-to-come": _credentials(12, 0xFFFFFFFF, 0x1FF),
    "may-gain-rights": _credentials(18, 0),
    "without-a-filter": _thread(lambda thread: put(thread, 11, 0)),
    "with-a-filter-that-is-not-there": _thread(lambda thread: put(thread, 12, 4711)),
    "without-filters": lambda folder: (folder / "seccomp.img").unlink(),
    "filters-in-a-circle": _filters(lambda place, fields: put(fields, 2, place)),
    "filter-of-one-thread-alone": _filters(lambda _, fields: put(fields, 3, 0)),
    "mount-of-a-part-above": _mount("/sys/firmware", root="/../../../../../.."),
    "mount-of-a-folder-of-the-host": _mount("/sys/firmware", root="/../../../../../../var/tmp"),
    "mount-of-a-part-in-the-middle": _mount("/proc/sys", root="/sys/../../../../.."),
    "mount-of-roots-own-part": lambda folder: _mount("/sys/firmware", root="/var", device=_device(folder, "/"), kind=OVERLAY_KIND)(folder),
    "mount-of-a-link-in-proc": _mount("/proc/sys", root="/self/root"),
    "mount-of-a-process-in-proc": _mount("/proc/sys", root="/1/root"),
    "mount-of-a-link-in-dev": _mount("/sys/firmware", root="/fd"),
    "mount-above": _mount("/sys/firmware", place="/../../../etc"),
    "dev-that-is-the-root": lambda folder: _mount("/", device=_device(folder, "/dev"))(folder),
    "dev-that-is-no-outer-one": _mount("/dev", external=""),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_f2_sealed_images_that_lead_out_are_refused(forge: Forge, outside: Path, name: str) -> None:
    REFUSED[name](forge.folder)
    forge.seal()
    with pytest.raises(InsulaError) as caught:
        forge.restore()
    # By us, before a CRIU was started; not by its stumbling.
    assert caught.value.code == "checkpoint_altered", caught.value
    assert "was altered" not in str(caught.value), "its seal was wrong: nothing was looked at"
    assert forge.pair.status("alpha", "c") == "exited"


def test_f2_sealed_images_that_say_nothing_more_are_restored(forge: Forge) -> None:
    forge.seal()
    forge.restore()
    assert forge.ask(UNSHARE) == EPERM
    status = str(forge.ask("answer = open('/proc/self/status').read()"))
    assert "Seccomp_filters:\t1\n" in status and "NoNewPrivs:\t1\n" in status


#: As the program counts its threads: one that has ended stays in /proc for a moment, or is gone from there before it is
#: looked at, as the one that served the conversation before.
STATUS_OF_THREADS = """
answer = []
for each in threading.enumerate():
    try:
        answer.append(open(f"/proc/self/task/{each.native_id}/status").read())
    except (FileNotFoundError, ProcessLookupError):
        assert each not in threading.enumerate()
"""


def _held(forge: Forge) -> None:
    """Every thread has this insula's filter, whatever else it has."""
    assert forge.ask(UNSHARE) == EPERM
    found = forge.ask(STATUS_OF_THREADS)
    assert isinstance(found, list) and found and all("Seccomp:\t2\n" in each for each in found), found
    away = "answer = []; t = threading.Thread(target=lambda: answer.append((libc.unshare(0x10000000), ctypes.get_errno()))); t.start(); t.join()"
    assert forge.ask(away) == [[-1, EPERM]]


FILTERS: dict[str, Callable[[Path], object]] = {
    "allows-all": _filters(lambda _, fields: put(fields, 1, ALLOW_ALL)),
    "of-another-version": _filters(lambda _, fields: put(fields, 1, bytes(get(fields, 1) or b"")[:-8] + ALLOW_ALL + ALLOW_ALL)),
    "all-share-one": _thread(lambda thread: put(thread, 12, 0) if get(thread, 11) else thread),
}  # fmt: skip


@pytest.mark.parametrize("name", FILTERS)
def test_f2_filter_of_the_images_is_held_together_with_ours(forge: Forge, name: str) -> None:
    FILTERS[name](forge.folder)
    forge.seal()
    for _ in range(2):  # a restore leaves it as it was sealed
        forge.restore()
        _held(forge)
        forge.stop()


def _named(path: str, to: str) -> Callable[[Path], None]:
    """Change the path of a regular file (3) or of a socket (16)."""

    def change(_: int, fields: Fields) -> Fields:
        made = inner(
            fields, 3, lambda file: put(file, 6, to.encode()) if get(file, 6) == path.encode() else file
        )
        name = path.encode() + b"\0"
        return inner(
            made, 16, lambda file: put(file, 13, to.encode() + b"\0") if get(file, 13) == name else file
        )

    return lambda folder: edit(folder / "files.img", change)


def _cgroups(folder: Path) -> None:
    def change(fields: Fields) -> Fields:
        return inner(fields, 2, lambda member: put(member, 2, b"/../../.."))

    edit(folder / "cgroup.img", lambda _, fields: inner(fields, 1, change))


def _tmpfs(*entries: tuple[str, str]) -> Callable[[Path], None]:
    return lambda folder: image(folder, "tmpfs-dev-*.img").write_bytes(tar_of(entries))


UP = "/.." * 12
WITHIN: dict[str, Callable[[Path], Callable[[Path], object]]] = {
    "file-above": lambda place: _named("/tmp/kept", f"{UP}{place}/secret"),
    "file-of-the-host": lambda place: _named("/tmp/kept", f"{place}/secret"),
    "deleted-file-above": lambda place: _named("/tmp/deleted", f"{UP}{place}/left"),
    "deleted-file-of-the-host": lambda place: _named("/tmp/deleted", f"{place}/left"),
    "socket-above": lambda place: _named("/tmp/named", f"{UP}{place}/left"),
    "program-above": lambda place: _named("/.insula/init", f"{UP}{place}/secret"),
    "tmpfs-above": lambda place: _tmpfs(("../" * 12 + str(place)[1:] + "/left", "")),
    "tmpfs-absolute": lambda place: _tmpfs((f"{place}/left", "")),
    "tmpfs-through-a-link": lambda place: _tmpfs(("out", str(place)), ("out/left", "")),
    "tmpfs-through-a-link-above": lambda place: _tmpfs(("out", "../" * 12 + str(place)[1:]), ("out/left", "")),
    "other-cgroups": lambda place: _cgroups,
}  # fmt: skip


@pytest.mark.parametrize("name", WITHIN)
def test_f2_paths_of_sealed_images_stay_within(forge: Forge, outside: Path, name: str) -> None:
    WITHIN[name](outside)(forge.folder)
    forge.seal()
    group = forge.pair.host("alpha").cgroup
    try:
        forge.restore()
    except InsulaError as error:
        assert error.code in ("restore_failed", "checkpoint_altered"), error
    else:
        assert "of the host" not in str(forge.ask("kept.seek(0); answer = kept.read()"))
        assert forge.ask(f"answer = os.path.exists('{outside}/secret')") is False
        found = forge.pair.find("alpha", "c")
        assert found is not None
        assert str(found["id"]) in Path(f"/proc/{found['pid']}/cgroup").read_text(), group
    assert [each.name for each in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "of the host"
    # What was tried leaves nothing behind that is in the way of the right one.
    forge.stop()
    forge.begin()
    forge.seal()
    forge.restore()


def test_f1_sealed_by_a_host_that_is_not_ours(forge: Forge, tmp_path: Path) -> None:
    """A seal by another host's key, of everything that is right, even if the store had its code: another cluster's."""
    forge.seal(pki=tmp_path)
    with pytest.raises(InsulaError) as caught:
        forge.restore()
    assert caught.value.code == "checkpoint_altered"
    assert forge.pair.status("alpha", "c") == "exited"
