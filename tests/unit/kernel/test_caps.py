# SPDX-License-Identifier: Apache-2.0
"""Names and bits of capabilities."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.kernel import caps


@pytest.mark.parametrize("word", ["NET_ADMIN", "cap_net_admin", "CAP_NET_ADMIN", " net_admin "])
def test_a_name_is_read_as_people_write_it(word: str) -> None:
    assert caps.parse(word) == {"NET_ADMIN"}


def test_all_is_every_one_of_41() -> None:
    assert caps.parse("all") == caps.ALL
    assert (len(caps.NAMES), caps.BITS["CHECKPOINT_RESTORE"], caps.BITS["SYS_ADMIN"]) == (41, 40, 21)


def test_an_unknown_name_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="FLY"):
        caps.parse("FLY")


def test_the_default_is_dockers() -> None:
    assert len(caps.DEFAULT) == 14
    assert caps.to_mask(caps.DEFAULT) == 0x00000000A80425FB


@given(st.frozensets(st.sampled_from(caps.NAMES)))
def test_a_set_survives_the_kernels_bits(names: frozenset[str]) -> None:
    assert caps.from_mask(caps.to_mask(names)) == names
