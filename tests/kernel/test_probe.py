# SPDX-License-Identifier: Apache-2.0
"""Every trial on this kernel: it answers, agrees with what the kernel says elsewhere, and leaves nothing behind."""

import pytest

from insula.kernel.probe import FEATURES, Feature, State, probe_one
from insula.kernel.trials.files import STATE

NAMES = {feature.name: feature for feature in FEATURES}


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_trial_answers_and_leaves_nothing(feature: Feature) -> None:
    folder = STATE.parent
    before = sorted(path.name for path in folder.iterdir())
    finding = probe_one(feature)
    assert finding.state is State.FOUND or finding.detail, "a missing feature needs a reason"
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize(
    "feature", [feature for feature in FEATURES if feature.required], ids=lambda each: each.name
)
def test_required_feature_is_found_where_these_tests_run(feature: Feature) -> None:
    finding = probe_one(feature)
    assert finding.state is State.FOUND, finding.detail


@pytest.mark.parametrize("name", ["criu", "cgroup v2 freezer", "nftables", "tcp repair", "tini-static"])
def test_what_migration_needs_is_found_after_set_up(name: str) -> None:
    finding = probe_one(NAMES[name])
    assert finding.state is State.FOUND, finding.detail
