# SPDX-License-Identifier: Apache-2.0
"""Where visitors are led."""

from ipaddress import IPv4Address

import pytest

from insula.migrate.relays import is_led_to


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "0.0.0.0", "224.0.0.1", "255.255.255.255"])
def test_nobody_is_led_to_what_is_no_other_host(address: str) -> None:
    assert not is_led_to(IPv4Address(address))


@pytest.mark.parametrize("address", ["10.99.0.2", "192.0.2.1"])
def test_visitors_are_led_to_other_hosts(address: str) -> None:
    assert is_led_to(IPv4Address(address))
