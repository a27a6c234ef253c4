# SPDX-License-Identifier: Apache-2.0
"""Volumes: how many there may be, and that a record always has its folder, whoever else works with that name."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import insula.runtime.volumes
from insula.daemon.tenants import Limits
from insula.model.errors import (
    Conflict,
    DiskFull,
    InUse,
    LimitRefused,
    NameTaken,
    QuotaExceeded,
    VolumeNotFound,
)
from insula.model.lifecycle import Status
from insula.model.quota import Quota, Resource
from insula.model.record import ContainerRecord, ImageConfig, VolumeRecord
from insula.model.spec import MountKind, MountWish, Spec, VolumeWish
from insula.runtime import quotas
from insula.runtime.store import Store
from insula.runtime.trees import remove_tree
from insula.runtime.volumes import Volumes
from waiting import DEADLINE_S


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "db.sqlite")


@pytest.fixture
def volumes(tmp_path: Path, store: Store) -> Volumes:
    return Volumes(tmp_path / "volumes", store)


def test_one_volume_too_many_is_refused_and_not_made(tmp_path: Path, store: Store) -> None:
    limits = Limits(store, built_in=Quota(limits={Resource.VOLUMES: 2}))
    volumes = Volumes(tmp_path / "volumes", store, allowance=limits)
    volumes.create("alice", VolumeWish())
    volumes.ensure("alice", "data")
    with pytest.raises(QuotaExceeded, match="volumes: 2 used, 1 wished, the limit is 2"):
        volumes.ensure("alice", "more")
    assert volumes.ensure("alice", "data").name == "data"
    assert len(list((tmp_path / "volumes/alice").iterdir())) == 2
    volumes.create("bob", VolumeWish())
    volumes.delete("alice", "data")
    volumes.create("alice", VolumeWish())


@pytest.mark.parametrize(
    ("resource", "most"),
    [
        (Resource.VOLUMES, 1000),
        (Resource.CONTAINERS, 2000),
        (Resource.NETWORKS, 200),
        (Resource.PROFILES, 200),
    ],
)
def test_without_a_word_so_many_things_are_a_tenants(tmp_path: Path, resource: Resource, most: int) -> None:
    limits = Limits(Store(tmp_path / "db.sqlite"), built_in=quotas.built_in())
    limits.check("alice", resource, used=most - 1)
    with pytest.raises(QuotaExceeded, match=f"{most} used, 1 wished, the limit is {most}"):
        limits.check("alice", resource, used=most)


class Emptying:
    """Removals of folders, the first of which is held until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def remove(self, folder: Path) -> None:
        if not self.begun.is_set():
            self.begun.set()
            assert self.go_on.wait(DEADLINE_S)
        remove_tree(folder)


def test_a_volume_made_while_one_of_its_name_is_emptied_has_its_folder(
    volumes: Volumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = volumes.path(volumes.create("alice", VolumeWish(name="data")))
    (path / "old").touch()
    emptying = Emptying()
    monkeypatch.setattr(insula.runtime.volumes, "remove_tree", emptying.remove)
    with ThreadPoolExecutor() as threads:
        removal = threads.submit(volumes.delete, "alice", "data")
        assert emptying.begun.wait(DEADLINE_S)
        try:
            record = volumes.create("alice", VolumeWish(name="data"))
        finally:
            emptying.go_on.set()
        removal.result(DEADLINE_S)
    assert volumes.path(record).is_dir()
    assert not list(volumes.path(record).iterdir())
    assert [each.name for each in (tmp_path / "volumes").iterdir()] == ["alice"]


def test_what_a_crash_left_of_removals_goes_at_the_next_start(
    volumes: Volumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk" / "volumes"
    disk.mkdir(parents=True)
    (tmp_path / "volumes/bob").symlink_to(disk)
    for tenant in ("alice", "bob"):
        (volumes.path(volumes.create(tenant, VolumeWish(name="data"))) / "file").touch()
        volumes.create(tenant, VolumeWish(name="kept"))
    with monkeypatch.context() as crash:
        crash.setattr(insula.runtime.volumes, "remove_tree", lambda _folder: None)
        for tenant in ("alice", "bob"):
            volumes.delete(tenant, "data")
    assert list(tmp_path.rglob("file"))
    volumes.drop_leftovers()
    assert not list(tmp_path.rglob("file"))
    assert sorted(each.name for each in (tmp_path / "volumes").iterdir()) == ["alice", "bob"]
    assert [each.name for each in disk.parent.iterdir()] == ["volumes"]
    assert all(volumes.path(each).is_dir() for each in (volumes.ensure(t, "kept") for t in ("alice", "bob")))


def test_a_folder_without_a_record_does_not_come_back_to_life(volumes: Volumes, tmp_path: Path) -> None:
    (tmp_path / "volumes/alice/data/old").mkdir(parents=True)
    assert not list(volumes.path(volumes.create("alice", VolumeWish(name="data"))).iterdir())


def test_a_name_that_is_taken_keeps_its_files(volumes: Volumes) -> None:
    path = volumes.path(volumes.create("alice", VolumeWish(name="data")))
    (path / "file").touch()
    with pytest.raises(NameTaken):
        volumes.create("alice", VolumeWish(name="data"))
    assert (path / "file").exists()


def test_a_folder_that_cannot_be_made_is_told_and_leaves_no_record(
    volumes: Volumes, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "volumes/alice").symlink_to(tmp_path / "nowhere")
    with pytest.raises(LimitRefused, match="cannot make volume `data`: File exists"):
        volumes.create("alice", VolumeWish(name="data"))
    assert store.find_volume("alice", "data") is None


def test_a_record_that_cannot_be_written_leaves_no_folder(
    volumes: Volumes, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_record: VolumeRecord) -> None:
        raise DiskFull("cannot write the store")

    monkeypatch.setattr(store, "add_volume", refuse)
    with pytest.raises(DiskFull):
        volumes.create("alice", VolumeWish(name="data"))
    assert not list((tmp_path / "volumes/alice").iterdir())


def test_ensure_tells_what_it_made_and_nothing_else(volumes: Volumes) -> None:
    made: list[VolumeRecord] = []
    volumes.create("alice", VolumeWish(name="data"))
    volumes.ensure("alice", "data", on_made=made.append)
    assert not made
    named, nameless = (volumes.ensure("alice", name, on_made=made.append) for name in ("more", ""))
    assert made == [named, nameless]
    assert nameless.anonymous


def container(name: str, volume: str) -> ContainerRecord:
    mounts = (MountWish(kind=MountKind.VOLUME, source=volume, target="/data"),)
    return ContainerRecord(
        id=name * 64,
        name=name,
        tenant="alice",
        spec=Spec(name=name, image="box", mounts=mounts),
        image="1" * 64,
        layers=(),
        config=ImageConfig(),
        status=Status.CREATED,
        uid_base=100_000,
        created_at=1.0,
    )


def test_a_container_is_not_written_down_without_its_volume(volumes: Volumes, store: Store) -> None:
    record = container("a", "data")
    volumes.ensure("alice", "data")
    volumes.delete("alice", "data")
    with pytest.raises(Conflict, match="`data`: somebody has removed it meanwhile"), store.transaction():
        volumes.need("alice", record.spec)
        store.add_container(record)
    assert not store.list_containers()


def test_a_volume_goes_only_with_its_last_container(volumes: Volumes, store: Store) -> None:
    volumes.ensure("alice", "data")
    store.add_container(container("a", "data"))
    with pytest.raises(InUse, match="container `a` uses it"):
        volumes.delete("alice", "data")
    store.add_container(container("b", "data"))
    with pytest.raises(InUse, match="container `b` uses it"):
        volumes.delete("alice", "data", with_container="a" * 64)
    store.delete_container("b" * 64)
    volumes.delete("alice", "data", with_container="a" * 64)
    assert store.find_volume("alice", "data") is None


def test_names_and_folders_agree_however_many_work_with_them(volumes: Volumes, store: Store) -> None:
    def work(number: int) -> None:
        with contextlib.suppress(NameTaken, VolumeNotFound):
            if number % 2:
                volumes.create("alice", VolumeWish(name=f"v{number % 3}"))
            else:
                volumes.delete("alice", f"v{number % 3}")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(600)))
    records = store.list_volumes("alice")
    assert {each.name for each in records} == {
        each.name for each in (volumes.path(volumes.ensure("alice", "last"))).parent.iterdir()
    } - {"last"}
