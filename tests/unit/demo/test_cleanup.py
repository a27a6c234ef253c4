# SPDX-License-Identifier: Apache-2.0
"""What the demo takes away is its own, and all of its own."""

import uuid
from pathlib import Path

import pytest
from demo import cleanup
from demo.cleanup import Machine

from insula.kernel.cgroup import own_name

MOUNTS = """\
21 1 8:1 / / rw - ext4 /dev/vda rw
30 21 0:40 / /var/tmp/run-1 rw - tmpfs tmpfs rw
31 30 0:41 / /var/tmp/run-1/alpha/my\\040mask rw - tmpfs tmpfs rw
32 21 0:42 / /var/tmp/run-10 rw - tmpfs tmpfs rw
"""


def test_mounts_of_a_folder_come_deepest_first_and_a_like_named_folder_is_anothers() -> None:
    found = cleanup.mounts_below(Path("/var/tmp/run-1"), MOUNTS)
    assert found == ["/var/tmp/run-1/alpha/my mask", "/var/tmp/run-1"]


@pytest.mark.parametrize(
    ("table", "is_member"),
    [
        ("0::/demo-1\n", True),
        ("4:memory:/outer/demo-1/abc\n0::/\n", True),
        ("0::/demo-10/abc\n", False),
        ("1:name=demo-1:/\n", False),
        ("", False),
    ],
)
def test_a_process_belongs_to_a_group_by_a_folder_of_its_path(table: str, is_member: bool) -> None:
    assert cleanup.is_in_cgroup(table, "demo-1") is is_member


def test_descendants_are_found_through_generations_and_strangers_are_not() -> None:
    tree = {2: 1, 10: 2, 11: 10, 12: 11, 20: 1}
    assert cleanup.descendants(2, tree) == {10, 11, 12}


def machine(links: str = "", tables: tuple[str, ...] = (), namespaces: str = "") -> Machine:
    return Machine(
        links=frozenset(links.split()), tables=frozenset(tables), namespaces=frozenset(namespaces.split())
    )


def test_only_new_things_with_a_mark_of_ours_count_as_left_behind() -> None:
    before = machine("eth0 iv46b4old", ("table inet insula_46b4",))
    after = machine(
        "eth0 iv46b4old iv46b4new iv77f0abc",
        ("table inet insula_46b4", "table inet filter", "table inet insula_8ed3"),
        "other",
    )
    assert cleanup.appeared(before, after, marks=("iv46b4", "insula_8ed3")) == [
        "interface iv46b4new",
        "nft table inet insula_8ed3",
    ]


def test_waiting_ends_at_its_deadline() -> None:
    assert cleanup.wait_until(lambda: True)
    assert not cleanup.wait_until(lambda: False, deadline_s=0.05)


def test_cgroups_are_found_however_deep_they_stand(tmp_path: Path) -> None:
    inner = tmp_path / "memory/outer/scope/demo-1/abc"
    inner.mkdir(parents=True)
    (tmp_path / "unified/demo-10").mkdir(parents=True)
    own = tmp_path / "cpu" / own_name("demo-1")
    own.mkdir(parents=True)
    assert cleanup.cgroups_named("demo-1", root=tmp_path) == [inner, inner.parent, own]


def test_a_second_run_waits_for_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cleanup, "LOCK", f"\0{uuid.uuid4()}")
    monkeypatch.setattr(cleanup, "ALONE_S", 0.05)
    with cleanup.alone("first"), pytest.raises(SystemExit), cleanup.alone("second"):
        pass
    with cleanup.alone("third"):
        pass
    assert capsys.readouterr().out == "second: another run works on this machine; waiting for its end\n"
