# SPDX-License-Identifier: Apache-2.0
"""Which mirror of Debian the private CRIU comes from."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.daemon.criu_fetch import FALLBACK_MIRROR, choose_mirror, find_mirror, mirror_uris

DEB822 = """\
Types: deb
# a comment with URIs: http://no.example/debian
URIs: http://one.example/debian-security
Suites: bookworm-security

Types: deb
URIs: http://two.example/debian/ http://three.example/debian
Suites: bookworm
"""
ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/x.gpg] http://four.example/debian bookworm main
deb-src http://five.example/debian bookworm main
"""


def test_both_forms_of_sources_are_read() -> None:
    assert mirror_uris(DEB822) == [
        "http://one.example/debian-security",
        "http://two.example/debian/",
        "http://three.example/debian",
    ]
    assert mirror_uris(ONE_LINE) == ["http://four.example/debian", "http://five.example/debian"]


@pytest.mark.parametrize(
    ("texts", "mirror"),
    [
        ([DEB822], "http://two.example/debian/"),
        ([ONE_LINE], "http://four.example/debian"),
        (["deb http://six.example/ubuntu jammy main"], FALLBACK_MIRROR),
        ([], FALLBACK_MIRROR),
    ],
)
def test_the_machines_own_mirror_is_chosen(texts: list[str], mirror: str) -> None:
    assert choose_mirror(texts) == mirror


def test_disabled_files_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    (folder / "a.sources.disabled").write_text("URIs: http://no.example/debian\n")
    (folder / "b.list").write_text(ONE_LINE)
    assert find_mirror(tmp_path) == "http://four.example/debian"


@given(st.text())
def test_any_text_gives_some_mirror(text: str) -> None:
    assert choose_mirror([text])
