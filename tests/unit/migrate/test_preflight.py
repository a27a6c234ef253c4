# SPDX-License-Identifier: Apache-2.0
"""What a target refuses before anything stops, with the reason."""

import pytest

from insula.migrate.preflight import check_kernel, check_memory
from insula.model.errors import TargetFull, Unsupported


@pytest.mark.parametrize(
    ("offered", "here"), [("6.1.0-13-amd64", "6.12.4"), ("6.18.1", "6.1.0"), ("5.15", "6.1"), ("6.1", "6.1")]
)
def test_kernels_of_the_same_major_version_or_newer_do(offered: str, here: str) -> None:
    check_kernel("c", offered=offered, here=here)


@pytest.mark.parametrize(("offered", "here"), [("6.1", "5.15"), ("5.10", "5.10"), ("6.1", "words")])
def test_older_kernels_are_refused(offered: str, here: str) -> None:
    with pytest.raises(Unsupported, match=f"the kernel is {here} here and {offered} there"):
        check_kernel("c", offered=offered, here=here)


def test_memory_that_is_not_there_is_refused_with_both_figures() -> None:
    check_memory("c", needed=100 << 20, available=100 << 20)
    with pytest.raises(TargetFull, match="needs 101 MiB of memory on the way, 100 MiB are free"):
        check_memory("c", needed=101 << 20, available=100 << 20)
