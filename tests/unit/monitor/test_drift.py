# SPDX-License-Identifier: Apache-2.0
"""What a profile lacks is found in events, told once, and counted."""

from typing import Any

import pytest

from insula.model.monitor import Event, EventKind
from insula.model.profile import ContainerDrifts
from insula.model.record import ContainerStats
from insula.model.spec import AppliedProfile, Enforce
from insula.monitor.drift import MAX_ANNOUNCED, MAX_DRIFTS, Found, Judge, Ledger, told
from insula.monitor.metrics import exposition
from insula.monitor.rule_text import read_rules
from insula.monitor.rules import wish_of
from insula.monitor.usage import Home

PROFILE = AppliedProfile(
    name="web",
    calls=("read",),
    capabilities=("CHOWN",),
    programs=("/usr/bin/true",),
    written=("/tmp", "/var/log"),
    outgoing=("192.0.2.1:443/tcp", "gateway:53/udp", "*:80/tcp", "[2001:db8::1]:5/udp", "192.0.2.7:7"),
    serving=("0.0.0.0:5353/udp",),
    refused_calls=("clone3",),
    refused_capabilities=("SYS_ADMIN",),
    refused_folders=("/root",),
)
HOME = Home(own=frozenset({"10.0.0.2"}), gateways=frozenset({"10.0.0.1"}))


def event(kind: EventKind, **fields: Any) -> Event:
    return Event(at=1.0, container="c", name="web", kind=kind, command="sh", pid=7, **fields)


def judged(one: Event, *, enforce: Enforce = Enforce.DENY) -> list[tuple[str, str, bool]]:
    from msgspec.structs import replace

    held = frozenset({"CHOWN", "NET_RAW", "SYS_ADMIN"})
    judge = Judge(replace(PROFILE, enforce=enforce), home=HOME, capabilities=held, free=("/cache",))
    return [tuple(each) for each in judge.judge(one)]


def opened(path: str, **fields: Any) -> Event:
    return event(EventKind.FILE, call="openat", path=path, detail="O_WRONLY|O_CREAT", **fields)


def sent(address: str, protocol: str = "tcp", *, call: str = "connect", **fields: Any) -> Event:
    return event(EventKind.NETWORK, call=call, address=address, detail=protocol, **fields)


@pytest.mark.parametrize(
    ("one", "found"),
    [
        (event(EventKind.DRIFT, call="ptrace"), [("calls", "ptrace", True)]),
        (opened("/tmp/" + "./" * 509, is_cut=True), [("written", "…", False)]),  # on to where is not known
        (opened("…/tmp/x"), [("written", "…", False)]),
        (event(EventKind.FILE, call="openat", path="…/tmp/x", detail="O_RDONLY"), []),
        (event(EventKind.EXEC, path="…/true"), [("programs", "…", False)]),
        (event(EventKind.CAPABILITY, detail="NET_RAW refused"), [("capabilities", "NET_RAW", True)]),
        (event(EventKind.CAPABILITY, detail="CHOWN refused"), []),  # of a user that has none
        (event(EventKind.CAPABILITY, detail="SYS_ADMIN refused"), []),  # so it was when it was recorded
        (event(EventKind.CAPABILITY, detail="SYS_TIME refused"), []),  # nobody has it
        (event(EventKind.FILE, call="execve", path="/bin/sh", error="EACCES"), [("programs", "/bin/sh", True)]),
        (event(EventKind.FILE, call="execve", path="/usr/bin/true", error="EACCES"), [("programs", "/usr/bin/true", True)]),
        (event(EventKind.FILE, call="execve", path="/bin/sh", error="ENOENT"), []),
        (event(EventKind.EXEC, path="/opt/x"), [("programs", "/opt/x", False)]),
        (event(EventKind.EXEC, path="/usr/bin/true"), []),
        (event(EventKind.EXEC, path="//usr/bin/true"), []),
        (opened("/etc/x", error="EROFS"), [("written", "/etc", True)]),
        (opened("/tmp/a/x"), []),
        (opened("/dev/null"), []),
        (opened("/cache/x"), []),
        (opened("/etc/x", error="EACCES"), []),
        (opened("/root/.x", error="EROFS"), []),
        (opened("/opt/x"), [("written", "/opt", False)]),
        (sent("192.0.2.1:443"), []),
        (sent("192.0.2.1:443", "udp"), [("outgoing", "192.0.2.1:443/udp", True)]),
        (sent("192.0.2.9:80"), []),
        (sent("192.0.2.7:7", "udp"), []),
        (sent("10.0.0.1:53", "udp"), []),
        (sent("10.0.0.2:99"), []),
        (sent("127.0.0.1:99"), []),
        (sent("[::ffff:192.0.2.1]:443"), []),
        (sent("[2001:db8::2]:5", "udp"), [("outgoing", "[2001:db8::2]:5/udp", True)]),
        (sent("198.51.100.9:4000", "udp", call="sendto", port=5353), []),
        (sent("unix:/run/x"), []),
        (event(EventKind.EXIT), []),
    ],
)  # fmt: skip
def test_what_is_lacked_is_found(one: Event, found: list[tuple[str, str, bool]]) -> None:
    assert judged(one) == found


def test_who_may_write_everywhere_lacks_no_folder_that_is_not_known() -> None:
    anywhere = AppliedProfile(name="web", calls=(), capabilities=None, written=("/",))
    judge = Judge(anywhere, home=HOME, capabilities=frozenset())
    assert list(judge.judge(opened("…/tmp/x"))) == []
    assert list(judge.judge(opened("/tmp/" + "./" * 509, is_cut=True))) == []


def test_logging_finds_what_is_done() -> None:
    assert judged(event(EventKind.CAPABILITY, detail="NET_RAW granted"), enforce=Enforce.LOG) == [
        ("capabilities", "NET_RAW", False)
    ]
    assert judged(sent("192.0.2.8:1"), enforce=Enforce.LOG) == [("outgoing", "192.0.2.8:1/tcp", False)]


def test_it_is_told_at_powers_of_ten() -> None:
    ledger, one = Ledger(), event(EventKind.DRIFT, call="ptrace")
    found = Found("calls", "ptrace", True)
    times = [number for number in range(1, 1001) if ledger.add(found, one).is_told]
    assert times == [1, 10, 100, 1000]
    ledger.count_calls({"ptrace": 5000})
    assert [each.count for each in ledger.drifts.values()] == [5000]


def test_a_call_whose_first_event_was_lost_is_reported_and_announced_once() -> None:
    ledger = Ledger()
    ((found, telling),) = ledger.count_calls({"ptrace": 3}, is_refused=True)
    assert (found, telling) == (Found("calls", "ptrace", True), (3, True, True))
    assert ledger.count_calls({"ptrace": 4}, is_refused=True) == []
    (drift,) = ledger.report().drifts
    assert (drift.part, drift.thing, drift.count, drift.command, drift.is_refused) == (
        "calls",
        "ptrace",
        4,
        "",
        True,
    )
    assert drift.first_at == drift.last_at > 0


def test_an_event_that_comes_after_its_count_says_who_it_was() -> None:
    ledger, one = Ledger(), event(EventKind.DRIFT, call="ptrace")
    ledger.count_calls({"ptrace": 3})
    telling = ledger.add(Found("calls", "ptrace", False), one)
    assert not (telling.is_told or telling.is_announced)
    (drift,) = ledger.report().drifts
    assert (drift.count, drift.command, drift.first_at) == (3, "sh", 1.0)


def test_calls_that_were_counted_only_are_bounded_too() -> None:
    ledger = Ledger()
    ledger.count_calls({f"call {number}": 1 for number in range(2 * MAX_DRIFTS)})
    assert len(ledger.drifts) == MAX_DRIFTS


def test_a_flood_is_announced_in_part_and_hides_nothing_from_rules() -> None:
    ledger, one = Ledger(), event(EventKind.DRIFT)
    tellings = [ledger.add(Found("written", f"/{number}", False), one) for number in range(2 * MAX_DRIFTS)]
    assert sum(each.is_announced for each in tellings) == MAX_ANNOUNCED
    assert all(each.is_told for each in tellings)
    assert (len(ledger.drifts), ledger.not_remembered) == (MAX_DRIFTS, MAX_DRIFTS)


def test_words() -> None:
    parts = ("calls", "capabilities", "programs", "written", "outgoing")
    words = [told(event(EventKind.FILE), Found(part, "X", True), count=1).detail for part in parts]
    assert words[0] == "new system call, refused"
    assert (
        told(event(EventKind.FILE), Found("written", "/x", False), count=10).detail
        == "new folder, not refused, 10 times"
    )


def test_figures_of_it() -> None:
    ledger = Ledger()
    for part, is_refused in (("calls", True), ("written", True), ("written", True), ("written", False)):
        ledger.add(Found(part, f"{part}{is_refused}", is_refused), event(EventKind.FILE))
    counted = ContainerDrifts.of("id", "web", ledger.drifts.values())
    assert (counted.refused, counted.done) == ({"calls": 1, "written": 2}, {"written": 1})
    stats = ContainerStats(id="id", name="web", cpu_usage_us=0, tenant="alice")
    text = exposition((stats,), (), drifts=(counted,)).decode()
    assert (
        'insula_container_profile_drifts_total{answer="refused",id="id",name="web",part="written",tenant="alice"} 2.0'
        in text
    )
    assert "profile_drifts" not in exposition((), ()).decode()


def test_a_rule_can_be_about_it() -> None:
    (rule,) = read_rules('[[rule]]\nname = "new"\nkinds = ["drift"]\npaths = ["/bin/sh"]\n', file="x")
    one = event(EventKind.FILE, call="execve", path="/bin/sh", error="EACCES")
    assert rule.matches(told(one, Found("programs", "/bin/sh", True), count=1))
    assert not rule.matches(one)
    assert wish_of([rule]).kinds == (EventKind.DRIFT,)
