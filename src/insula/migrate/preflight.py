# SPDX-License-Identifier: Apache-2.0
"""What must be true before anything stops: what the source tells of the container, and what the target checks.

Source: proc(5), `/proc/cpuinfo` and `/proc/meminfo`.
"""

import os
import re
from pathlib import Path

from insula.image.host import HOST_IMAGE
from insula.kernel.cgroup.room import memory_room
from insula.migrate.processor import processor_flags
from insula.migrate.reserved import refuse_reserved
from insula.migrate.snapshot import refuse_depth
from insula.model.errors import (
    IncompatibleCpu,
    MigrationFailed,
    NetworkNotFound,
    ProtocolError,
    TargetFull,
    Unsupported,
)
from insula.model.grant import TENANT_NAME
from insula.model.migration import VERSION, NetworkNeed, Offer
from insula.model.profile_text import check_applied
from insula.model.record import ContainerRecord, ImageRecord
from insula.model.spec import MountKind
from insula.runtime.context import Runtime
from insula.runtime.create import check_spec
from insula.runtime.obstacles import refuse_obstacles
from insula.runtime.permitted import check_permitted, check_ports

OLDEST_KERNEL = (5, 19)
"""The first with id-mapped layers in overlayfs, which every container stands on."""

SPARE_BYTES = 64 << 20
"""Of disk and memory, beyond what the container needs."""


def describe(runtime: Runtime, record: ContainerRecord) -> Offer:
    """Say what a container is and needs."""
    image = image_of(runtime, record)
    volumes = [
        runtime.store.get_volume(record.tenant, each.source)
        for each in record.spec.mounts
        if each.kind is MountKind.VOLUME
    ]
    for each in record.spec.mounts:
        if each.kind is MountKind.BIND:
            raise Unsupported(
                f"cannot migrate `{record.name}`: it uses the host folder `{each.source}`",
                hint="use a volume instead",
            )
    for device in record.spec.devices:
        raise Unsupported(
            f"cannot migrate `{record.name}`: it uses the device `{device.source}` of this host",
            hint="a container without --device",
        )
    _refuse_shared_volumes(runtime, record)
    pids = runtime.group(record).pids()
    refuse_obstacles(record.name, pids, init=record.pid, verb="migrate")
    refuse_reserved(record.name, pids)
    folders = [runtime.folders.upper(record.id), *(runtime.volumes.path(each) for each in volumes)]
    return Offer(
        version=VERSION,
        record=record,
        image=image,
        volumes=tuple(volumes),
        network=_network_need(runtime, record),
        processor_flags=processor_flags(),
        criu_version=runtime.need_criu().version,
        kernel_release=os.uname().release,
        host_identity=runtime.images.host.identity() if image.id == HOST_IMAGE.id else "",
        disk_bytes=sum(tree_bytes(each) for each in folders),
        memory_bytes=runtime.group(record).stats().memory_bytes,
    )


def _refuse_shared_volumes(runtime: Runtime, record: ContainerRecord) -> None:
    names = {each.source for each in record.spec.mounts if each.kind is MountKind.VOLUME}
    for other in runtime.store.list_containers(record.tenant):
        for mount in other.spec.mounts:
            if other.id != record.id and mount.kind is MountKind.VOLUME and mount.source in names:
                raise Unsupported(
                    f"cannot migrate `{record.name}`: `{other.name}` uses volume `{mount.source}`, too",
                    hint=f"a volume moves with its container: stop and remove `{other.name}` first",
                )


def image_of(runtime: Runtime, record: ContainerRecord) -> ImageRecord:
    """Return the image of a container."""
    if record.image == HOST_IMAGE.id:
        return HOST_IMAGE
    return runtime.images.get(record.tenant, record.image)


def _network_need(runtime: Runtime, record: ContainerRecord) -> NetworkNeed | None:
    if record.attachment is None:
        return None
    network = runtime.store.get_network(record.attachment.network)
    return NetworkNeed(
        name=network.name,
        subnet=network.subnet,
        uplink=bool(network.uplink),
        subnet6=network.subnet6 if record.attachment.address6 else "",
    )


def tree_bytes(folder: Path) -> int:
    """Return what the files below a folder occupy.  Raises: MigrationFailed for what lies too deep."""
    total = 0
    for directory, _folders, files, descriptor in os.fwalk(folder, follow_symlinks=False):
        refuse_depth(os.fsencode(directory.removeprefix(f"{folder}/")))
        for name in files:
            total += os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_blocks * 512
    return total


_ID = re.compile(r"[0-9a-f]{64}")


def check_identity(runtime: Runtime, offer: Offer) -> None:
    """Refuse an offer whose names could not have been given here: they become paths, and its spec becomes rights.

    Raises: InvalidSpec, Denied, ProtocolError.
    """
    record = offer.record
    if (
        not _ID.fullmatch(record.id)
        or not TENANT_NAME.fullmatch(record.tenant)
        or record.name != record.spec.name
    ):
        raise ProtocolError("cannot take a container: its id, name or tenant is none")
    check_spec(record.spec)
    check_applied(record.profile)
    permit = runtime.permits.of_tenant(record.tenant)
    check_permitted(record.spec, permit)
    check_ports(record.ports, permit)  # what was picked there is wished for here
    offered = {each.name for each in offer.volumes}
    for mount in record.spec.mounts:
        if mount.kind is MountKind.VOLUME and mount.source not in offered:
            raise ProtocolError(
                f"cannot take `{record.name}`: its volume `{mount.source[:80]}` was not offered"
            )


def check(runtime: Runtime, offer: Offer) -> None:
    """Refuse on the target what could not end well.

    Raises: MigrationFailed, IncompatibleCpu, TargetFull, NetworkNotFound, Unsupported.
    """
    name = offer.record.name
    if offer.version != VERSION:
        raise MigrationFailed(
            f"cannot take `{name}`: the other host speaks version {offer.version}, this one {VERSION}",
            hint="update the older insulad",
        )
    criu = runtime.need_criu()
    if _major(criu.version) != _major(offer.criu_version):
        raise Unsupported(
            f"cannot take `{name}`: CRIU is {criu.version} here and {offer.criu_version} there",
            hint="run `insula setup` on the older host",
        )
    missing = sorted(set(offer.processor_flags) - set(processor_flags()))
    if missing:
        shown = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise IncompatibleCpu(
            f"cannot take `{name}`: this host's processor lacks {shown}",
            hint="move it to a host with the same or a newer processor",
        )
    if offer.host_identity and offer.host_identity != runtime.images.host.identity():
        raise MigrationFailed(
            f"cannot take `{name}`: it runs from its host's own files, and this host's differ",
            hint="use an image: insula image build",
        )
    check_kernel(name, offered=offer.kernel_release, here=os.uname().release)
    _check_room(runtime, offer)
    _check_network(runtime, offer)


def check_kernel(name: str, *, offered: str, here: str) -> None:
    """Refuse a kernel that is older by a major version: programs have seen features there that this one lacks.

    Raises: Unsupported.
    """
    if _release(here) < OLDEST_KERNEL or _release(here)[0] < _release(offered)[0]:
        raise Unsupported(
            f"cannot take `{name}`: the kernel is {here} here and {offered} there",
            hint="move it to a host with the same or a newer kernel",
        )


def _release(text: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _major(version: str) -> str:
    return version.partition(".")[0]


def _check_room(runtime: Runtime, offer: Offer) -> None:
    missing = {each.digest for each in offer.image.layers if not runtime.images.layers.has(each.digest)}
    layers = sum(each.size_bytes for each in offer.image.layers if each.digest in missing)
    check_disk(runtime.folders.state, offer.record.name, needed=offer.disk_bytes + layers + SPARE_BYTES)
    if (home := runtime.home_of(offer.record.tenant)) is not None:
        check_disk(home, offer.record.name, needed=offer.disk_bytes)
    available = available_memory()
    room = memory_room(runtime.hierarchies(), runtime.tenant_parent(offer.record.tenant))
    check_memory(
        offer.record.name,
        # Twice: once as images in memory, once as the processes themselves.
        needed=offer.memory_bytes * 2 + SPARE_BYTES,
        available=available if room is None else min(available, room),
    )


def check_disk(folder: Path, name: str, *, needed: int) -> None:
    """Refuse what does not fit on the file system of a folder.  Raises: TargetFull."""
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise TargetFull(
            f"cannot take `{name}`: it needs {needed >> 20} MiB of disk, {free >> 20} MiB are free",
            hint="remove images or checkpoints that are not needed: insula image rm",
        )
    if disk.f_files and not disk.f_favail:
        raise TargetFull(f"cannot take `{name}`: the file system of `{folder}` has no inode left")


def check_memory(name: str, *, needed: int, available: int) -> None:
    """Refuse what this host has no memory for.  Raises: TargetFull."""
    if needed > available:
        raise TargetFull(
            f"cannot take `{name}`: it needs {needed >> 20} MiB of memory on the way, {available >> 20} MiB are free",
            hint="move or stop something else there first",
        )


def available_memory() -> int:
    """Return the memory that programs can still get, in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _check_network(runtime: Runtime, offer: Offer) -> None:
    need = offer.network
    if need is None:
        return
    network = (
        runtime.networks.default_for(offer.record.tenant)
        if need.name == "default"
        else runtime.networks.get(offer.record.tenant, need.name)
    )
    if network.subnet != need.subnet:
        raise NetworkNotFound(
            f"cannot take `{offer.record.name}`: network `{need.name}` is {network.subnet} here and {need.subnet} there",
            hint="give both hosts the same `insula daemon --pool`, or use a network of your own with a --subnet"
            if need.name == "default"
            else f"insula network create --subnet {need.subnet} {need.name}, on both hosts",
        )
    if need.subnet6 and not (network.subnet6 == need.subnet6 and runtime.networks.has_ipv6):
        here = network.subnet6 if runtime.networks.has_ipv6 else ""
        raise NetworkNotFound(
            f"cannot take `{offer.record.name}`: network `{need.name}` has IPv6 subnet {need.subnet6} there and"
            f" {here or 'none'} here",
            hint=f"insula network create --subnet {need.subnet} --subnet {need.subnet6} …, on both hosts"
            if runtime.networks.has_ipv6
            else "switch IPv6 on here (see `insula doctor`), or give the container a network with --no-ipv6",
        )
