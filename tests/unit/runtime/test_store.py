# SPDX-License-Identifier: Apache-2.0
"""The store: uniqueness, references, atomic changes, owners."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from insula.model.errors import Conflict, ContainerNotFound, InsulaError, InUse, NameTaken
from insula.model.lifecycle import Status
from insula.model.record import (
    CheckpointRecord,
    ContainerRecord,
    HostRecord,
    ImageRecord,
    Lease,
    NetworkRecord,
    OperationRecord,
    OperationStatus,
    VolumeRecord,
)
from insula.model.spec import Spec
from insula.runtime.store import Store
from records import container_record


def container(container_id: str, *, name: str = "web", tenant: str = "alice") -> ContainerRecord:
    spec = Spec(image="host", labels={"a": "b"})
    return container_record(
        id=container_id,
        name=name,
        tenant=tenant,
        spec=spec,
        image="sha256:1",
        status=Status.CREATED,
        owner="alpha",
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "db.sqlite")
    yield opened
    opened.close()


def test_a_container_survives_a_restart(tmp_path: Path) -> None:
    first = Store(tmp_path / "db.sqlite")
    first.add_container(container("a" * 64))
    first.close()
    second = Store(tmp_path / "db.sqlite")
    assert second.get_container("a" * 64) == container("a" * 64)
    second.close()


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "db.sqlite").close()
    other = sqlite3.connect(tmp_path / "db.sqlite")
    other.execute("UPDATE schema SET version = 999")
    other.commit()
    other.close()
    with pytest.raises(InsulaError, match="newer"):
        Store(tmp_path / "db.sqlite")


def test_a_name_is_unique_within_a_tenant_only(store: Store) -> None:
    store.add_container(container("a" * 64))
    store.add_container(container("b" * 64, tenant="bob"))
    with pytest.raises(NameTaken):
        store.add_container(container("c" * 64))
    store.add_container(container("d" * 64, name="db"))
    with pytest.raises(NameTaken):
        store.update_container(container("d" * 64, name="web"))


def test_a_tenant_does_not_find_the_container_of_another(store: Store) -> None:
    store.add_container(container("a" * 64))
    for ref in ("web", "a" * 64, "aaa"):
        with pytest.raises(ContainerNotFound):
            store.find_container("bob", ref)
        assert store.find_container(None, ref).tenant == "alice"


def test_a_tenants_list_has_its_own_alone(store: Store) -> None:
    store.add_container(container("a" * 64))
    store.add_container(container("b" * 64, tenant="bob"))
    for tenant, ids in (
        ("alice", ["a" * 64]),
        ("bob", ["b" * 64]),
        ("carol", []),
        (None, ["a" * 64, "b" * 64]),
    ):
        assert [each.id for each in store.list_containers(tenant)] == ids
    assert (store.count_containers("alice"), store.count_containers("carol")) == (1, 0)


def test_a_name_goes_before_a_prefix(store: Store) -> None:
    store.add_container(container("a" * 64, name="b"))
    store.add_container(container("b" * 64, name="x"))
    assert store.find_container("alice", "b").id == "a" * 64


@settings(max_examples=60)
@given(
    st.sets(st.text("ab01", min_size=4, max_size=4), min_size=1, max_size=12),
    st.text("ab01xg%_ ", max_size=5),
)
def test_a_prefix_finds_exactly_the_one_that_begins_so(ids: set[str], ref: str) -> None:
    store = Store(Path(":memory:"))
    for number, container_id in enumerate(sorted(ids)):
        store.add_container(container(container_id, name=f"name-{number}"))
    matching = [each for each in ids if ref and each.startswith(ref)]
    if len(matching) == 1:
        assert store.find_container("alice", ref).id == matching[0]
    else:
        with pytest.raises(Conflict if matching else ContainerNotFound):
            store.find_container("alice", ref)
    store.close()


def test_a_change_that_fails_changes_nothing(store: Store) -> None:
    store.add_container(container("a" * 64))

    def change(_: ContainerRecord) -> ContainerRecord:
        raise Conflict("no")

    with pytest.raises(Conflict):
        store.change_container("a" * 64, change)
    assert store.get_container("a" * 64) == container("a" * 64)


def test_changes_by_many_threads_are_not_lost(store: Store) -> None:
    store.add_container(container("a" * 64))

    def count() -> None:
        for _ in range(50):
            store.change_container("a" * 64, lambda old: replace(old, restart_count=old.restart_count + 1))

    threads = [threading.Thread(target=count) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get_container("a" * 64).restart_count == 300


def test_only_one_owner_is_committed_per_generation(store: Store) -> None:
    store.add_container(container("a" * 64))
    assert store.commit_owner("a" * 64, 1, new_owner="beta")
    assert not store.commit_owner("a" * 64, 1, new_owner="gamma")
    record = store.get_container("a" * 64)
    assert (record.owner, record.generation) == ("beta", 2)


def test_listeners_hear_of_changes_and_of_the_end(store: Store) -> None:
    heard: list[tuple[str, str]] = []
    store.subscribe(lambda ref, record: heard.append((ref, record.status if record else "gone")))
    store.add_container(container("a"))
    store.change_container("a", lambda old: replace(old, status=Status.RUNNING))
    store.delete_container("a")
    store.delete_container("a")
    assert heard == [("a", "created"), ("a", "running"), ("a", "gone")]


def test_listeners_hear_of_a_change_when_others_can_use_the_store_again(store: Store) -> None:
    waited: list[bool] = []

    def look(ref: str, _record: ContainerRecord | None) -> None:
        # As who holds a lock that the listener needs: while the store is held both would wait for ever.
        other = threading.Thread(target=store.get_container, args=(ref,), daemon=True)
        other.start()
        other.join(2.0)
        waited.append(other.is_alive())

    store.subscribe(look)
    with store.transaction():
        store.add_container(container("a"))
        assert waited == []
    with store.transaction(), store.transaction():
        store.change_container("a", lambda old: replace(old, status=Status.RUNNING))
    assert waited == [False, False]


def test_listeners_never_hear_of_what_was_taken_back(store: Store) -> None:
    heard: list[str] = []
    store.subscribe(lambda ref, _record: heard.append(ref))
    with pytest.raises(Conflict), store.transaction():
        store.add_container(container("a"))
        raise Conflict("cannot")
    store.add_container(container("b", name="db"))
    assert heard == ["b"]


def test_an_image_name_moves_to_the_newer_image_of_the_same_tenant(store: Store) -> None:
    store.save_image(ImageRecord(id="1", names=("redis:latest",)))
    store.save_image(ImageRecord(id="2", names=("redis:latest",), tenant="alice"))
    store.save_image(ImageRecord(id="3", names=("redis:latest", "r:1"), tenant="alice"))
    assert store.get_image("2").names == ()
    assert [
        (i.id if (i := store.find_image_by_name(who, "redis:latest")) else "") for who in ("alice", "bob")
    ] == ["3", "1"]
    assert [image.id for image in store.list_images("bob")] == ["1"]
    store.delete_image("3")
    assert store.find_image_by_name("alice", "r:1") is None


def test_an_address_is_leased_once_and_a_network_with_leases_stays(store: Store) -> None:
    network = NetworkRecord(
        id="n", name="default", tenant="a", subnet="10.0.0.0/24", gateway="10.0.0.1", bridge="b"
    )
    store.save_network(network)
    store.save_lease(Lease(network="n", address="10.0.0.2", mac="m", container="c"))
    store.save_lease(Lease(network="n", address="10.0.0.2", mac="m2", container="c"))
    with pytest.raises(Conflict):
        store.save_lease(Lease(network="n", address="10.0.0.2", mac="m", container="d"))
    with pytest.raises(InUse):
        store.delete_network("n")
    with pytest.raises(NameTaken):
        store.save_network(replace(network, id="other"))
    assert [lease.mac for lease in store.leases_of("c")] == ["m2"]
    store.delete_lease("n", "10.0.0.2")
    store.delete_network("n")
    assert store.list_networks() == []


def test_volumes_checkpoints_hosts_and_the_journal_come_back(store: Store) -> None:
    volume = VolumeRecord(name="data", tenant="alice")
    store.add_volume(volume)
    with pytest.raises(NameTaken):
        store.add_volume(volume)
    assert store.list_volumes("alice") == [store.get_volume("alice", "data")] == [volume]
    checkpoint = CheckpointRecord(
        name="c",
        container="a",
        tenant="alice",
        created_at=1.0,
        size_bytes=1,
        criu_version="4",
        kernel_release="6",
    )
    store.save_checkpoint(checkpoint)
    assert store.list_checkpoints("a") == [checkpoint]
    host = HostRecord(name="beta", address="1.2.3.4:7", fingerprint="f")
    store.save_host(host)
    with pytest.raises(NameTaken):
        store.save_host(HostRecord(name="beta", address="1.2.3.4:7", fingerprint="other"))
    assert store.list_hosts() == [host]
    assert store.find_host_by_fingerprint("f") == host
    store.write_journal("migration/1", b"x")
    assert (store.list_journal("migration/"), store.read_journal("migration/1")) == (["migration/1"], b"x")
    store.delete_journal("migration/1")
    assert store.list_journal("") == []


def test_tenants_get_places_in_order_and_keep_them(store: Store) -> None:
    assert [store.tenant(name).position for name in ("a", "b", "a", "c")] == [0, 1, 0, 2]
    assert [tenant.name for tenant in store.list_tenants()] == ["a", "b", "c"]


def save_operation(store: Store, number: int, *, tenant: str, status: OperationStatus) -> None:
    store.save_operation(
        OperationRecord(
            id=f"{tenant}{number}", kind="k", tenant=tenant, subject="s", status=status, created_at=number
        )
    )


def test_pruning_keeps_running_and_the_newest_operations_of_a_tenant(store: Store) -> None:
    for number in range(5):
        status = OperationStatus.RUNNING if number == 0 else OperationStatus.DONE
        save_operation(store, number, tenant="t", status=status)
    assert store.prune_operations("t", keep=2) == 2
    assert [operation.id for operation in store.list_operations()] == ["t0", "t3", "t4"]


def test_pruning_leaves_other_tenants_operations(store: Store) -> None:
    save_operation(store, 0, tenant="bob", status=OperationStatus.DONE)
    for number in range(1, 5):
        save_operation(store, number, tenant="alice", status=OperationStatus.FAILED)
    assert store.prune_operations("alice", keep=1) == 3
    assert [operation.id for operation in store.list_operations()] == ["bob0", "alice4"]
