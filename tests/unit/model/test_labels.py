# SPDX-License-Identifier: Apache-2.0
"""Labels are bounded, whatever carries them."""

from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from insula.model.errors import InvalidSpec
from insula.model.labels import MAX_LABELS, MAX_LABELS_BYTES, check_labels
from insula.model.spec import NetworkWish, Spec, VolumeWish
from insula.network.wish import plan_network
from insula.runtime.create import check_spec
from insula.runtime.store import Store
from insula.runtime.volumes import Volumes

Labels = dict[str, str]


def on_container(labels: Labels, _folder: Path) -> None:
    check_spec(Spec(name="c", image="box", labels=labels))


def on_volume(labels: Labels, folder: Path) -> None:
    Volumes(folder / "volumes", Store(folder / "db.sqlite")).create("alice", VolumeWish(labels=labels))


def on_network(labels: Labels, _folder: Path) -> None:
    wish = NetworkWish(name="n", labels=labels)
    plan_network("alice", wish, others=(), from_pool=IPv4Network("10.200.0.0/16"), has_ipv6=False)


@pytest.mark.parametrize("labelled", [on_container, on_volume, on_network])
@pytest.mark.parametrize("labels", [{"a": "x" * 100_000}, {str(number): "" for number in range(65)}])
def test_too_many_labels_are_refused_with_the_cure(
    labels: Labels, labelled: Callable[[Labels, Path], None], tmp_path: Path
) -> None:
    with pytest.raises(InvalidSpec, match="labels") as caught:
        labelled(labels, tmp_path)
    assert "at most" in caught.value.hint


def test_labels_are_counted_in_bytes_with_their_names() -> None:
    check_labels({"n": "x" * (MAX_LABELS_BYTES - 1)})
    check_labels({str(number): "é" for number in range(MAX_LABELS)})
    with pytest.raises(InvalidSpec):
        check_labels({"n": "x" * MAX_LABELS_BYTES})
    with pytest.raises(InvalidSpec):
        check_labels({"": "é" * (MAX_LABELS_BYTES // 2) + "x"})
