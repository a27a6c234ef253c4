# SPDX-License-Identifier: Apache-2.0
"""The administrator's policy: what users may ask for beyond what every user may.  Reads TOML; pure otherwise.

    [default]                      # everybody
    binds = ["~"]                  # host folders below which they may mount what they may read themselves
    capabilities = ["NET_ADMIN"]   # in place of the usual list
    low_ports = [80, 443]          # ports below 1024 that they may publish
    uplinks = ["eth1"]             # interfaces that their networks may be joined to
    subnets = ["192.168.7.0/24"]   # where their networks may lie, besides the host's pool
    hide_arguments = ["password=*", "--token *"]    # of programs, from who watches containers
    hide_paths = ["/srv/secret"]                    # what is below these folders

    [tenant.web]                   # …  [group.staff]  [user.alice]  with the same keys

    [role.operator]                # … with the keys `hide_…` only; [role.export]: what leaves the host unasked
    hide_arguments = ["*"]

Key by key the most particular section counts: user, then group (several: what any of them gives), then tenant, then
default, then what is built in.  Admins may everything.  There are no keys for devices, privileged containers and
namespaces of the host: nobody gets these.

Of the keys `hide_…` user, group and role are those of who reads, an admin, too, and the tenant is the container's.
What they hide: `redaction.py`.
"""

import posixpath
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TypeVar

import msgspec

from insula.model.errors import InvalidPolicy
from insula.model.grant import EVERY_TENANT, TENANT_NAME, Role
from insula.model.permit import DEFAULT_CAPABILITIES, FIRST_HIGH_PORT, HOME, FileUser, Permit
from insula.tenant.redaction import Redaction

MAX_BYTES = 1 << 20
LOW_PORTS = frozenset(range(1, FIRST_HIGH_PORT))
_CAPABILITY = re.compile(r"[A-Z][A-Z_0-9]*")
_INTERFACE = re.compile(r"[^\s/]{1,15}")
EXPORT = "export"
"""In place of a role: what leaves the host without a reader who asks (exports, webhooks, insulad's log)."""
_NAMES = {
    "user": TENANT_NAME,
    "tenant": TENANT_NAME,
    "group": re.compile(r"[^\s/:@]{1,32}"),
    "role": re.compile("|".join((*Role, EXPORT))),
}
_KEY_IN_ERROR = re.compile(r" - at `\$\.(\w+)")
_UNKNOWN = re.compile(r"unknown field `(\w+)`")


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One section.  What is None is left to the less particular ones."""

    binds: tuple[str, ...] | None = None
    capabilities: tuple[str, ...] | None = None
    devices: tuple[str, ...] | None = None
    low_ports: tuple[int, ...] | None = None
    uplinks: tuple[str, ...] | None = None
    subnets: tuple[str, ...] | None = None
    hide_arguments: tuple[str, ...] | None = None
    hide_paths: tuple[str, ...] | None = None


_OF_ROLES = frozenset({"hide_arguments", "hide_paths"})


class Rules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole policy."""

    default: Rule = Rule()
    user: dict[str, Rule] = {}
    group: dict[str, Rule] = {}
    tenant: dict[str, Rule] = {}
    role: dict[str, Rule] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Whom a permit is for.  Empty name: anybody of the tenant."""

    tenant: str
    name: str = ""
    groups: frozenset[str] = frozenset()
    """Names of the Unix groups."""
    opens_as: FileUser | None = None


def parse(text: str, *, known_capabilities: frozenset[str]) -> Rules:
    """Read a policy strictly.

    Raises: InvalidPolicy naming the line and what is wrong there.
    """
    try:
        words = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidPolicy(
            f"cannot read the policy: {_lower(str(error))}", hint="it is written in TOML"
        ) from error
    for section, value in words.items():
        if section not in Rules.__struct_fields__ or not isinstance(value, dict):
            raise _wrong(
                text,
                (section,),
                "neither `[default]` nor `[user.…]`, `[group.…]`, `[tenant.…]` or `[role.…]`",
            )
    sections = {kind: dict[str, Rule]() for kind in _NAMES}
    for kind, rules in sections.items():
        for name, value in words.get(kind, {}).items():
            if not _NAMES[kind].fullmatch(name):
                raise _wrong(text, (kind, name), f"`{name}` cannot be the name of a {kind}")
            rules[name] = _rule(text, (kind, name), value=value, capabilities=known_capabilities)
    default = _rule(text, ("default",), value=words.get("default", {}), capabilities=known_capabilities)
    return Rules(default=default, **sections)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Who is told what was seen of containers."""

    role: str
    """A `Role`, or EXPORT."""
    name: str = ""
    groups: frozenset[str] = frozenset()
    """Names of the Unix groups."""


def redaction(rules: Rules, reader: Reader, *, tenant: str) -> Redaction:
    """Return what is hidden from a reader of what containers of a tenant do; EVERY_TENANT: of any."""
    groups = [rules.group[name] for name in sorted(reader.groups) if name in rules.group]
    sections = [
        [rules.user.get(reader.name, Rule())],
        groups,
        [rules.role.get(reader.role, Rule())],
        *_of_tenant(rules, tenant),
    ]

    def pick(key: str) -> tuple[str, ...]:
        for section in sections:
            said = [value for rule in section if (value := getattr(rule, key)) is not None]
            if said:
                return tuple(sorted({one for value in said for one in value}))
        return ()

    return Redaction(arguments=pick("hide_arguments"), paths=pick("hide_paths"))


def _of_tenant(rules: Rules, tenant: str) -> list[list[Rule]]:
    if tenant == EVERY_TENANT:
        return [[*rules.tenant.values(), rules.default]]
    return [[rules.tenant.get(tenant, Rule())], [rules.default]]


def permit(rules: Rules, asker: Asker) -> Permit:
    """Return what somebody who is no admin may ask for."""
    groups = [rules.group[name] for name in sorted(asker.groups) if name in rules.group]
    tenant, user = rules.tenant.get(asker.tenant, Rule()), rules.user.get(asker.name, Rule())

    def pick(key: str, built_in: Iterable[Value]) -> frozenset[Value]:
        """Return what the most particular section says of a key."""
        joined = [getattr(each, key) for each in groups if getattr(each, key) is not None]
        for values in ([getattr(user, key)], joined, [getattr(tenant, key)], [getattr(rules.default, key)]):
            if any(value is not None for value in values):
                return frozenset(one for value in values for one in value or ())
        return frozenset(built_in)

    return Permit(
        binds=tuple(sorted(pick("binds", (HOME,)))),
        opens_as=asker.opens_as,
        capabilities=pick("capabilities", DEFAULT_CAPABILITIES),
        devices=pick("devices", ()),
        low_ports=pick("low_ports", ()),
        uplinks=pick("uplinks", ()),
        subnets=pick("subnets", ()),
    )


Value = TypeVar("Value", str, int)


def _rule(text: str, section: tuple[str, ...], *, value: object, capabilities: frozenset[str]) -> Rule:
    """Read one section."""
    try:
        rule = msgspec.convert(value, Rule)
    except msgspec.ValidationError as error:
        raise _refused(text, section, str(error)) from error
    _check(text, section, rule=rule, known_capabilities=capabilities)
    return rule


def _check(text: str, section: tuple[str, ...], *, rule: Rule, known_capabilities: frozenset[str]) -> None:
    _check_hidden(text, section, rule=rule)
    for folder in rule.binds or ():
        if folder != HOME and (not folder.startswith("/") or ".." in folder.split("/") or "\0" in folder):
            raise _wrong(text, (*section, "binds"), f"`{folder}` is neither `~` nor an absolute path")
    for name in rule.capabilities or ():
        if name not in known_capabilities:
            raise _wrong(text, (*section, "capabilities"), f"there is no capability `{name}`")
    for path in rule.devices or ():
        if not path.startswith("/dev/") or ".." in path.split("/") or "\0" in path:
            raise _wrong(text, (*section, "devices"), f"`{path}` is not a path below /dev")
    for port in rule.low_ports or ():
        if port not in LOW_PORTS:
            raise _wrong(text, (*section, "low_ports"), f"{port} is not between 1 and {FIRST_HIGH_PORT - 1}")
    for interface in rule.uplinks or ():
        if not _INTERFACE.fullmatch(interface):
            raise _wrong(text, (*section, "uplinks"), f"`{interface}` cannot be an interface")
    for subnet in rule.subnets or ():
        try:
            ip_network(subnet)
        except ValueError as error:
            raise _wrong(text, (*section, "subnets"), f"cannot be a subnet: {error}") from None


def _check_hidden(text: str, section: tuple[str, ...], *, rule: Rule) -> None:
    if section[0] == "role":
        for key in rule.__struct_fields__:
            if key not in _OF_ROLES and getattr(rule, key) is not None:
                raise _wrong(text, (*section, key), "a role has `hide_arguments` and `hide_paths` only")
    for pattern in rule.hide_arguments or ():
        option, space, value = pattern.partition(" ")
        if not option or (space and value != "*"):
            raise _wrong(
                text,
                (*section, "hide_arguments"),
                f"`{pattern}` is no pattern of one argument, nor `PATTERN *`",
            )
    for folder in rule.hide_paths or ():
        if not folder.startswith("/") or posixpath.normpath(folder) != folder:
            raise _wrong(
                text, (*section, "hide_paths"), f"`{folder}` is no absolute path in its shortest form"
            )


def _refused(text: str, section: tuple[str, ...], message: str) -> InvalidPolicy:
    """Turn what msgspec says, ``Expected `int`, got `str` - at `$.low_ports[0]` ``, into our words."""
    key = _KEY_IN_ERROR.search(message)
    unknown = _UNKNOWN.search(message)
    reason = _lower(message.partition(" - at ")[0])
    return _wrong(text, (*section, *(found[1] for found in (key, unknown) if found)), reason)


def _wrong(text: str, where: tuple[str, ...], reason: str) -> InvalidPolicy:
    line = _line_of(text, where)
    at = f" (line {line})" if line else ""
    return InvalidPolicy(f"cannot use the policy: {'.'.join(where) or 'its top'}: {reason}{at}")


def _line_of(text: str, where: tuple[str, ...]) -> int:
    """Return the line of a key, or of the nearest section before it; 0 if that cannot be told."""
    section, found = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\s*([^\]]+?)\s*\]", line)
        section = header[1].replace('"', "").replace("'", "") if header else section
        key = re.match(r"\s*([A-Za-z0-9_-]+)\s*=", line)
        names = (*section.split("."), *((key[1],) if key else ()))
        if where and names[-1] == where[-1] and all(each in names for each in where):
            return number
        if header and where and section.split(".")[0] == where[0]:
            found = found or number
    return found


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
