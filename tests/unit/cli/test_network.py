# SPDX-License-Identifier: Apache-2.0
"""The wish for a network out of the words of a command line."""

from argparse import ArgumentParser

import pytest

from insula.cli.commands import network
from insula.model.errors import InvalidSpec


def wish(*words: str) -> dict[str, object]:
    parser = ArgumentParser()
    network.arguments(parser)
    return dict(network.body(parser.parse_args(["create", *words, "lan"])))


def test_nothing_said_is_nothing_wished() -> None:
    assert wish() == {"name": "lan"}


def test_ipv4_and_ipv6_are_told_apart() -> None:
    said = (
        "--subnet",
        "fd00:1::/64",
        "--subnet",
        "10.9.0.0/24",
        "--gateway",
        "10.9.0.9",
        "--gateway",
        "fd00:1::9",
    )
    assert wish(*said, "--ipv6") == {
        "name": "lan", "subnet": "10.9.0.0/24", "subnet6": "fd00:1::/64", "gateway": "10.9.0.9",
        "gateway6": "fd00:1::9", "ipv6": "on",
    }  # fmt: skip
    assert wish("--no-ipv6")["ipv6"] == "off"


def test_two_subnets_of_one_kind_are_refused() -> None:
    with pytest.raises(InvalidSpec, match="is named already"):
        wish("--subnet", "10.1.0.0/24", "--subnet", "10.2.0.0/24")
