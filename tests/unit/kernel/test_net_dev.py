# SPDX-License-Identifier: Apache-2.0
"""The kernel's table of interfaces."""

from insula.kernel.net_dev import Traffic, parse

TEXT = b"""Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     868      10    0    0    0     0          0         0      868      10    0    0    0     0       0          0
is3f2a9c01: 1234567890123    1    2    3    4     5          6         7 99      8    9    0    0     0       0          0
"""


def test_bytes_of_each_interface() -> None:
    assert parse(TEXT) == {"lo": Traffic(868, 868), "is3f2a9c01": Traffic(1234567890123, 99)}


def test_nothing_there() -> None:
    assert parse(b"") == {}
