# SPDX-License-Identifier: Apache-2.0
"""Quantities as people write them: sizes, CPU shares, durations, ports, environment, volumes, mounts.

Parsers raise `InvalidSpec` naming the word and the reason.  Pure and standard library only: the CLI imports this.
"""

import re

from insula.model.errors import InvalidSpec

_FACTORS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

MAX_PORT = 65535


def parse_size(text: str) -> int:
    """Return bytes for `512m`, `1.5g`, `4096`, `10KiB`.  Factors are powers of 1024, as docker's.

    Raises: InvalidSpec.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidSpec(
            f"cannot read size `{text}`: not a number with b, k, m, g or t", hint="for example 512m"
        )
    value = float(match[1]) * _FACTORS[match[2].lower()]
    if value >= 1 << 63:
        raise InvalidSpec(f"cannot read size `{text}`: larger than 2^63 bytes")
    return int(value)


def parse_cpus(text: str) -> int:
    """Return thousandths of a CPU for `0.5` or `2`.

    Raises: InvalidSpec.
    """
    try:
        milli = round(float(text) * 1000)
    except (ValueError, OverflowError):
        raise InvalidSpec(f"cannot read CPUs `{text}`: not a number", hint="for example 1.5") from None
    if not 1 <= milli <= 4_096_000:
        raise InvalidSpec(f"cannot use CPUs `{text}`: not between 0.001 and 4096")
    return milli


def parse_duration(text: str) -> float:
    """Return seconds for `10s`, `1m30s`, `2h`, or a plain number of seconds.

    Raises: InvalidSpec.
    """
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    matches = list(_DURATION.finditer(text))
    if not matches or "".join(match[0] for match in matches) != text:
        raise InvalidSpec(f"cannot read duration `{text}`", hint="for example 1m30s")
    return sum(float(match[1]) * _SECONDS[match[2]] for match in matches)


def format_size(count: int) -> str:
    """Return `1.5GiB`, `512MiB`, `37B`: at most four digits."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f}{unit}" if unit == "B" or value >= 100 else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}TiB"


def format_duration(seconds: float) -> str:
    """Return an age as docker's tables say it: `5 seconds`, `3 minutes`, `2 hours`, `4 days`."""
    for limit, divisor, unit in ((60, 1, "second"), (3600, 60, "minute"), (86400, 3600, "hour")):
        if seconds < limit:
            count = int(seconds // divisor)
            return f"{count} {unit}" + ("" if count == 1 else "s")
    count = int(seconds // 86400)
    return f"{count} day" + ("" if count == 1 else "s")


def parse_ports(text: str) -> dict[str, str | int]:
    """Return the fields of a `spec.PortMapping` for `[address:][host[-host]:]container[-container][/protocol]`.

    Raises: InvalidSpec.
    """
    head, _, protocol = text.partition("/")
    if protocol not in ("", "tcp", "udp"):
        raise InvalidSpec(f"cannot publish `{text}`: unknown protocol `{protocol}`", hint="tcp or udp")
    parts = head.rsplit(":", 2)
    container, host = _parse_range(parts[-1], text=text), (0, 0)
    if len(parts) >= 2 and parts[-2]:
        host = _parse_range(parts[-2], text=text)
    if host[1] and container[1] - container[0] != host[1] - host[0]:
        raise InvalidSpec(f"cannot publish `{text}`: the two ranges differ in length")
    return {
        "host_address": parts[0].strip("[]") if len(parts) == 3 else "0.0.0.0",
        "host_port": host[0],
        "container_port": container[0],
        "count": container[1] - container[0] + 1,
        "protocol": protocol or "tcp",
    }


def _parse_range(word: str, *, text: str) -> tuple[int, int]:
    first, dash, last = word.partition("-")
    if not (first.isascii() and first.isdigit()) or (dash and not (last.isascii() and last.isdigit())):
        raise InvalidSpec(
            f"cannot publish `{text}`: `{word}` is no port or range of ports", hint="for example 8080:80"
        )
    low, high = int(first), int(last) if dash else int(first)
    if not (1 <= low <= high <= MAX_PORT):
        raise InvalidSpec(f"cannot publish `{text}`: `{word}` is not within 1 to {MAX_PORT}")
    return low, high


def parse_volume(text: str) -> dict[str, str | bool]:
    """Return the fields of a `spec.MountWish` for `-v [source:]target[:ro|rw]`.

    A source with a slash is a host path, another word a volume, none an anonymous volume.  Raises: InvalidSpec.
    """
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise InvalidSpec(
            f"cannot mount `{text}`: not [source:]target[:ro]", hint="for example /srv/data:/data:ro"
        )
    options = parts.pop() if len(parts) == 3 or (len(parts) == 2 and parts[1] in ("ro", "rw")) else "rw"
    if not set(options.split(",")) <= {"ro", "rw"}:
        raise InvalidSpec(f"cannot mount `{text}`: unknown option `{options}`", hint="ro or rw")
    source = parts[0] if len(parts) == 2 else ""
    kind = "bind" if source.startswith(("/", "./", "../")) or source in (".", "..") else "volume"
    return {"kind": kind, "source": source, "target": parts[-1], "read_only": options == "ro"}


_MOUNT_KEYS = {
    "src": "source",
    "source": "source",
    "dst": "target",
    "destination": "target",
    "target": "target",
}


def parse_mount(text: str) -> dict[str, str | bool | int]:
    """Return the fields of a `spec.MountWish` for `--mount type=bind,source=…,target=…,readonly`.

    Raises: InvalidSpec.
    """
    fields: dict[str, str | bool | int] = {"kind": "volume"}
    for word in text.split(","):
        key, _, value = word.partition("=")
        if key == "type" and value in ("bind", "volume", "tmpfs"):
            fields["kind"] = value
        elif key in _MOUNT_KEYS and value:
            fields[_MOUNT_KEYS[key]] = value
        elif key in ("readonly", "ro") and value in ("", "true", "1"):
            fields["read_only"] = True
        elif key in ("tmpfs-size", "size") and value:
            fields["size_bytes"] = parse_size(value)
        else:
            raise InvalidSpec(
                f"cannot mount `{text}`: unknown part `{word}`",
                hint="type=, source=, target=, readonly, size=",
            )
    if "size_bytes" in fields and fields["kind"] != "tmpfs":
        raise InvalidSpec(f"cannot mount `{text}`: only a tmpfs has a size", hint="type=tmpfs")
    if "target" not in fields:
        raise InvalidSpec(f"cannot mount `{text}`: no target")
    return fields


def parse_restart(text: str) -> dict[str, str | int]:
    """Return the fields of a `spec.RestartPolicy` for `no`, `always`, `unless-stopped`, `on-failure[:n]`.

    Raises: InvalidSpec.
    """
    kind, colon, retries = text.partition(":")
    if kind not in ("no", "always", "unless-stopped", "on-failure") or (colon and kind != "on-failure"):
        raise InvalidSpec(
            f"cannot use restart policy `{text}`", hint="no, on-failure[:n], always or unless-stopped"
        )
    if colon and not (retries.isascii() and retries.isdigit()):
        raise InvalidSpec(f"cannot use restart policy `{text}`: `{retries}` is not a number")
    return {"kind": kind, "max_retries": int(retries or 0)}
