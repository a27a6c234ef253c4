# SPDX-License-Identifier: Apache-2.0
"""Options of run and create → the JSON of a `model/spec.py` Spec.  Only what was wished is in it."""

from __future__ import annotations

import os

from insula.cli.options import add_environment, add_place, add_streams
from insula.cli.parser import UsageError
from insula.model.errors import InvalidSpec
from insula.model.units import (
    parse_cpus,
    parse_duration,
    parse_mount,
    parse_ports,
    parse_restart,
    parse_size,
    parse_volume,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterable

    from insula.client.http import Json


def add_options(parser: ArgumentParser) -> None:
    """Define the options that create and run share, then the image and the command."""
    _add_program(parser)
    _add_files_and_network(parser)
    _add_limits(parser)
    parser.add_argument(
        "image", metavar="IMAGE", help="image to start from; `host` is this host's own user space"
    )
    command = parser.add_argument(
        "command", metavar="COMMAND", nargs="...", help="program and its arguments; all after IMAGE"
    )
    command.required = False  # else argparse asks for it by name when IMAGE is missing


def _add_program(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--name", default="", help="name of the container (default: one is made up)")
    add_streams(parser)
    add_environment(parser)
    add_place(parser)
    add("--entrypoint", metavar="PROGRAM", help="program in place of the image's entrypoint; empty for none")
    add("--init", action="store_true", help="system container: COMMAND is its init, pid 1 (as /sbin/init)")
    add("--hostname", default="", metavar="NAME", help="host name inside (default: the short id)")
    add("-l", "--label", action="append", default=[], metavar="NAME[=VALUE]", help="label for your own use")
    add("--rm", action="store_true", help="remove the container when it ends")
    add(
        "--restart",
        default="",
        metavar="POLICY",
        help="start it again when it ends: no (default), on-failure[:N], always, unless-stopped",
    )
    add(
        "--stop-signal",
        default="",
        metavar="SIGNAL",
        help="signal that asks it to end (default: the image's, else TERM)",
    )
    add("--stop-timeout", metavar="TIME", help="how long it may take to end before KILL (default: 10s)")
    add(
        "--max-pause",
        metavar="TIME",
        help="how long it may stand still when it is migrated; longer moves are refused (default: 300ms)",
    )


def _add_files_and_network(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "-v",
        "--volume",
        action="append",
        default=[],
        metavar="[SOURCE:]TARGET[:ro]",
        help="mount a volume by name, or by its path a host folder that the policy grants",
    )
    add(
        "--mount",
        action="append",
        default=[],
        metavar="type=…,source=…,target=…",
        help="the same, spelled out; type is volume, bind or tmpfs",
    )
    add(
        "--tmpfs",
        action="append",
        default=[],
        metavar="TARGET[:size=N]",
        help="mount an empty folder in memory",
    )
    add(
        "--device",
        action="append",
        default=[],
        metavar="/dev/…[:/dev/…][:rwm]",
        help="let it open a device of the host that the policy grants",
    )
    add("--read-only", action="store_true", help="no writes to the root file system")
    add(
        "-p",
        "--publish",
        action="append",
        default=[],
        metavar="[[ADDR:]HOST:]PORT[/udp]",
        help="reach a port or range of it (8000-8010) through the host; without HOST one is picked",
    )
    add(
        "--network",
        "--net",
        default="",
        metavar="NETWORK",
        help="network to join, or `none` (default: `default`, each tenant has its own)",
    )
    add(
        "--ip",
        default="",
        metavar="ADDRESS",
        help="IPv4 address to have in that network (default: a free one)",
    )


def _add_limits(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("-m", "--memory", metavar="SIZE", help="most memory, for example 512m")
    add("--memory-swap", metavar="SIZE", help="most memory and swap together, not less than --memory")
    add("--cpus", metavar="N", help="most CPUs, for example 1.5")
    add("--pids", "--pids-limit", metavar="N", help="most processes and threads at a time")
    add(
        "--disk",
        metavar="SIZE",
        help="most that it writes into its own root, without volumes, for example 1g",
    )
    add("--inodes", metavar="N", help="most files there; with --disk")
    add("--storage-opt", metavar="size=SIZE", help="as --disk SIZE, in docker's words")
    add(
        "--ulimit",
        action="append",
        default=[],
        metavar="NAME=N",
        help="resource limit, for example nofile=1024",
    )
    add(
        "--cap-add",
        action="append",
        default=[],
        metavar="NAME",
        help="give a capability that the policy grants",
    )
    add("--cap-drop", action="append", default=[], metavar="NAME", help="take a capability, or ALL")


def build(options: Namespace) -> Json:
    """Return the body of POST /v1/containers.

    Raises: InvalidSpec, UsageError.
    """
    spec = {
        "image": options.image,
        "name": options.name,
        "command": options.command,
        "entrypoint": None
        if options.entrypoint is None
        else [word for word in (options.entrypoint,) if word],
        "environment": environment(options.env, options.env_file, tty=options.tty),
        "working_directory": options.workdir,
        "user": options.user,
        "hostname": options.hostname,
        "tty": options.tty,
        "stdin_open": options.interactive,
        "system": options.init,
        "mounts": mounts(options),
        "devices": [_device(text) for text in options.device],
        "read_only": options.read_only,
        "ports": [parse_ports(text) for text in options.publish],
        "network": options.network,
        "address": options.ip,
        "restart": parse_restart(options.restart) if options.restart else None,
        "auto_remove": options.rm,
        "labels": dict(_pair(text) for text in options.label),
        "stop_signal": options.stop_signal,
        "capabilities_add": options.cap_add,
        "capabilities_drop": options.cap_drop,
        "rlimits": dict(_rlimit(text) for text in options.ulimit),
        **_limits(options),
    }
    keep_empty = {"entrypoint"} if options.entrypoint is not None else set()
    return {
        key: value
        for key, value in spec.items()
        if value or (value == 0 and value is not False) or key in keep_empty
    }


def _limits(options: Namespace) -> Json:
    return {
        "memory_bytes": parse_size(options.memory) if options.memory else None,
        "memory_swap_bytes": parse_size(options.memory_swap) if options.memory_swap else None,
        "cpus_milli": parse_cpus(options.cpus) if options.cpus else None,
        "pids": _number(options.pids, "processes") if options.pids else None,
        "disk_bytes": _disk(options),
        "inodes": _number(options.inodes, "files") if options.inodes else None,
        "max_pause_ms": round(parse_duration(options.max_pause) * 1000) if options.max_pause else None,
        "stop_timeout_s": round(parse_duration(options.stop_timeout)) if options.stop_timeout else None,
    }


def _disk(options: Namespace) -> int | None:
    if options.storage_opt is None:
        return parse_size(options.disk) if options.disk else None
    key, _, value = options.storage_opt.partition("=")
    if key != "size":
        raise InvalidSpec(f"cannot use storage option `{options.storage_opt}`", hint="size=1g")
    if options.disk:
        raise UsageError("cannot limit the disk twice", hint="--disk or --storage-opt")
    return parse_size(value)


def environment(words: Iterable[str], files: Iterable[str], *, tty: bool) -> list[str]:
    """Return NAME=value lines: files first, then words; a bare NAME takes the caller's value, or nothing if unset."""
    found: dict[str, str] = {"TERM": os.environ.get("TERM", "xterm")} if tty else {}
    for word in [*(line for path in files for line in _lines(path)), *words]:
        name, equals, value = word.partition("=")
        if not name:
            raise InvalidSpec(
                f"cannot set environment `{word}`: no name", hint="NAME=VALUE, or NAME for your own value"
            )
        if equals:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return [f"{name}={value}" for name, value in found.items()]


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip("\r\n") for line in file]
    except OSError as error:
        raise UsageError(f"cannot read environment file `{path}`: {(error.strerror or '').lower()}") from None
    return [line.lstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def mounts(options: Namespace) -> list[Json]:
    """Return the mounts of -v, --mount and --tmpfs, sources of folders made absolute."""
    found: list[Json] = [dict(parse_volume(text)) for text in options.volume]
    found += [dict(parse_mount(text)) for text in options.mount]
    found += [_tmpfs(text) for text in options.tmpfs]
    for mount in found:
        if mount["kind"] == "bind":
            mount["source"] = os.path.abspath(str(mount.get("source", "")))
    return found


def _tmpfs(text: str) -> Json:
    where, _, words = text.partition(":")
    mount: Json = {"kind": "tmpfs", "target": where}
    for word in filter(None, words.split(",")):
        key, _, value = word.partition("=")
        if key == "size" and value:
            mount["size_bytes"] = parse_size(value)
        elif word == "ro":
            mount["read_only"] = True
        elif word not in ("rw", "noexec", "nosuid", "nodev", "exec"):
            raise InvalidSpec(
                f"cannot mount `{text}`: unknown option `{word}`", hint="for example /tmp:size=64m"
            )
    return mount


def _device(text: str) -> Json:
    """Read `SOURCE[:TARGET][:ACCESS]`, as docker does: what does not begin with / is the access."""
    source, *words = text.split(":")
    device: Json = {"source": source}
    if words and words[0].startswith("/"):
        device["target"] = words.pop(0)
    if words:
        device["access"] = words.pop(0)
    if words:
        raise InvalidSpec(f"cannot use device `{text}`", hint="/dev/fuse, or /dev/sdc:/dev/xvdc:r")
    return device


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def labels(words: Iterable[str]) -> dict[str, str]:
    """Return labels given as NAME=VALUE."""
    return dict(_pair(word) for word in words)


def _rlimit(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    first = value.partition(":")[0]
    return name.lower().removeprefix("rlimit_"), -1 if first == "unlimited" else _number(
        first, f"limit {name}"
    )


def _number(text: str, what: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidSpec(f"cannot use {what} `{text}`: not a whole number") from None
