# SPDX-License-Identifier: Apache-2.0
"""Create a container: check what is wished, resolve it, lease an address, make its folders, write it down."""

import os
import re
import resource
import secrets
import time
from contextlib import ExitStack, suppress

from msgspec.structs import replace

from insula.model.errors import InUse, InvalidSpec, LimitRefused, NetworkNotFound, VolumeNotFound
from insula.model.grant import Grant
from insula.model.labels import check_labels
from insula.model.lifecycle import Status
from insula.model.permit import Permit
from insula.model.profile_text import check_applied
from insula.model.record import Attachment, ContainerRecord, ImageRecord, VolumeRecord
from insula.model.spec import MountKind, MountWish, RestartKind, Spec
from insula.runtime import own_disk, quotas
from insula.runtime.binds import check_binds
from insula.runtime.context import Runtime
from insula.runtime.devices import check_devices, device_plans
from insula.runtime.own_disk import remove_folder
from insula.runtime.permitted import check_permitted
from insula.runtime.plan import arguments_of, capabilities_of
from insula.runtime.signals import signal_number

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_HOSTNAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?")
MINIMUM_MEMORY_BYTES = 6 << 20
"""Below this not even the way to the program fits: the number is docker's."""
MINIMUM_DISK_BYTES = 16 << 20
"""A smaller file system has hardly room for its journal."""
MINIMUM_INODES = 100
MAX_ENVIRONMENT_BYTES = 128 << 10

_FIRST = "brave calm clever eager fair gentle happy keen kind lively lucky mild neat proud quick quiet swift warm".split()
_SECOND = "alder birch cedar coral dune elm fern heron island lagoon maple otter pebble reef robin shore tide willow".split()


def create(grant: Grant, runtime: Runtime, spec: Spec) -> ContainerRecord:
    """Create a container of the grant's tenant.

    Raises: InvalidSpec, Denied, ImageNotFound, NetworkNotFound, NameTaken, AddressPoolExhausted, LimitRefused,
    QuotaExceeded, DiskFull; Conflict if somebody removes a volume of it meanwhile.
    """
    tenant = grant.tenant
    image = runtime.images.get(tenant, spec.image)
    spec = replace(spec, name=spec.name or _free_name(runtime, tenant))
    check_spec(spec)
    quotas.check_wish(runtime, tenant, spec)
    arguments_of(spec, image.config)
    container_id = secrets.token_hex(32)
    with ExitStack() as undo:
        spec = _with_volumes(runtime, tenant, spec=spec, image=image, undo=undo)
        for mount in spec.mounts:  # once more: the image's own volumes have come in
            _check_mount(mount)
        permit = runtime.permits.of_caller(grant)
        check_permitted(spec, permit)
        check_binds(spec.mounts, permit)
        device_plans(spec.devices)
        spec = replace(spec, mounts=tuple(_resolved(each, permit) for each in spec.mounts))
        attachment = _lease(runtime, tenant, spec=spec, container_id=container_id)
        undo.callback(runtime.networks.release, container_id)
        undo.callback(remove_folder, runtime.folders.container(container_id))
        make_folders(runtime, container_id, tenant=tenant, spec=spec)
        record = ContainerRecord(
            id=container_id,
            name=spec.name,
            tenant=tenant,
            spec=spec,
            image=image.id,
            layers=tuple(layer.digest for layer in image.layers),
            config=image.config,
            status=Status.CREATED,
            uid_base=runtime.uid_base_of(tenant),
            created_at=time.time(),
            attachment=attachment,
            owner=runtime.host_name,
            creator=grant.principal.name,
            creator_uid=grant.principal.uid,
            creator_is_admin=grant.principal.is_admin,
        )
        with runtime.store.transaction():
            quotas.check_count(runtime, tenant)
            quotas.check_disk(runtime, tenant, spec)
            write_down(runtime, record)
        undo.pop_all()
    return record


def write_down(runtime: Runtime, record: ContainerRecord) -> None:
    """Remember a new container, whose volumes nobody can remove from now on.  Raises: NameTaken, Conflict."""
    with runtime.store.transaction():
        runtime.volumes.need(record.tenant, record.spec)
        runtime.store.add_container(record)


def make_folders(runtime: Runtime, container_id: str, *, tenant: str, spec: Spec) -> None:
    """Make a container's folders, on its tenant's disk and its own if there are any; the upper one is its root's, mode 0755.

    Undo: `remove_folder`.  Raises: DiskFull, Unsupported, LimitRefused.
    """
    folders = runtime.folders
    place, home = folders.container(container_id), runtime.home_of(tenant)
    if home is not None:
        # The link first: what it leads to is found, and removed with it, after a crash.
        place.symlink_to(home / container_id)
    os.makedirs(home / container_id if home is not None else place, mode=0o700)
    own_disk.make(place, spec, is_nested=home is not None)
    for folder in (folders.upper(container_id), folders.work(container_id)):
        folder.mkdir(mode=0o755)


def check_spec(spec: Spec) -> None:
    """Check every field that the types cannot; what a policy restricts: `permitted.py`.

    Raises: InvalidSpec, LimitRefused, naming the field, the value and the cure.
    """
    if not NAME.fullmatch(spec.name):
        raise InvalidSpec(
            f"cannot name a container `{spec.name}`", hint="letters, digits, `_`, `.`, `-`, at most 63"
        )
    if spec.hostname and not _HOSTNAME.fullmatch(spec.hostname):
        raise InvalidSpec(
            f"cannot use hostname `{spec.hostname}`", hint="letters, digits, `.`, `-`, at most 63"
        )
    _check_words(spec)
    check_labels(spec.labels)
    _check_limits(spec)
    for mount in spec.mounts:
        _check_mount(mount)
    if spec.stop_signal:
        signal_number(spec.stop_signal)
    capabilities_of(spec)
    check_applied(spec.profile)
    check_devices(spec.devices)
    for port in spec.ports:
        if not 1 <= port.container_port <= 65535 or not 0 <= port.host_port <= 65535 or port.count < 1:
            raise InvalidSpec(f"cannot publish port {port.container_port}: not within 1 to 65535")
    if spec.auto_remove and spec.restart.kind is not RestartKind.NO:
        raise InvalidSpec(
            "cannot remove a container at its end and restart it, too", hint="--rm or --restart"
        )
    if spec.ports and spec.network == "none":
        raise InvalidSpec("cannot publish ports without a network", hint="leave out --network none")


def _check_words(spec: Spec) -> None:
    words = (*spec.command, *(spec.entrypoint or ()), *spec.environment, spec.working_directory, spec.user)
    if any("\0" in word for word in words):
        raise InvalidSpec("cannot use a word with a zero byte in it")
    if sum(len(word) for word in words) > MAX_ENVIRONMENT_BYTES:
        raise InvalidSpec("cannot use command and environment: together more than 128 KiB")
    for line in spec.environment:
        name, equals, _value = line.partition("=")
        if not name or not equals:
            raise InvalidSpec(f"cannot set environment `{line[:80]}`: not NAME=value")
    if spec.working_directory and not spec.working_directory.startswith("/"):
        raise InvalidSpec(f"cannot use working directory `{spec.working_directory}`: not absolute")


def _check_limits(spec: Spec) -> None:
    if spec.memory_bytes is not None and spec.memory_bytes < MINIMUM_MEMORY_BYTES:
        raise LimitRefused(
            f"cannot limit memory to {spec.memory_bytes} bytes: less than a program needs to start",
            hint="at least 6m",
        )
    if spec.memory_swap_bytes is not None and spec.memory_swap_bytes < (spec.memory_bytes or 0):
        raise InvalidSpec("cannot limit memory and swap together to less than memory alone")
    if spec.pids is not None and spec.pids < 2:
        raise LimitRefused(
            f"cannot limit processes to {spec.pids}: init and program need two", hint="at least 2"
        )
    if spec.cpus_milli is not None and spec.cpus_milli < 10:
        raise LimitRefused(f"cannot limit CPUs to {spec.cpus_milli / 1000}", hint="at least 0.01")
    _check_disk(spec)
    for name, value in spec.rlimits.items():
        if not hasattr(resource, f"RLIMIT_{name.upper()}") or value < resource.RLIM_INFINITY:
            raise InvalidSpec(
                f"cannot limit `{name}` to {value}", hint="for example nofile=1024; see getrlimit(2)"
            )


def _check_disk(spec: Spec) -> None:
    if spec.disk_bytes is not None and spec.disk_bytes < MINIMUM_DISK_BYTES:
        raise LimitRefused(
            f"cannot limit the disk to {spec.disk_bytes} bytes: hardly a file would fit", hint="at least 16m"
        )
    if spec.inodes is not None and spec.disk_bytes is None:
        raise InvalidSpec("cannot limit files without a disk of its own", hint="--disk SIZE, too")
    if spec.inodes is not None and spec.inodes < MINIMUM_INODES:
        raise LimitRefused(f"cannot limit files to {spec.inodes}", hint=f"at least {MINIMUM_INODES}")


def _covers_ours(target: str) -> bool:
    """Tell whether a mount would cover what insula itself puts there."""
    tops = ("/proc", "/sys", "/dev")
    within = any(target.startswith(f"{top}/") for top in tops)
    return target == "/" or target in tops or (within and target != "/dev/shm")


def _check_mount(mount: MountWish) -> None:
    target = os.path.normpath(mount.target.replace("//", "/"))
    if not target.startswith("/") or "\0" in target or _covers_ours(target):
        raise InvalidSpec(
            f"cannot mount on `{target}`", hint="an absolute path below /, not in /proc, /sys or /dev"
        )
    if ".." in mount.target.split("/"):
        raise InvalidSpec(f"cannot mount on `{target}`: `..` in the path")
    if mount.kind is MountKind.BIND and (not mount.source.startswith("/") or "\0" in mount.source):
        raise InvalidSpec(f"cannot mount `{mount.source}`: not an absolute path of the host")


def _resolved(mount: MountWish, permit: Permit) -> MountWish:
    # An admin's folder is what it is now: whoever may rename something on its way cannot lead later starts elsewhere.
    if mount.kind is not MountKind.BIND or not permit.is_everything:
        return mount
    return replace(mount, source=os.path.realpath(mount.source))


def _with_volumes(runtime: Runtime, tenant: str, *, spec: Spec, image: ImageRecord, undo: ExitStack) -> Spec:
    """Make the volumes that are wished or that the image declares; anonymous ones get names."""
    wished = list(spec.mounts)
    covered = {each.target.rstrip("/") for each in wished}
    wished += [
        MountWish(kind=MountKind.VOLUME, target=target)
        for target in image.config.volumes
        if target.rstrip("/") not in covered
    ]

    def drop_if_undone(made: VolumeRecord) -> None:
        undo.callback(_drop_volume, runtime, tenant, name=made.name)

    mounts = []
    for each in wished:
        if each.kind is MountKind.VOLUME:
            volume = runtime.volumes.ensure(tenant, each.source, on_made=drop_if_undone)
            each = replace(each, source=volume.name)
        mounts.append(each)
    return replace(spec, mounts=tuple(mounts))


def _drop_volume(runtime: Runtime, tenant: str, *, name: str) -> None:
    with suppress(InUse, VolumeNotFound):  # another container was faster
        runtime.volumes.delete(tenant, name)


def _lease(runtime: Runtime, tenant: str, *, spec: Spec, container_id: str) -> Attachment | None:
    if spec.network == "none":
        if spec.address:
            raise InvalidSpec(f"cannot use address `{spec.address}`: a container without network has none")
        return None
    if spec.network == "host":
        raise NetworkNotFound(
            "cannot share the host's network: a container has its own", hint="publish ports with -p"
        )
    networks = runtime.networks
    network = (
        networks.default_for(tenant) if spec.network == "default" else networks.get(tenant, spec.network)
    )
    return networks.lease(network, container_id, wished_address=spec.address)


def _free_name(runtime: Runtime, tenant: str) -> str:
    taken = {each.name for each in runtime.store.list_containers(tenant)}
    while True:
        name = f"{secrets.choice(_FIRST)}-{secrets.choice(_SECOND)}"
        name = name if name not in taken else f"{name}-{secrets.token_hex(2)}"
        if name not in taken:
            return name
