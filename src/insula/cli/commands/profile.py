# SPDX-License-Identifier: Apache-2.0
"""`insula profile`: record what a container uses, look at it, hold containers to it."""

from __future__ import annotations

import json
import sys

from insula.cli.many import on_each
from insula.cli.parser import UsageError, add_verbs
from insula.cli.render import Column, add_options, ago, check_form, printable, show
from insula.client.http import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client, Json

HELP = "record what a container uses, and hold it to that"

PARTS = {
    "calls": "system calls",
    "capabilities": "capabilities",
    "programs": "programs started",
    "written": "folders written in",
    "outgoing": "connected to",
    "listening": "listened at",
}
RUNTIMES = ("any", "runc", "crun", "none")

MAX_FILE_BYTES = 1 << 20
"""As many as the API takes."""

COLUMNS = (
    Column("NAME", lambda row: str(row["name"]), shrink=1),
    Column("OF", lambda row: str(row["container"]), shrink=1),
    Column("RECORDED", lambda row: ago(row["recorded_at"])),
    Column("CALLS", lambda row: str(len(row["calls"]))),
    Column("CAPS", lambda row: "?" if row["capabilities"] is None else str(len(row["capabilities"]))),
    Column("FOLDERS", lambda row: str(len(row["written"]))),
    Column("ADDRESSES", lambda row: str(len(row["outgoing"]))),
    Column("FROM START", lambda row: "yes" if row["is_from_birth"] else "no"),
)


def arguments(parser: ArgumentParser) -> None:
    verbs = add_verbs(
        parser,
        {
            "record": "begin to record; of a container that does not run, from its start on",
            "stop": "end a recording and keep it as a profile",
            "ls": "list profiles",
            "show": "print what a profile allows, or what is recorded so far of a container",
            "diff": "print what the second has that the first lacks (+), and the other way (-)",
            "drift": "print what a container has done since its start that its profile lacks",
            "apply": "hold containers to a profile, from their next start on",
            "release": "hold containers to nothing any more, from their next start on",
            "export": "print a profile for another host, or its seccomp part for other managers",
            "import": "keep a profile that another host exported",
            "rm": "remove profiles; containers that are held to them stay so",
        },
    )
    verbs["record"].add_argument("container", metavar="CONTAINER", help="name or id")
    verbs["stop"].add_argument("container", metavar="CONTAINER", help="name or id")
    verbs["stop"].add_argument(
        "name", metavar="PROFILE", nargs="?", default="", help="default: the container's name, in lower case"
    )
    add_options(verbs["ls"], quiet="names")
    verbs["show"].add_argument(
        "name", metavar="PROFILE", help="name of a profile, or of a container being recorded"
    )
    verbs["show"].add_argument("--format", default="text", metavar="FORMAT", help="text or json")
    verbs["diff"].add_argument("old", metavar="PROFILE")
    verbs["diff"].add_argument(
        "new", metavar="PROFILE", help="name of a profile, or of a container being recorded"
    )
    verbs["drift"].add_argument("container", metavar="CONTAINER", help="name or id")
    verbs["drift"].add_argument("--format", default="text", metavar="FORMAT", help="text or json")
    verbs["apply"].add_argument(
        "--enforce", default="deny", metavar="HOW", help="deny (default), or log: told only"
    )
    verbs["apply"].add_argument("name", metavar="PROFILE")
    verbs["apply"].add_argument("containers", metavar="CONTAINER", nargs="+", help="name or id")
    verbs["release"].add_argument("containers", metavar="CONTAINER", nargs="+", help="name or id")
    verbs["export"].add_argument(
        "--seccomp", action="store_true", help="its system calls, for docker, podman and other OCI managers"
    )
    verbs["export"].add_argument(
        "--for", dest="runtime", default="", metavar="RUNTIME",
        help="with --seccomp: leave room for the start of runc, crun, any of them (default) or none",
    )  # fmt: skip
    verbs["export"].add_argument("name", metavar="PROFILE")
    verbs["import"].add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="default: standard input"
    )
    verbs["rm"].add_argument("profiles", metavar="PROFILE", nargs="+")


def run(options: Namespace, client: Client) -> int:
    match options.verb:
        case "record":
            client.call("POST", f"{_container(options.container)}/record")
        case "stop":
            name = options.name or _name_like(client, options.container)
            print(_summary(client.call("POST", f"{_container(options.container)}/save", body={"name": name})))
        case "ls":
            show(client.get("/v1/profiles"), COLUMNS, options=options, key="name")
        case "show":
            return _show(options, client)
        case "diff":
            return _diff(_profile(client, options.old), _profile_or_recording(client, options.new))
        case "drift":
            _drift(options, client)
        case "apply":
            return _apply(options, client)
        case "release":
            return on_each(
                options.containers, lambda name: _tell(name, client.call("DELETE", _container(name)))
            )
        case "export":
            print(json.dumps(_exported(options, client), indent=1, ensure_ascii=False))
        case "import":
            return _import(options.file, client)
        case _:
            return on_each(
                options.profiles, lambda name: client.call("DELETE", f"/v1/profiles/{quote(name)}")
            )
    return 0


def _container(name: str) -> str:
    return f"/v1/containers/{quote(name)}/profile"


def _name_like(client: Client, container: str) -> str:
    from insula.model.profile_name import name_like

    return name_like(client.get(f"/v1/containers/{quote(container)}")["name"])


def _profile(client: Client, name: str) -> Json:
    found: Json = client.get(f"/v1/profiles/{quote(name)}")
    return found


def _summary(profile: Json) -> str:
    counts = ", ".join(
        f"{'unknown' if profile[part] is None else len(profile[part])} {words}"
        for part, words in PARTS.items()
    )
    lost = (
        f"; {profile['lost_events']} events were lost: folders or addresses may be missing"
        if profile["lost_events"]
        else ""
    )
    missing = f"; incomplete: {profile['incomplete_because']}" if profile["incomplete_because"] else ""
    return f"{profile['name']}: {counts}, in {profile['seconds']:.0f} s{lost}{missing}"


def _profile_or_recording(client: Client, name: str) -> Json:
    from insula.model.errors import ContainerNotFound, ProfileNotFound

    try:
        return _profile(client, name)
    except ProfileNotFound as error:
        try:
            found: Json = client.get(_container(name))
        except ContainerNotFound:
            raise error from None
        return found


def _show(options: Namespace, client: Client) -> int:
    profile = _profile_or_recording(client, options.name)
    if options.format == "json":
        print(json.dumps(profile, indent=1, ensure_ascii=False))
        return 0
    check_form(options.format)
    print(_summary(profile))
    for part, words in PARTS.items():
        print(f"\n{words}:")
        if profile[part] is None:
            print("         ?  this kernel could not tell: they are not limited")
        for thing, count in sorted((profile[part] or {}).items(), key=lambda item: -item[1]):
            print(f"{count:>10}  {printable(thing)}")
    return 0


def _diff(old: Json, new: Json) -> int:
    """Print differences.  Returns: 1 if there is one, as diff(1)."""
    lines = []
    for part, words in PARTS.items():
        before, after = set(old[part] or ()), set(new[part] or ())
        lines += [f"- {words}: {printable(each)}" for each in sorted(before - after)]
        lines += [f"+ {words}: {printable(each)}" for each in sorted(after - before)]
    if lines:
        print("\n".join(lines))
    return 1 if lines else 0


def _apply(options: Namespace, client: Client) -> int:
    if options.enforce not in ("deny", "log"):
        raise UsageError(f"cannot enforce by `{options.enforce}`", hint="deny or log")
    if options.enforce == "deny":
        _warn(_profile(client, options.name))
    wish = {"profile": options.name, "enforce": options.enforce}
    return on_each(
        options.containers,
        lambda name: _tell(name, client.call("POST", f"{_container(name)}/apply", body=wish)),
    )


def _warn(profile: Json) -> None:
    """Say why what is enforced may refuse what is needed."""
    reasons = []
    if not profile["is_from_birth"]:
        reasons.append("was not recorded from a start on: a start may need what it lacks")
    if profile["incomplete_because"]:
        reasons.append(f"is incomplete: {profile['incomplete_because']}")
    for reason in reasons:
        print(f"insula: warning: `{profile['name']}` {reason}; `--enforce log` tells what", file=sys.stderr)


def _tell(name: str, applied: Json) -> None:
    """Say what of it does not count yet, or not at all."""
    if applied["is_running"]:
        print(f"{name}: from its next start on (insula restart {name})")
    if applied["is_root_writable"]:
        print(f"{name}: the profile has something written in `/`: no folder is read-only")
    if applied["is_old"]:
        print(f"{name}: recorded by an older insula: only its system calls and capabilities hold")


def _drift(options: Namespace, client: Client) -> None:
    found = client.get(f"/v1/containers/{quote(options.container)}/drift")
    if options.format == "json":
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    check_form(options.format)
    for each in found["drifts"]:
        answer = "refused" if each["is_refused"] else "done"
        who = f" by {printable(each['command'])}" if each["command"] else ""
        print(f"{each['count']:>8} {answer:<8} {PARTS[each['part']]}: {printable(each['thing'])}{who}")
    if found["not_remembered"]:
        print(f"{found['not_remembered']:>8} times something else: there was too much to remember")
    if found["lost_events"]:
        print(f"{found['lost_events']:>8} events were lost: what they would have shown is missing here")


def _exported(options: Namespace, client: Client) -> Json:
    if options.runtime and not options.seccomp:
        raise UsageError("cannot use `--for` alone", hint="it is about --seccomp")
    if not options.seccomp:
        return _profile(client, options.name)
    if options.runtime not in ("", *RUNTIMES):
        raise UsageError(f"cannot export for `{options.runtime}`", hint=", ".join(RUNTIMES))
    found: Json = client.get(
        f"/v1/profiles/{quote(options.name)}/seccomp?runtime={options.runtime or RUNTIMES[0]}"
    )
    return found


def _import(path: str, client: Client) -> int:
    """Hand a file on as it is: who refuses it names its line."""
    try:
        if path == "-":
            text = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with open(path, "rb") as file:
                text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read `{path}`: {error.strerror}") from None
    if len(text) > MAX_FILE_BYTES:
        raise UsageError(f"cannot import `{path}`: no profile has more than {MAX_FILE_BYTES} bytes")
    name = _name_in(text)
    client.call("PUT", f"/v1/profiles/{quote(name)}", body=text)
    print(name)
    return 0


def _name_in(text: bytes) -> str:
    try:
        return str(json.loads(text)["name"])
    except (ValueError, KeyError, TypeError):
        return "unknown"  # it will be refused
