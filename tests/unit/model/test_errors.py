# SPDX-License-Identifier: Apache-2.0
"""The tree of errors: stable, distinct codes that find their class again."""

from insula.model import errors


def _all() -> list[type[errors.InsulaError]]:
    # Tests may define their own below it; the tree is what stands in its file.
    return [kind for kind in errors._all_below(errors.InsulaError) if kind.__module__ == errors.__name__]


def test_codes_are_distinct_and_lead_back_to_their_class() -> None:
    codes = [kind.code for kind in _all()]
    assert len(codes) == len(set(codes))
    for kind in _all():
        found = errors.from_code(kind.code, "why", hint="cure")
        assert type(found) is kind
        assert (found.message, found.hint) == ("why", "cure")


def test_an_unknown_code_of_a_newer_daemon_is_kept() -> None:
    found = errors.from_code("brand_new", "why")
    assert found.code == "brand_new"
    assert str(found) == "why"
