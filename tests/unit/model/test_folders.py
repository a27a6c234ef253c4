# SPDX-License-Identifier: Apache-2.0
"""Paths by their names."""

import pytest

from insula.model.folders import normal_path


@pytest.mark.parametrize(("path", "normal"), [
    ("/a/./b//c/../d/", "/a/b/d"),
    ("//bin/sh", "/bin/sh"),
    ("/../..", "/"),
    ("a/../../b", "../b"),
    ("…/a/../b", "…/b"),
    ("…/a/../../../b", "…/b"),
    ("", ""),
])  # fmt: skip
def test_a_path_in_its_normal_form(path: str, normal: str) -> None:
    assert normal_path(path) == normal
