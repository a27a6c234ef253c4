# SPDX-License-Identifier: Apache-2.0
"""What a profile lets a container begin, as elements of the firewall: the same by netlink and as text."""

from insula.kernel.nft import Family
from insula.model.record import Attachment
from insula.model.spec import AppliedProfile, Enforce
from insula.network.firewall import Limited, State, render
from insula.network.limit import Entry, entries, limit_of

PLACE = Attachment(
    network="n", network_name="lan", address="10.0.0.2", prefix_length=24, gateway="10.0.0.1", mac="02:00:0a:00:00:02",
    bridge="br0", interface="veth0", address6="fd00::2", prefix_length6=64, gateway6="fd00::1",
)  # fmt: skip
PROFILE = AppliedProfile(
    name="web", calls=(), capabilities=None,
    outgoing=("192.0.2.1:443/tcp", "[2001:db8::1]:53/udp", "gateway:53/udp", "*:80/tcp", "192.0.2.2:0/icmp", "192.0.2.3:7"),
    serving=("0.0.0.0:5353/udp", "0.0.0.0:80/tcp", "0.0.0.0:0/udp"),
)  # fmt: skip


def test_entries() -> None:
    limit = limit_of(PROFILE)
    assert limit is not None
    assert set(entries(limit, PLACE)) == {
        Entry("limited"),
        Entry("serving", protocol="udp", port=5353),
        Entry("may", "192.0.2.1", "tcp", 443),
        Entry("may6", "2001:db8::1", "udp", 53),
        Entry("may", "10.0.0.1", "udp", 53),
        Entry("may6", "fd00::1", "udp", 53),
        Entry("anywhere", "", "tcp", 80),
        Entry("pinged", "192.0.2.2"),
        Entry("may", "192.0.2.3", "tcp", 7),
        Entry("may", "192.0.2.3", "udp", 7),
    }


def test_nothing_is_limited_by_a_log_or_an_old_profile() -> None:
    assert limit_of(None) is None
    assert limit_of(AppliedProfile(name="a", calls=(), capabilities=())) is None
    assert (
        limit_of(AppliedProfile(name="a", calls=(), capabilities=(), outgoing=(), enforce=Enforce.LOG))
        is None
    )


def test_an_element_is_a_key_of_padded_parts() -> None:
    element = Entry("may", "192.0.2.1", "tcp", 443).element("veth0", table="t")
    assert (element.family, element.table, element.set_name) == (Family.BRIDGE, "t", "may")
    assert element.key == b"veth0".ljust(16, b"\0") + bytes([192, 0, 2, 1, 6, 0, 0, 0, 1, 187, 0, 0])
    assert Entry("may", "192.0.2.1", "tcp", 443).text("veth0") == '"veth0" . 192.0.2.1 . tcp . 443'


def test_the_whole_ruleset_holds_them_too() -> None:
    limit = limit_of(PROFILE)
    assert limit is not None
    limits = (Limited(attachment=PLACE, limit=limit),)
    text = render(State(host_name="h", attachments=(PLACE,), limits=limits, has_ipv6=True))
    assert 'elements = { "veth0" }' in text
    assert '"veth0" . 2001:db8::1 . udp . 53' in text
    assert "%" not in text
    assert "may6" not in render(State(host_name="h", attachments=(PLACE,), limits=limits))
