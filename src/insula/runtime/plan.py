# SPDX-License-Identifier: Apache-2.0
"""From what is wished and what is given to the steps of a start: `Spec`, image and network → `StartPlan`.

Nothing is changed here: the plan can be printed and tested without root.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from msgspec.structs import replace

from insula.boot.protocol import (
    FilePlan,
    LimitsPlan,
    MountPlan,
    NetworkPlan,
    ProgramPlan,
    RootPlan,
    StartPlan,
)
from insula.image.host import HOST_IMAGE
from insula.kernel import caps
from insula.kernel.cgroup import Limits
from insula.kernel.covered_calls import allowed_by
from insula.model.errors import InvalidSpec
from insula.model.folders import is_within, merged_folders
from insula.model.quota import Resource
from insula.model.record import Attachment, ContainerRecord, ImageConfig, ImageRecord
from insula.model.spec import AppliedProfile, Enforce, ExecSpec, MountKind, MountWish, Spec
from insula.network.hosts import hosts_entries
from insula.runtime import init
from insula.runtime.context import Runtime
from insula.runtime.devices import device_plans

__all__ = ["StartPlan", "arguments_of", "capabilities_of", "exec_plan", "start_plan"]

INIT_PATH = f"/{init.PATH}"
CPU_PERIOD_US = 100_000


def start_plan(runtime: Runtime, record: ContainerRecord) -> StartPlan:
    """Return the plan of a container's start (and of its restore).

    Raises: ImageNotFound if a layer is gone; InvalidSpec.
    """
    folders, spec = runtime.folders, record.spec
    folders_written = writable_folders(record.profile)
    hostname = spec.hostname or record.id[:12]
    attachment = runtime.networks.usable(record.attachment) if record.attachment else None
    layers = tuple(str(each) for each in reversed(runtime.images.layer_folders(_layers_of(record))))
    has_init = spec.system or record.image == HOST_IMAGE.id  # the view of the host shows it by itself
    lower = layers if has_init else (str(folders.init_layer), *layers)
    return StartPlan(
        key=record.id,
        uid_base=record.uid_base,
        cgroup_parent=runtime.tenant_parent(record.tenant),
        limits=limits_plan(spec),
        root=RootPlan(
            lower=lower,
            upper=str(folders.upper(record.id)),
            work=str(folders.work(record.id)),
            read_only=spec.read_only or folders_written is not None,
            writable=() if spec.read_only else folders_written or (),
            programs=startable_programs(record.profile),
        ),
        hostname=hostname,
        program=program_plan(record),
        log=str(folders.log(record.id)),
        log_bytes=runtime.allowance.limit(record.tenant, Resource.LOG) or 0,
        mounts=tuple(
            _mount_plan(runtime, record.tenant, limited(each, folders_written)) for each in spec.mounts
        ),
        devices=device_plans(spec.devices),
        files=network_files(attachment, hostname=hostname, nameservers=_nameservers(runtime, record)),
        network=network_plan(attachment),
    )


def writable_folders(profile: AppliedProfile | None) -> tuple[str, ...] | None:
    """Return the folders of the root that a container may write in; None: it is not limited."""
    if profile is None or profile.enforce is not Enforce.DENY or profile.written is None:
        return None
    folders = merged_folders(profile.written)
    return None if "/" in folders else folders


def startable_programs(profile: AppliedProfile | None) -> tuple[str, ...] | None:
    """Return the programs that a container may start; None: it is not limited."""
    return None if profile is None or profile.enforce is not Enforce.DENY else profile.programs


def limited(mount: MountWish, folders: tuple[str, ...] | None) -> MountWish:
    """Return a mount as a container has it that may write in these folders only."""
    if folders is None or mount.kind is MountKind.TMPFS or mount.read_only:
        return mount
    return replace(mount, read_only=not any(is_within(each, mount.target) for each in folders))


def _layers_of(record: ContainerRecord) -> ImageRecord | tuple[str, ...]:
    # The `host` image has no layers of its own: it is what this host is.
    return HOST_IMAGE if record.image == HOST_IMAGE.id else record.layers


def limits_plan(spec: Spec) -> LimitsPlan:
    """Translate the wished limits."""
    return LimitsPlan(
        memory_bytes=spec.memory_bytes,
        memory_swap_bytes=spec.memory_swap_bytes,
        cpu_quota_us=None if spec.cpus_milli is None else max(1000, spec.cpus_milli * CPU_PERIOD_US // 1000),
        cpu_period_us=CPU_PERIOD_US,
        pids=spec.pids,
    )


def cpu_limits(spec: Spec) -> Limits:
    """Translate the wished limits of processor time alone."""
    plan = limits_plan(spec)
    return Limits(cpu_quota_us=plan.cpu_quota_us, cpu_period_us=plan.cpu_period_us)


def arguments_of(spec: Spec, config: ImageConfig) -> tuple[str, ...]:
    """Put entrypoint and command together, as docker does: an own entrypoint drops the image's command.

    Raises: InvalidSpec if nothing is left.
    """
    entrypoint = config.entrypoint if spec.entrypoint is None else spec.entrypoint
    default = config.command if spec.entrypoint is None else ()
    argv = (*entrypoint, *(spec.command or default))
    if not argv and spec.system:
        return ("/sbin/init",)
    if not argv:
        raise InvalidSpec(
            f"cannot create a container of `{spec.image}`: no command, and the image has none",
            hint="insula run IMAGE COMMAND",
        )
    return argv


def program_plan(record: ContainerRecord) -> ProgramPlan:
    """Return what is executed, and as whom."""
    spec, config, profile = record.spec, record.config, record.profile
    return ProgramPlan(
        argv=arguments_of(spec, config),
        environment=merge_environment(config.environment, spec.environment),
        working_directory=spec.working_directory or config.working_directory or "/",
        user=spec.user or config.user,
        capabilities=capabilities_of(spec, profile),
        **_confined(profile),
        tty=spec.tty,
        stdin_open=spec.stdin_open,
        init="" if spec.system else INIT_PATH,
        rlimits=dict(spec.rlimits),
    )


def exec_plan(record: ContainerRecord, wish: ExecSpec) -> ProgramPlan:
    """Return what is executed in a running container."""
    if not wish.command:
        raise InvalidSpec(f"cannot execute in `{record.name}`: no command")
    spec, config, profile = record.spec, record.config, record.profile
    environment = merge_environment(config.environment, spec.environment)
    return ProgramPlan(
        argv=wish.command,
        environment=merge_environment(environment, wish.environment),
        working_directory=wish.working_directory or spec.working_directory or config.working_directory or "/",
        user=wish.user or spec.user or config.user,
        capabilities=capabilities_of(spec, profile),
        **_confined(profile),
        tty=wish.tty,
        stdin_open=wish.stdin_open,
        rows=wish.rows,
        columns=wish.columns,
    )


def merge_environment(base: Iterable[str], own: Iterable[str]) -> tuple[str, ...]:
    """Lay NAME=value lines over others."""
    merged = {line.partition("=")[0]: line for line in (*base, *own)}
    return tuple(merged.values())


class _Confined(TypedDict):
    calls: tuple[str, ...]
    is_logged: bool


def _confined(profile: AppliedProfile | None) -> _Confined:
    if profile is None:
        return _Confined(calls=(), is_logged=False)
    allowed = allowed_by(profile.calls, refused=profile.refused_calls)
    return _Confined(calls=tuple(sorted(allowed)), is_logged=profile.enforce is Enforce.LOG)


def capabilities_of(spec: Spec, profile: AppliedProfile | None = None) -> tuple[str, ...]:
    """Return the capabilities of a container that is held to a profile, sorted.

    Raises: InvalidSpec for a name that there is not.
    """
    try:
        added = frozenset().union(*(caps.parse(each) for each in spec.capabilities_add))
        dropped = frozenset().union(*(caps.parse(each) for each in spec.capabilities_drop))
    except ValueError as error:
        raise InvalidSpec(
            f"cannot use capability: {error}", hint="for example NET_ADMIN; see capabilities(7)"
        ) from None
    kept = (
        caps.DEFAULT - dropped
        if "ALL" not in (each.upper() for each in spec.capabilities_drop)
        else frozenset()
    )
    held = kept | added
    if profile is not None and profile.enforce is Enforce.DENY and profile.capabilities is not None:
        held &= frozenset(profile.capabilities)
    return tuple(sorted(held))


def _mount_plan(runtime: Runtime, tenant: str, wish: MountWish) -> MountPlan:
    source = wish.source
    if wish.kind is MountKind.VOLUME:
        source = os.path.realpath(runtime.volumes.path(runtime.store.get_volume(tenant, wish.source)))
    return MountPlan(
        kind="tmpfs" if wish.kind is MountKind.TMPFS else "bind",
        source=source,
        target=wish.target,
        read_only=wish.read_only,
        idmapped=wish.kind is not MountKind.TMPFS,
        size_bytes=wish.size_bytes,
    )


def _nameservers(runtime: Runtime, record: ContainerRecord) -> tuple[str, ...]:
    return runtime.networks.nameservers(record.attachment) if record.attachment else ()


def network_files(
    attachment: Attachment | None, *, hostname: str, nameservers: tuple[str, ...]
) -> tuple[FilePlan, ...]:
    """Return what is written into a container's /etc at each start."""
    resolv = "".join(f"nameserver {each}\n" for each in nameservers) or _resolv_conf_of_host()
    return (
        FilePlan(path="/etc/hostname", text=hostname + "\n"),
        FilePlan(path="/etc/hosts", text=hosts_entries(attachment, hostname=hostname)),
        FilePlan(path="/etc/resolv.conf", text=resolv),
    )


def _resolv_conf_of_host() -> str:
    try:
        return Path("/etc/resolv.conf").read_text()[:4096]
    except OSError:
        return ""


def network_plan(attachment: Attachment | None) -> NetworkPlan | None:
    """Return the veth pair of an attachment."""
    if attachment is None:
        return None
    return NetworkPlan(
        interface=attachment.interface,
        bridge=attachment.bridge,
        mac=attachment.mac,
        address=attachment.address,
        prefix_length=attachment.prefix_length,
        gateway=attachment.gateway,
        address6=attachment.address6,
        prefix_length6=attachment.prefix_length6,
        gateway6=attachment.gateway6,
    )
