# SPDX-License-Identifier: Apache-2.0
"""What was seen in several lives of a container is added up."""

import pytest
from msgspec.structs import replace

from insula.model.profile import Profile, joined

FIRST = Profile(
    name="p",
    recorded_at=1.0,
    seconds=2.0,
    calls={"read": 1, "open": 2},
    capabilities={"CHOWN": 1},
    programs={"/bin/sh": 1},
    written={"/tmp": 1},
    outgoing={},
    listening={"0.0.0.0:80/tcp": 1},
    refused_calls={"mount": 1},
    is_from_birth=True,
    lost_events=3,
)
LAST = replace(
    FIRST,
    recorded_at=9.0,
    seconds=0.5,
    calls={"read": 4, "close": 1},
    capabilities={"KILL": 2},
    programs={"/bin/sh": 1, "/bin/ls": 1},
    outgoing={"10.0.0.1:80/tcp": 1},
    is_from_birth=False,
    lost_events=1,
)


def test_counts_are_added() -> None:
    assert joined([FIRST, LAST]) == Profile(
        name="p",
        recorded_at=9.0,
        seconds=2.5,
        calls={"read": 5, "open": 2, "close": 1},
        capabilities={"CHOWN": 1, "KILL": 2},
        programs={"/bin/sh": 2, "/bin/ls": 1},
        written={"/tmp": 2},
        outgoing={"10.0.0.1:80/tcp": 1},
        listening={"0.0.0.0:80/tcp": 2},
        refused_calls={"mount": 2},
        is_from_birth=True,
        lost_events=4,
    )


def test_one_life_is_as_it_was() -> None:
    assert joined([FIRST]) == FIRST


@pytest.mark.parametrize("part", ["capabilities", "programs"])
def test_what_could_not_be_told_once_is_not_limited(part: str) -> None:
    unknown = replace(LAST, **{part: None})
    assert getattr(joined([FIRST, unknown]), part) is None
    assert getattr(joined([unknown, FIRST]), part) is None
