# SPDX-License-Identifier: Apache-2.0
"""The table of features, and how a trial's end becomes a finding."""

import errno
import json
from dataclasses import replace

import pytest

from insula.kernel.probe import FEATURES, Feature, State, probe_all, probe_one, to_json
from insula.kernel.trials import Absent, in_child


def _feature(*, error: Exception | None = None, required: bool = False) -> Feature:
    def probe() -> str:
        if error is not None:
            raise error
        return "v1"

    return Feature(name="x", needed_for="y", required=required, consequence="c", cure="d", probe=probe)


def test_names_are_unique() -> None:
    names = [feature.name for feature in FEATURES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_every_feature_says_what_it_is_for_what_it_costs_and_its_cure(feature: Feature) -> None:
    assert feature.needed_for
    assert feature.consequence
    assert feature.cure


def test_a_trial_that_returns_is_found() -> None:
    finding = probe_one(_feature())
    assert (finding.state, finding.detail) == (State.FOUND, "v1")


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (Absent("not there"), "not there"),
        (OSError(errno.EPERM, "unshare: Operation not permitted"), "unshare: Operation not permitted"),
    ],
)
def test_a_trial_that_raises_is_missing_with_its_reason(error: Exception, detail: str) -> None:
    finding = probe_one(_feature(error=error))
    assert (finding.state, finding.detail) == (State.MISSING, detail)


def test_only_a_missing_required_feature_is_fatal() -> None:
    absent = Absent("no")
    found = probe_all(
        [_feature(required=True), _feature(error=absent), _feature(error=absent, required=True)]
    )
    assert [finding.is_fatal for finding in found] == [False, False, True]


def test_json_is_a_list_of_rows_with_stable_keys() -> None:
    rows = json.loads(to_json(probe_all([replace(_feature(), name="one")])))
    assert rows == [
        {
            "name": "one",
            "state": "found",
            "detail": "v1",
            "required": False,
            "needed_for": "y",
            "consequence": "c",
            "cure": "d",
        }
    ]


def test_a_child_answers_with_its_result() -> None:
    assert in_child(lambda: "fine") == "fine"


def test_a_child_answers_with_its_error() -> None:
    def fail() -> str:
        raise OSError(errno.EINVAL, "mount: Invalid argument")

    with pytest.raises(Absent, match="mount: Invalid argument"):
        in_child(fail)


def test_a_child_that_goes_wrong_ends_and_is_reaped() -> None:
    def fail() -> str:
        raise TypeError("a mistake in the trial")

    with pytest.raises(Absent, match="the trial died"):
        in_child(fail)
