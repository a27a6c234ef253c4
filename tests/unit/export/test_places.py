# SPDX-License-Identifier: Apache-2.0
"""Files of JSON lines, and syslog."""

import json
import os
import re
import resource
import socket
from pathlib import Path

import pytest

from insula.export.lines import EventFile
from insula.export.sink import Unavailable
from insula.export.syslog import Address, Facility, Line, Severity, Syslog
from insula.model.change import Change
from insula.model.errors import InvalidSpec
from insula.model.export import Told
from insula.model.monitor import Event, EventKind, Lost

EVENT = Event(at=2.5, container="c1", name="web", kind=EventKind.EXEC, pid=7, arguments=("sh",))
CHANGE = Change(at=3.0, container="c1", name="web", tenant="alice", event="exited", detail="exit code 0")


def told(what: Event | Change | Lost, *, at: float = 2.5) -> Told:
    return Told(host="alpha", tenant="alice", container="c1", name="web", at=at, what=what)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_what_trace_and_events_tell_and_whose_it_is(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "e", max_bytes=1 << 20, kept=1)
    assert file.carry([told(EVENT), told(CHANGE), told(Lost(events=3))]) == 0
    file.close()
    event, change, lost = lines(tmp_path / "e")
    whose = {"host": "alpha", "tenant": "alice", "container": "c1", "name": "web"}
    assert event == {"type": "event", "at": 2.5, **whose, "kind": "exec", "pid": 7, "arguments": ["sh"]}
    assert change == {"type": "change", "at": 3.0, **whose, "event": "exited", "detail": "exit code 0"}
    assert lost == {"type": "lost", "at": 2.5, **whose, "events": 3}
    assert (tmp_path / "e").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kept", [0, 2])
def test_files_are_bounded(tmp_path: Path, kept: int) -> None:
    file = EventFile(tmp_path / "e", max_bytes=400, kept=kept)
    for number in range(20):
        file.carry([told(Lost(events=number), at=float(number))])
    file.close()
    found = sorted(tmp_path.iterdir())
    assert [each.name for each in found] == ["e", "e.1", "e.2"][: kept + 1]
    assert all(each.stat().st_size <= 400 for each in found)
    if kept:
        newest, oldest = lines(found[0]), lines(found[-1])
        assert float(str(newest[-1]["at"])) > float(str(oldest[-1]["at"]))


def test_a_file_goes_on_where_the_last_insulad_ended(tmp_path: Path) -> None:
    for _ in range(2):
        file = EventFile(tmp_path / "e", max_bytes=1 << 20, kept=1)
        file.carry([told(EVENT)])
        file.close()
    assert len(lines(tmp_path / "e")) == 2


def test_a_file_that_cannot_be_written_is_tried_again(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "later" / "e", max_bytes=1 << 20, kept=1)
    with pytest.raises(Unavailable, match="No such file"):
        file.carry([told(EVENT)])
    (tmp_path / "later").mkdir()
    assert file.carry([told(EVENT)]) == 0
    file.close()


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "e", max_bytes=1 << 20, kept=0)
    file.carry([told(EVENT)])
    whole = (tmp_path / "e").read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, before[1]))
    try:
        with pytest.raises(Unavailable, match="File too large"):
            file.carry([told(EVENT)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "e").read_bytes() == whole
    file.close()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "e").symlink_to(tmp_path / "victim")
    file = EventFile(tmp_path / "e", max_bytes=1 << 20, kept=1)
    with pytest.raises(Unavailable):
        file.carry([told(EVENT)])
    assert not (tmp_path / "victim").exists()


# syslog

LINE = Line(text="{}", at=1760000000.25)
HEAD = re.compile(rb"<30>1 2025-10-09T08:53:20\.250000Z alpha insulad - events - \{\}")


def syslog(address: str) -> Syslog[Line]:
    return Syslog(
        Address.parse(address), lambda line: line, host="alpha", facility=Facility.DAEMON, message_id="events"
    )


def test_a_local_socket(tmp_path: Path) -> None:
    where = tmp_path / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(where))
        sender = syslog(str(where))
        assert sender.carry([LINE, Line(text="x", at=0.0, severity=Severity.WARNING)]) == 0
        assert HEAD.fullmatch(listener.recv(4096))
        assert listener.recv(4096).startswith(b"<28>1 1970-01-01T00:00:00.000000Z ")
        sender.close()


def test_udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        sender = syslog(f"127.0.0.1:{listener.getsockname()[1]}")
        sender.carry([LINE])
        assert HEAD.fullmatch(listener.recv(4096))
        sender.close()


def test_tcp_tells_the_length_before_each_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = syslog(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        sender.carry([LINE, LINE])
        connection, _ = listener.accept()
        sender.close()
        with connection:
            data = b"".join(iter(lambda: connection.recv(4096), b""))
    size, _, rest = data.partition(b" ")
    assert HEAD.fullmatch(rest[: int(size)])
    assert data == 2 * data[: len(data) // 2]


def test_who_does_not_listen_is_tried_again_with_the_rest(tmp_path: Path) -> None:
    where = tmp_path / "log"
    sender = syslog(str(where))
    with pytest.raises(Unavailable) as caught:
        sender.carry([LINE])
    assert caught.value.carried == 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(where))
        assert sender.carry([LINE]) == 0
    os.unlink(where)
    with pytest.raises(Unavailable):
        sender.carry([LINE])


@pytest.mark.parametrize("text", ["", "host:", "host:0", "host:65536", "host:x", "http://host:1", ":1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidSpec):
        Address.parse(text)


def test_addresses() -> None:
    assert Address.parse("/dev/log") == Address(path="/dev/log")
    assert Address.parse("loghost") == Address(host="loghost", port=514)
    assert Address.parse("tcp://[::1]:601") == Address(host="::1", port=601, is_tcp=True)
