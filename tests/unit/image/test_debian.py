# SPDX-License-Identifier: Apache-2.0
"""The words of a Debian build: none becomes an option."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.image.debian import check_words, command
from insula.model.errors import InvalidSpec


@pytest.mark.parametrize("package", ["--setup-hook=sh", "-x", "a b", "a,b", "A", "", "a;b", "../x", "a\n"])
def test_a_word_that_is_no_package_is_refused(package: str) -> None:
    with pytest.raises(InvalidSpec):
        check_words("bookworm", [package])


@pytest.mark.parametrize("release", ["--help", "", "Bookworm", "book worm", "../etc"])
def test_a_word_that_is_no_release_is_refused(release: str) -> None:
    with pytest.raises(InvalidSpec):
        check_words(release, [])


@pytest.mark.parametrize("mirror", ["--x", "deb http://a b c", "file:///etc", "http://a b"])
def test_a_word_that_is_no_mirror_is_refused(mirror: str) -> None:
    with pytest.raises(InvalidSpec):
        check_words("bookworm", [], mirror=mirror)


@given(st.text(max_size=20), st.text(max_size=20))
def test_accepted_words_begin_with_no_dash(release: str, package: str) -> None:
    try:
        check_words(release, [package])
    except InvalidSpec:
        return
    words = command(release, [package], mirror="http://deb.debian.org/debian")
    assert words[words.index("--") + 1 :] == [release, "-", "http://deb.debian.org/debian"]
    assert not release.startswith("-") and not package.startswith("-")
