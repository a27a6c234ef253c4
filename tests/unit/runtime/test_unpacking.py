# SPDX-License-Identifier: Apache-2.0
"""How long a tenant waits after uploads that were refused."""

from insula.runtime.unpacking import MAX_REST_S, REST_S, Rest


def test_each_refusal_is_a_rest_also_of_those_at_once() -> None:
    rest = Rest()
    assert rest.wait_s(100.0) == 0.0
    rest.add(100.0)
    rest.add(100.0)
    assert rest.wait_s(100.0) == 2 * REST_S
    assert rest.wait_s(100.0 + 3 * REST_S) == 0.0
    for _ in range(100):
        rest.add(200.0)
    assert rest.wait_s(200.0) == MAX_REST_S
