# SPDX-License-Identifier: Apache-2.0
"""What is exported where, read from TOML, strictly.  Pure; what the keys mean is in docs/export.md.

[[otlp]]
endpoint = "https://collector:4318"
kinds = ["exec", "oom"]

[[file]]
path = "/var/log/insula/events.jsonl"
tenants = ["web"]

[[syslog]]
address = "/dev/log"
"""

import tomllib
import urllib.parse
from fnmatch import fnmatchcase
from typing import Annotated, TypeVar

import msgspec

from insula.export.syslog import Address
from insula.model.errors import InsulaError, InvalidExport
from insula.model.monitor import EventKind

MAX_BYTES = 1 << 20
_HINT = "docs/export.md"
_Positive = Annotated[int, msgspec.Meta(ge=1)]


class Choice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of all that happens is meant for a sink."""

    changes: bool = True
    """What `insula events` tells: started, exited, moved, alarms of rules …"""
    kinds: tuple[EventKind, ...] = ()
    """What `insula trace` tells, of these kinds; containers are watched for it all the time."""
    tenants: tuple[str, ...] = ()
    """Shell patterns; none: everybody."""
    containers: tuple[str, ...] = ()
    """Shell patterns of names; none: every one."""

    def is_about(self, *, tenant: str, container: str) -> bool:
        """Tell whether something of a container is meant at all."""
        return _fits(tenant, self.tenants) and _fits(container, self.containers)


class Otlp(Choice, frozen=True, kw_only=True):
    """An OpenTelemetry collector."""

    endpoint: str
    """Without `/v1/…`."""
    traces: bool = True
    headers: dict[str, str] = {}
    ca_file: str = ""
    """Of whom signed its certificate; empty: the system's."""
    certificate_file: str = ""
    """Ours, if it wants one, in PEM."""
    key_file: str = ""
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 10.0


class File(Choice, frozen=True, kw_only=True):
    """JSON lines."""

    path: str
    max_bytes: _Positive = 64 << 20
    """Of one file."""
    kept: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 5
    """Older files."""


class Syslog(Choice, frozen=True, kw_only=True):
    """JSON in lines of syslog."""

    address: str


class Exports(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole file of them."""

    otlp: tuple[Otlp, ...] = ()
    file: tuple[File, ...] = ()
    syslog: tuple[Syslog, ...] = ()

    @property
    def choices(self) -> tuple[Choice, ...]:
        return (*self.otlp, *self.file, *self.syslog)


_Section = TypeVar("_Section", bound=Choice)


def read_exports(text: str) -> Exports:
    """Read what is to be exported.  Raises: InvalidExport with section and reason."""
    try:
        words = tomllib.loads(text)
        return _checked(msgspec.convert(words, Exports))
    except tomllib.TOMLDecodeError as error:
        raise InvalidExport(f"cannot read the exports: {_lower(str(error))}", hint=_HINT) from None
    except msgspec.ValidationError as error:
        raise InvalidExport(f"cannot use the exports: {_lower(str(error))}", hint=_HINT) from None


def _checked(exports: Exports) -> Exports:
    for otlp in exports.otlp:
        _check_endpoint(otlp)
    for file in exports.file:
        if not file.path.startswith("/"):
            raise _wrong("file.path", f"`{file.path}` is not absolute")
        if [each.path for each in exports.file].count(file.path) > 1:
            raise _wrong("file.path", f"`{file.path}` stands there twice")
    for syslog in exports.syslog:
        try:
            Address.parse(syslog.address)
        except InsulaError as error:
            raise _wrong("syslog.address", error.message) from None
    return exports


def _check_endpoint(otlp: Otlp) -> None:
    try:
        url = urllib.parse.urlsplit(otlp.endpoint)
        is_url = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        is_plain = "@" not in url.netloc and not url.query and not url.fragment
    except ValueError:
        is_url = False
    if not is_url:
        raise _wrong("otlp.endpoint", f"`{otlp.endpoint}` is no address of http or https")
    if not is_plain:
        raise _wrong("otlp.endpoint", "it has more than host, port and path; who we are belongs in `headers`")
    if url.scheme == "http" and (otlp.ca_file or otlp.certificate_file):
        raise _wrong("otlp.endpoint", "certificates need https")
    for name, value in otlp.headers.items():
        if (
            not name.isascii()
            or not name.replace("-", "").isalnum()
            or not value.isascii()
            or not value.isprintable()
        ):
            raise _wrong("otlp.headers", f"`{name}` cannot be a header")


def _wrong(where: str, reason: str) -> InvalidExport:
    return InvalidExport(f"cannot use the exports: {where}: {reason}", hint=_HINT)


def _fits(text: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatchcase(text, pattern) for pattern in patterns)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
