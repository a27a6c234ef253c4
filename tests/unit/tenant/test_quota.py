# SPDX-License-Identifier: Apache-2.0
"""Which limit counts, what is refused, and in which words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.errors import InvalidSpec, QuotaExceeded
from insula.model.quota import KINDS, Quota, QuotaWish, Resource
from insula.tenant.quota import changed, check_limits, limit_of, refuse_more, show

COUNTS = st.integers(0, 10**12)


def test_every_resource_has_words_and_a_unit() -> None:
    assert set(KINDS) == set(Resource)


def test_an_own_limit_stands_before_everybodys_and_none_lifts_it() -> None:
    default = Quota(limits={Resource.PIDS: 10, Resource.PORTS: 5})
    own = Quota(limits={Resource.PIDS: None, Resource.DISK: 7})
    found = {each: limit_of(each, own, default) for each in Resource}
    assert {name: value for name, value in found.items() if value is not None} == {
        Resource.PORTS: 5,
        Resource.DISK: 7,
    }


@given(limit=st.none() | COUNTS, used=COUNTS, more=COUNTS)
def test_exactly_what_exceeds_is_refused(limit: int | None, used: int, more: int) -> None:
    if limit is None or used + more <= limit:
        refuse_more(Resource.PORTS, limit=limit, used=used, more=more)
    else:
        with pytest.raises(QuotaExceeded):
            refuse_more(Resource.PORTS, limit=limit, used=used, more=more)


def test_a_refusal_tells_the_figures() -> None:
    with pytest.raises(QuotaExceeded) as caught:
        refuse_more(Resource.IMAGES, limit=1 << 30, used=1 << 29, more=1 << 30)
    assert str(caught.value.message) == (
        "cannot use more images: 512MiB used, 1.0GiB wished, the limit is 1.0GiB"
    )
    assert (caught.value.code, caught.value.fields["limit"]) == ("quota_exceeded", 1 << 30)


@pytest.mark.parametrize("resource", list(Resource))
def test_limits_below_the_least_are_refused_by_name(resource: Resource) -> None:
    least = KINDS[resource].least
    check_limits({resource: least})
    check_limits({resource: None})
    with pytest.raises(InvalidSpec, match=resource.value):
        check_limits({resource: least - 1})


def test_a_change_keeps_what_it_does_not_name() -> None:
    quota = Quota(limits={Resource.PIDS: 10, Resource.PORTS: 5, Resource.LOG: 1 << 20})
    wish = QuotaWish(limits={Resource.PIDS: None}, inherit=(Resource.LOG,))
    assert changed(quota, wish).limits == {Resource.PIDS: None, Resource.PORTS: 5}
    with pytest.raises(InvalidSpec):
        changed(quota, QuotaWish(limits={Resource.LOG: 1 << 20}, inherit=(Resource.LOG,)))


def test_figures_read_well() -> None:
    assert [
        show(Resource.CPUS, 1500), show(Resource.BUILD_TIME, 90), show(Resource.REQUESTS, 20),
        show(Resource.MEMORY, 1 << 30),
    ] == ["1.5", "90 s", "20/s", "1.0GiB"]  # fmt: skip
