# SPDX-License-Identifier: Apache-2.0
"""`insula tenant ls|show|create|set|rm`: who shares this host, what each may use, and what it uses."""

from __future__ import annotations

from insula.cli.many import on_each
from insula.cli.parser import UsageError, add_verbs
from insula.cli.render import Column, add_options, ago, show
from insula.client.http import quote
from insula.model.units import format_size, parse_cpus, parse_duration, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client, Json

HELP = "who shares this host and may use what: ls, show, create, set, rm"

RESOURCES = {
    "memory": "bytes, of all containers together",
    "cpus": "of all containers together",
    "weight": "share when all processors are busy; 100 is usual",
    "pids": "processes of all containers together",
    "disk": "bytes of containers, volumes and logs",
    "inodes": "files of containers and volumes",
    "containers": "running or not",
    "networks": "with the default one",
    "volumes": "named and anonymous",
    "profiles": "kept of its containers",
    "ports": "published at the same time",
    "streams": "requests and connections open at the same time",
    "requests": "a second, of all users together",
    "log": "bytes kept of each container",
    "images": "bytes of layers",
    "build-time": "of one build, as 10m",
}
#: Limits of each container and of each build; what is used is that of all logs, and of the longest build.
OF_EACH = frozenset({"log", "build-time"})
#: In place of a name: everybody, and the caller's.
DEFAULT = "*"
OWN = "~"

COLUMNS = (
    Column("NAME", lambda row: str(row["name"]), shrink=1),
    Column("CONTAINERS", lambda row: _cell(row, "containers")),
    Column("MEMORY", lambda row: _cell(row, "memory")),
    Column("PROCESSES", lambda row: _cell(row, "pids")),
    Column("DISK", lambda row: _cell(row, "disk")),
    Column("IMAGES", lambda row: _cell(row, "images"), spare=True),
    Column("FIRST UID", lambda row: str(row["uid_base"]), spare=True),
    Column("CREATED", lambda row: ago(row["created_at"]), spare=True),
)
USE_COLUMNS = (
    Column("RESOURCE", lambda use: str(use["resource"])),
    Column("USED", lambda use: "-" if use.get("used") is None else _figure(use, use["used"])),
    Column("LIMIT", lambda use: "none" if use.get("limit") is None else _limit(use)),
    Column("FROM", lambda use: "default" if use.get("is_default", True) else "tenant"),
    Column("KEPT BY", lambda use: str(use.get("kept_by", "")), shrink=1),
)


def arguments(parser: ArgumentParser) -> None:
    verbs = add_verbs(
        parser,
        {
            "ls": "list tenants with what they use",
            "show": "print what a tenant uses, and its limits",
            "create": "make a tenant before its users come",
            "set": "change the limits of a tenant, or of everybody",
            "rm": "forget tenants that own nothing; their uids are given to nobody else",
        },
    )
    add_options(verbs["ls"], quiet="names")
    add_options(verbs["show"])
    verbs["show"].add_argument("name", metavar="TENANT", nargs="?", default="", help="default: your own")
    verbs["create"].add_argument("name", metavar="TENANT", help="name")
    verbs["set"].add_argument(
        "--default",
        dest="is_default",
        action="store_true",
        help="for every tenant that has no limit of its own",
    )
    verbs["set"].add_argument("name", metavar="TENANT", nargs="?", default="", help="name")
    for verb in ("create", "set"):
        verbs[verb].add_argument(
            "limits", metavar="RESOURCE=LIMIT", nargs="*",
            help="LIMIT: a figure, `none`, or `default`; RESOURCE: "
            + ", ".join(f"{name} ({words})" for name, words in RESOURCES.items()),
        )  # fmt: skip
    verbs["rm"].add_argument("tenants", metavar="TENANT", nargs="+", help="name")


def run(options: Namespace, client: Client) -> int:
    match options.verb:
        case "ls":
            show(client.get("/v1/tenants"), COLUMNS, options=options, key="name")
        case "show":
            _show(client, options)
        case "create":
            wish = {"name": options.name, **(limits(options.limits) if options.limits else {})}
            if wish.pop("inherit", None):
                raise UsageError("cannot set `default`: a new tenant has it anyway")
            print(client.call("POST", "/v1/tenants", body=wish)["name"])
        case "set":
            name, words = _target(options)
            client.call("PATCH", f"/v1/tenants/{quote(name)}", body=limits(words))
        case _:
            return on_each(options.tenants, lambda name: client.call("DELETE", f"/v1/tenants/{quote(name)}"))
    return 0


def _target(options: Namespace) -> tuple[str, list[str]]:
    words = list(options.limits)
    if options.is_default:
        return DEFAULT, [options.name, *words] if options.name else words
    if not options.name or "=" in options.name:
        raise UsageError(
            "cannot set limits: whose?", hint="insula tenant set TENANT RESOURCE=LIMIT, or --default"
        )
    return options.name, words


def _show(client: Client, options: Namespace) -> None:
    name = options.name or OWN
    show(client.get(f"/v1/tenants/{quote(name)}")["uses"], USE_COLUMNS, options=options, key="resource")


def limits(words: list[str]) -> Json:
    """Return the fields of a QuotaWish for `memory=2g pids=none log=default`.  Raises: UsageError, InvalidSpec."""
    found: Json = {}
    inherit: list[str] = []
    if not words:
        raise UsageError("cannot set limits: which?", hint="RESOURCE=LIMIT, as memory=2g")
    for word in words:
        name, equals, value = word.partition("=")
        if name not in RESOURCES or not equals:
            raise UsageError(f"cannot understand `{word}`", hint="RESOURCE=LIMIT of " + ", ".join(RESOURCES))
        if value == "default":
            inherit.append(name)
        else:
            found[name] = None if value == "none" else _number(name, value)
    return {"limits": found, **({"inherit": inherit} if inherit else {})}


def _number(name: str, value: str) -> int:
    match name:
        case "memory" | "disk" | "log" | "images":
            return parse_size(value)
        case "cpus":
            return parse_cpus(value)
        case "build-time":
            return round(parse_duration(value))
        case _:
            if not (value.isascii() and value.isdigit()):
                raise UsageError(f"cannot limit `{name}` to `{value}`: not a number")
            return int(value)


def _cell(row: Json, resource: str) -> str:
    """Return `used/limit` of a tenant's resource."""
    use = next(each for each in row["uses"] if each["resource"] == resource)
    used = "-" if use.get("used") is None else _figure(use, use["used"])
    return used if use.get("limit") is None else f"{used}/{_figure(use, use['limit'])}"


def _limit(use: Json) -> str:
    figure = _figure(use, use["limit"])
    return f"{figure} each" if use["resource"] in OF_EACH else figure


def _figure(use: Json, value: int) -> str:
    match use["resource"]:
        case "memory" | "disk" | "log" | "images":
            return format_size(value)
        case "cpus":
            return f"{value / 1000:g}"
        case "build-time":
            return f"{value}s"
        case "requests":
            return f"{value}/s"
        case _:
            return str(value)
