# SPDX-License-Identifier: Apache-2.0
"""Answers of the name server, without a socket."""

from ipaddress import IPv4Network, IPv6Network

import dns.message
import dns.rcode
import dns.reversename
import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.network.names import HEADER_BYTES, answer_locally, resolvers_of
from insula.network.zone import Served, Zone

SERVED = Served(gateway="10.64.0.1", subnet=IPv4Network("10.64.0.0/24"))
INTERNAL = Served(gateway="10.64.0.1", subnet=IPv4Network("10.64.0.0/24"), is_internal=True)


@pytest.fixture(scope="module")
def zone() -> Zone:
    made = Zone()
    made.set_names("c1", network="n", addresses=("10.64.0.2",), names=("web", "0123456789ab"))
    made.set_names("c2", network="other", addresses=("10.65.0.2",), names=("secret",))
    return made


def ask(zone: Zone, name: str, kind: str, *, served: Served = SERVED) -> dns.message.Message | None:
    question = dns.message.make_query(name, kind)
    answer = answer_locally(question.to_wire(), network="n", served=served, zone=zone)
    if answer is None:
        return None
    parsed = dns.message.from_wire(answer)
    assert parsed.id == question.id
    return parsed


@pytest.mark.parametrize("name", ["web.", "WEB.", "0123456789ab."])
def test_a_running_container_is_found(zone: Zone, name: str) -> None:
    answer = ask(zone, name, "A")
    assert answer is not None
    assert [str(record) for rrset in answer.answer for record in rrset] == ["10.64.0.2"]


def test_its_address_leads_back(zone: Zone) -> None:
    answer = ask(zone, "2.0.64.10.in-addr.arpa.", "PTR")
    assert answer is not None
    assert [str(record) for rrset in answer.answer for record in rrset] == ["web."]


@pytest.mark.parametrize(
    ("name", "kind"), [("secret.", "A"), ("nobody.", "AAAA"), ("9.0.64.10.in-addr.arpa.", "PTR")]
)
def test_names_of_other_networks_and_of_nobody_do_not_exist(zone: Zone, name: str, kind: str) -> None:
    answer = ask(zone, name, kind)
    assert answer is not None
    assert answer.rcode() == dns.rcode.NXDOMAIN


def test_a_container_with_both_kinds_of_address_is_found_by_either() -> None:
    zone = Zone()
    zone.set_names("c", network="n", addresses=("10.64.0.2", "fd00:1::a40:2"), names=("web",))
    served = Served(gateway="10.64.0.1", subnet=SERVED.subnet, subnet6=IPv6Network("fd00:1::/64"))
    for kind, expected in (("A", "10.64.0.2"), ("AAAA", "fd00:1::a40:2")):
        answer = ask(zone, "web.", kind, served=served)
        assert answer is not None
        assert [str(record) for rrset in answer.answer for record in rrset] == [expected]
    for address, code in (("fd00:1::a40:2", dns.rcode.NOERROR), ("fd00:1::a40:3", dns.rcode.NXDOMAIN)):
        answer = ask(zone, dns.reversename.from_address(address).to_text(), "PTR", served=served)
        assert answer is not None
        assert answer.rcode() == code
    assert ask(zone, dns.reversename.from_address("fd00:2::1").to_text(), "PTR", served=served) is None


def test_it_has_no_ipv6_address_but_exists(zone: Zone) -> None:
    answer = ask(zone, "web.", "AAAA")
    assert answer is not None
    assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])


@pytest.mark.parametrize("name", ["example.org.", "1.1.1.1.in-addr.arpa."])
def test_the_rest_is_asked_outside_but_not_by_internal_networks(zone: Zone, name: str) -> None:
    assert ask(zone, name, "A") is None
    answer = ask(zone, name, "A", served=INTERNAL)
    assert answer is not None
    assert answer.rcode() == dns.rcode.NXDOMAIN


def test_a_forgotten_container_is_gone() -> None:
    zone = Zone()
    zone.set_names("c", network="n", addresses=("10.64.0.2",), names=("web",))
    zone.forget("c")
    answer = ask(zone, "web.", "A")
    assert answer is not None
    assert answer.rcode() == dns.rcode.NXDOMAIN


@given(st.binary(max_size=600))
def test_any_bytes_are_answered_or_ignored(question: bytes) -> None:
    _judge(question)


@given(st.binary(min_size=2, max_size=2), st.binary(max_size=300))
def test_any_bytes_that_claim_to_be_one_question(identity: bytes, rest: bytes) -> None:
    _judge(identity + b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + rest)


@given(st.integers(0, 600), st.integers(0, 255))
def test_a_damaged_question(place: int, value: int) -> None:
    question = bytearray(dns.message.make_query("web.example.org.", "A").to_wire())
    question[place % len(question)] = value
    _judge(bytes(question))


def _judge(question: bytes) -> None:
    answer = answer_locally(question, network="n", served=SERVED, zone=Zone())
    if answer:
        assert answer[:2] == question[:2]
        assert answer[2] & 0x80, "an answer is marked as one, so that no two servers talk for ever"
        assert len(answer) >= HEADER_BYTES


def test_resolvers_are_read_tolerantly() -> None:
    text = "# x\nnameserver 192.0.2.1\nnameserver junk\nnameserver\nnameserver 10.64.0.1\nnameserver ::1\nsearch a b\n"
    assert resolvers_of(text, own=["10.64.0.1"]) == ("192.0.2.1", "::1")


@given(st.text())
def test_any_resolv_conf(text: str) -> None:
    assert len(resolvers_of(text)) <= 3
