# SPDX-License-Identifier: Apache-2.0
"""CRIU's log in people's words."""

import pytest

from insula.kernel import criu


@pytest.mark.parametrize(
    ("line", "resource"),
    [
        (
            "Error (criu/files-reg.c:1710): Can't lookup mount=24 for fd=1 path=/var/log/x",
            "outside the container",
        ),
        (
            "(00.1) Error (criu/sk-unix.c:853): unix: External socket is used. Consider using --ext-unix-sk",
            "unix socket",
        ),
        (
            "(00.2)    12: Error (criu/files-reg.c:2020): File usr/lib/x.so has bad size 5 (expect 6)",
            "usr/lib/x.so",
        ),
        ("Error (criu/sk-inet.c:99): inet: in-flight connection (l) for 6e", "not accepted yet"),
        ("Error (criu/image.c:1): write failed: No space left on device", "room for the images"),
    ],
)
def test_the_resource_is_named_with_a_cure(line: str, resource: str) -> None:
    noise = (
        "Error (criu/tun.c:85): tun: Unable to create tun: Operation not permitted\nWarn  (x.c:1): nothing\n"
    )
    cause = criu.find_cause(noise + line)
    assert resource in cause.resource
    assert cause.cure


def test_an_unknown_error_is_quoted() -> None:
    cause = criu.find_cause("(00.000001) Error (criu/x.c:1): something new\n")
    assert cause == criu.Cause("", "", "something new")


def test_a_log_without_errors_gives_no_cause() -> None:
    assert criu.find_cause("(00.1) all is well\n").line == ""
