# SPDX-License-Identifier: Apache-2.0
"""A log moves with its container: all of it, in order, before what is written there; nothing but a log comes in."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.boot.stdio import RECORD, Log
from insula.model import stream
from insula.model.errors import ProtocolError
from insula.runtime import logs
from insula.runtime.logs import LogReader, export_logs, import_logs

RECORD_OF = SimpleNamespace(id="a", name="web")


def host(folder: Path) -> Any:
    folder.mkdir()
    return SimpleNamespace(folders=SimpleNamespace(log=lambda _id: folder / "log"))


def lines(runtime: Any) -> list[str]:
    reader = LogReader(runtime.folders.log("a"))
    found = []
    while (some := reader.read()) is not None:
        found += [line.text for line in some]
    reader.close()
    return found


def write(runtime: Any, *texts: str, kind: int = stream.STDOUT) -> None:
    log = Log(str(runtime.folders.log("a")))
    for text in texts:
        log.write(kind, text.encode() + b"\n")
    log.close()


def test_both_halves_move_before_what_is_written_there(tmp_path: Path) -> None:
    here, there = host(tmp_path / "here"), host(tmp_path / "there")
    write(here, "first")
    (tmp_path / "here/log").rename(tmp_path / "here/log.1")
    write(here, "second")
    write(here, "third", kind=stream.STDERR)
    open_before = Log(str(there.folders.log("a")))  # the spawner makes the room before the log comes
    assert import_logs(there, RECORD_OF, export_logs(here, RECORD_OF)) > 0
    open_before.write(stream.STDOUT, b"there\n")
    open_before.close()
    assert lines(there) == ["first", "second", "third", "there"]
    assert sorted(each.name for each in (tmp_path / "there").iterdir()) == ["log", "log.1"]


def test_a_container_that_wrote_nothing_has_no_log_to_move(tmp_path: Path) -> None:
    here, there = host(tmp_path / "here"), host(tmp_path / "there")
    assert import_logs(there, RECORD_OF, export_logs(here, RECORD_OF)) == 0
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"x" * RECORD.size,
        RECORD.pack(0.0, stream.STDOUT, 5) + b"four",
        RECORD.pack(0.0, 77, 0),
        RECORD.pack(0.0, stream.STDOUT, 1 << 30),
    ],
)
def test_what_is_no_log_is_refused_and_leaves_nothing(tmp_path: Path, data: bytes) -> None:
    there = host(tmp_path / "there")
    write(there, "own")
    with pytest.raises(ProtocolError, match="web"):
        import_logs(there, RECORD_OF, [data])
    assert lines(there) == ["own"]
    assert [each.name for each in (tmp_path / "there").iterdir()] == ["log"]


def test_a_log_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_MOVED_BYTES", 1000)
    piece = RECORD.pack(0.0, stream.STDOUT, 10) + b"0123456789"
    with pytest.raises(ProtocolError, match="greater"):
        import_logs(host(tmp_path / "there"), RECORD_OF, iter(lambda: piece, None))
    here = host(tmp_path / "here")
    write(here, *("x" * 100 for _ in range(100)))
    assert sum(len(each) for each in export_logs(here, RECORD_OF)) <= 1000


def test_the_newest_is_kept_of_a_log_that_has_become_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "KEPT_BYTES", 200)
    here, there = host(tmp_path / "here"), host(tmp_path / "there")
    write(here, *(f"line {number}" for number in range(100)))
    import_logs(there, RECORD_OF, export_logs(here, RECORD_OF))
    kept = lines(there)
    assert kept == [f"line {number}" for number in range(100 - len(kept), 100)]
    assert 2 < len(kept) < 20


@given(st.lists(st.binary(max_size=50), max_size=20), st.integers(1, 40))
def test_however_it_is_cut_on_the_way(texts: list[bytes], size: int) -> None:
    data = b"".join(RECORD.pack(1.0, stream.STDERR, len(text)) + text for text in texts)
    cut = (data[at : at + size] for at in range(0, len(data), size))
    assert b"".join(logs._checked(cut, name="web")) == data
