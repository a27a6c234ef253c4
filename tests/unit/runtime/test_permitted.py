# SPDX-License-Identifier: Apache-2.0
"""Each field that a policy restricts, on each way by which a wish comes in: refused without the grant, taken with it."""

import contextlib
import itertools
from collections.abc import Callable
from ipaddress import IPv4Network
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from insula.kernel import caps
from insula.migrate.preflight import check_identity
from insula.model.errors import InsulaError, InvalidSpec, NotPermitted, ProtocolError
from insula.model.grant import Action, Grant, Principal
from insula.model.lifecycle import Status
from insula.model.permit import DEFAULT_CAPABILITIES, EVERYTHING, FileUser, Permit
from insula.model.record import ContainerRecord, ImageConfig
from insula.model.spec import DeviceWish, MountKind, MountWish, PortMapping, RestoreWish, Spec
from insula.runtime.create import create
from insula.runtime.permitted import ceiling_of, check_permitted, check_subnet, check_uplink
from insula.runtime.restore import restore
from insula.runtime.start import start_locked

USER = FileUser(name="alice", uid=1000, gid=1000, home="/home/alice")
USUAL = Permit(opens_as=USER)


def spec(**fields: Any) -> Spec:
    return Spec(image="host", name="web", command=("true",), **fields)


def port(number: int, count: int = 1) -> Spec:
    return spec(ports=(PortMapping(host_port=number, container_port=80, count=count),))


def bind(source: str) -> Spec:
    return spec(mounts=(MountWish(kind=MountKind.BIND, source=source, target="/data"),))


#: Wish that is over what everybody may.
OVER = {
    "capability": spec(capabilities_add=("SYS_ADMIN",)),
    "all capabilities": spec(capabilities_add=("ALL",)),
    "capability among others": spec(capabilities_add=("CHOWN", "cap_sys_module"), capabilities_drop=("ALL",)),
    "port": port(1023),
    "first port": port(1),
    "range that begins below": port(1000, count=100),
    "port on one address": spec(
        ports=(PortMapping(host_address="127.0.0.1", host_port=22, container_port=1),)
    ),
    "udp port": spec(ports=(PortMapping(host_port=53, container_port=53, protocol="udp"),)),
    "device": spec(devices=(DeviceWish(source="/dev/fuse"),)),
    "folder of others": bind("/etc"),
    "root folder": bind("/"),
    "folder with the home's name before": bind("/home/alice2"),
    "home left by dots": bind("/home/alice/../bob"),
    "kernel's folder": bind("/proc"),
    "read-only": spec(mounts=(MountWish(kind=MountKind.BIND, source="/etc", target="/e", read_only=True),)),
    "after a volume": spec(
        mounts=(
            MountWish(kind=MountKind.VOLUME, source="v", target="/v"),
            MountWish(kind=MountKind.BIND, source="/etc", target="/e"),
        )
    ),
}
UNDER = {
    "nothing": spec(),
    "capability": spec(capabilities_add=("NET_ADMIN",)),
    "port": port(1024),
    "picked port": port(0, count=10),
    "tmpfs": spec(mounts=(MountWish(kind=MountKind.TMPFS, target="/t"),)),
}


class Reached(InsulaError):
    """The way went on behind the check."""


def record_of(wish: Spec) -> ContainerRecord:
    return ContainerRecord(
        id="a" * 64, name="web", tenant="alice", spec=wish, image="i", layers=(), config=ImageConfig(),
        status=Status.CREATED, uid_base=0x20000000, created_at=1.0, creator="alice", creator_uid=1000,
    )  # fmt: skip


def world(permit: Permit) -> Any:
    """Return a runtime in which everything but the check is a stop."""

    def stop(*_: object, **__: object) -> Any:
        raise Reached("behind the check")

    return SimpleNamespace(
        permits=SimpleNamespace(
            of_caller=lambda _grant: permit,
            of_creator=lambda _record: permit,
            of_tenant=lambda _tenant: permit,
        ),
        images=SimpleNamespace(
            get=lambda *_: SimpleNamespace(config=ImageConfig(), layers=(), id="i"), layer_folders=stop
        ),
        store=SimpleNamespace(
            list_containers=lambda _t: [],
            count_containers=lambda _t: 0,
            change_container=lambda *_: None,
            list_checkpoints=stop,
            list_tenants=stop,
        ),
        volumes=SimpleNamespace(ensure=lambda _t, name, **_: SimpleNamespace(name=name)),
        networks=SimpleNamespace(default_for=stop, get=stop, activate=stop),
        spawner=SimpleNamespace(start=stop, prepare=stop),
        allowance=SimpleNamespace(check=lambda *_a, **_k: None, limit=lambda *_a, **_k: None),
        locked=lambda _id: contextlib.nullcontext(),
        folders=None,
        before_start=stop,
    )


def by_create(wish: Spec, permit: Permit) -> None:
    grant = Grant(principal=Principal(name="alice", uid=1000), action=Action.CREATE, tenant="alice")
    create(grant, world(permit), wish)


def by_start(wish: Spec, permit: Permit) -> None:
    start_locked(world(permit), record_of(wish))


def by_restore(wish: Spec, permit: Permit) -> None:
    grant = Grant(principal=Principal(name="alice", uid=1000), action=Action.CHECKPOINT, tenant="alice")
    record = replace(record_of(wish), status=Status.EXITED)
    runtime = world(permit)
    runtime.find = lambda *_: record
    runtime.store.get_container = lambda _id: record
    restore(grant, runtime, "web", wish=RestoreWish(), reporter=None)  # type: ignore[arg-type]


def by_arrival(wish: Spec, permit: Permit) -> None:
    volumes = [SimpleNamespace(name=each.source) for each in wish.mounts]
    check_identity(world(permit), SimpleNamespace(record=record_of(wish), volumes=volumes))  # type: ignore[arg-type]
    raise Reached("behind the check")


@pytest.mark.parametrize("tenant", ["", "Alice", "a.b", "a@b", "0", "machine$", "a" * 33, "../x"])
def test_who_arrives_belongs_to_a_tenant_that_there_can_be(tenant: str) -> None:
    record = replace(record_of(spec()), tenant=tenant)
    with pytest.raises(ProtocolError):
        check_identity(world(Permit()), SimpleNamespace(record=record, volumes=[]))  # type: ignore[arg-type]


def by_port_picked_elsewhere(wish: Spec, permit: Permit) -> None:
    """A peer says that it had picked what is wished, and that the wish was any port."""
    ports = tuple(replace(each, host_port=0) for each in wish.ports)
    record = replace(record_of(replace(wish, ports=ports)), ports=wish.ports)
    volumes = [SimpleNamespace(name=each.source) for each in wish.mounts]
    check_identity(world(permit), SimpleNamespace(record=record, volumes=volumes))  # type: ignore[arg-type]
    raise Reached("behind the check")


WAYS: dict[str, Callable[[Spec, Permit], None]] = {
    "create": by_create,
    "start": by_start,
    "restore": by_restore,
    "arrival": by_arrival,
    "port picked elsewhere": by_port_picked_elsewhere,
}


@pytest.mark.parametrize(("way", "field"), list(itertools.product(WAYS, OVER)))
def test_what_was_not_granted_is_refused_on_each_way(way: str, field: str) -> None:
    with pytest.raises(NotPermitted):
        WAYS[way](OVER[field], USUAL)


@pytest.mark.parametrize(("way", "field"), list(itertools.product(WAYS, UNDER)))
def test_what_everybody_may_passes_on_each_way(way: str, field: str) -> None:
    with pytest.raises(Reached):
        WAYS[way](UNDER[field], USUAL)


@given(st.integers(1, 65535), st.integers(1, 300), st.frozensets(st.integers(1, 1023), max_size=20))
def test_a_port_passes_only_if_each_low_one_is_granted(
    first: int, count: int, granted: frozenset[int]
) -> None:
    permit = Permit(opens_as=USER, low_ports=granted)
    low = {number for number in range(first, first + count) if number < 1024}
    if low <= granted:
        check_permitted(port(first, count), permit)
    else:
        with pytest.raises(NotPermitted):
            check_permitted(port(first, count), permit)


@given(st.sets(st.sampled_from(sorted(caps.ALL))), st.sets(st.sampled_from(sorted(caps.ALL))))
def test_a_capability_passes_only_if_it_is_granted(wished: set[str], granted: set[str]) -> None:
    permit = Permit(capabilities=frozenset(granted))
    wish = spec(capabilities_add=tuple(wished), capabilities_drop=("ALL",))
    if wished <= granted:
        check_permitted(wish, permit)
    else:
        with pytest.raises(NotPermitted):
            check_permitted(wish, permit)


_PARTS = st.sampled_from(["home", "alice", "bob", "..", ".", "", "etc", "srv", "proc", "data"])


@given(st.lists(_PARTS, max_size=6), st.sets(st.sampled_from(["~", "/srv", "/", "/srv/data", "/proc"])))
def test_a_folder_passes_only_below_a_granted_one(parts: list[str], granted: set[str]) -> None:
    source = "/" + "/".join(parts)
    permit = Permit(opens_as=USER, binds=tuple(sorted(granted)))
    try:
        ceiling, rest = ceiling_of(MountWish(kind=MountKind.BIND, source=source, target="/x"), permit)
    except NotPermitted:
        return
    assert ".." not in source.split("/")
    assert ceiling in {"/home/alice" if each == "~" else each for each in granted}
    assert not rest.startswith(("/", ".."))
    assert not source.startswith("//proc") or ceiling != "/proc"


@pytest.mark.parametrize("source", ["/proc", "/proc/1", "/sys/kernel", "/dev", "/dev/sda"])
def test_the_kernels_folders_are_never_granted(source: str) -> None:
    permit = Permit(opens_as=USER, binds=("/", "/proc", "/sys", "/dev"))
    with pytest.raises(NotPermitted):
        check_permitted(bind(source), permit)


@pytest.mark.parametrize("home", ["", "/", ".", "nowhere"])
def test_an_account_without_a_home_has_no_folder(home: str) -> None:
    user = FileUser(name="x", uid=1, gid=1, home=home)
    with pytest.raises(NotPermitted):
        check_permitted(bind("/"), Permit(opens_as=user))
    with pytest.raises(NotPermitted):
        check_permitted(bind("/etc"), Permit(opens_as=FileUser(name="x", uid=1, gid=1, home="")))


def test_who_has_no_account_here_mounts_nothing() -> None:
    with pytest.raises(NotPermitted):
        check_permitted(bind("/srv"), Permit(binds=("/srv",), opens_as=None))


def test_an_uplink_has_to_be_granted() -> None:
    check_uplink("", USUAL)
    check_uplink("eth1", EVERYTHING)
    check_uplink("eth1", Permit(uplinks=frozenset({"eth1"})))
    for permit in (USUAL, Permit(uplinks=frozenset({"eth0"}))):
        with pytest.raises(NotPermitted):
            check_uplink("eth1", permit)


POOL = IPv4Network("10.64.0.0/12")


@pytest.mark.parametrize("subnet", ["", "10.64.7.0/24", "10.64.0.0/12", "fd00:7::/64"])
def test_subnets_of_the_pool_and_unique_local_ones_are_everybodys(subnet: str) -> None:
    check_subnet(subnet, USUAL, pool=POOL)


@pytest.mark.parametrize("subnet", ["8.8.8.0/24", "10.0.0.0/8", "192.168.7.0/24", "2001:db8::/64", "::/0"])
def test_other_subnets_have_to_be_granted(subnet: str) -> None:
    check_subnet(subnet, EVERYTHING, pool=POOL)
    check_subnet(subnet, Permit(subnets=frozenset({"0.0.0.0/0", "::/0"})), pool=POOL)
    for permit in (USUAL, Permit(subnets=frozenset({"8.8.8.0/25", "2001:db8:1::/48"}))):
        with pytest.raises(NotPermitted, match=f"cannot use subnet `{subnet}`"):
            check_subnet(subnet, permit, pool=POOL)


def test_what_is_no_subnet_is_refused_by_who_reads_it() -> None:
    check_subnet("nonsense", USUAL, pool=POOL)


@pytest.mark.parametrize("field", OVER)
def test_an_admin_may_all_of_it(field: str) -> None:
    check_permitted(OVER[field], EVERYTHING)


#: Fields of a wish, and whether a policy restricts them; a new field has to be thought about.
FIELDS = {
    "restricted": "mounts devices ports capabilities_add",
    "only ever less": "capabilities_drop read_only profile",
    "the tenant's own": "image name network address labels max_pause_ms restart auto_remove stop_signal stop_timeout_s",
    "within the container": "command entrypoint environment working_directory user hostname tty stdin_open system rlimits",
    "quotas": "memory_bytes memory_swap_bytes cpus_milli pids disk_bytes inodes",
}


def test_each_field_of_a_wish_was_thought_about() -> None:
    thought = [name for names in FIELDS.values() for name in names.split()]
    assert sorted(thought) == sorted(Spec.__struct_fields__)


@pytest.mark.parametrize("field", ["privileged", "pid", "ipc", "userns", "cgroup_parent", "security_opt"])
def test_there_is_no_word_for_what_nobody_gets(field: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.json.decode(b'{"image": "host", "%s": true}' % field.encode(), type=Spec)


def test_the_usual_capabilities_are_those_of_every_container_and_some_more() -> None:
    assert caps.DEFAULT <= DEFAULT_CAPABILITIES
    assert not DEFAULT_CAPABILITIES & {
        "SYS_ADMIN",
        "SYS_MODULE",
        "SYS_RAWIO",
        "BPF",
        "PERFMON",
        "SYS_BOOT",
        "MAC_ADMIN",
    }


def test_a_bind_mount_is_absolute() -> None:
    with pytest.raises(InvalidSpec):
        by_create(bind("etc"), EVERYTHING)
