# SPDX-License-Identifier: Apache-2.0
"""`insula token ls|create|rm`: what a program shows instead of its user; it may do part of what that user may."""

from __future__ import annotations

from insula.cli.many import on_each
from insula.cli.parser import UsageError, add_verbs
from insula.cli.render import Column, add_options, ago, show, until
from insula.client.http import quote
from insula.model.units import parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client, Json

HELP = "tokens by which programs give commands for you: ls, create, rm"

SCOPES = "read logs create control enter delete checkpoint migrate operate admin".split()
LONGEST_DAYS = 366

COLUMNS = (
    Column("ID", lambda row: str(row["id"])),
    Column("OWNER", lambda row: str(row["owner"])),
    Column("TENANT", lambda row: str(row["tenant"])),
    Column("SCOPES", lambda row: ",".join(row["scopes"]), shrink=1),
    Column("CONTAINER", lambda row: str(row.get("container", ""))[:12] or "-"),
    Column("CREATED", lambda row: ago(row["created_at"])),
    Column("ENDS", lambda row: until(row["expires_at"])),
    Column("LABEL", lambda row: str(row.get("label", "")), shrink=2),
)


def arguments(parser: ArgumentParser) -> None:
    verbs = add_verbs(
        parser,
        {
            "ls": "list your tokens (an admin with --tenant '*': all)",
            "create": "make a token and print it, this once",
            "rm": "revoke tokens; what they do right now is ended, too",
        },
    )
    add_options(verbs["ls"], quiet="ids")
    add = verbs["create"].add_argument
    add(
        "-s", "--scope", default="read", metavar="ACTION[,ACTION]",
        help="what it may do: read, logs, create, control, enter, delete, checkpoint, migrate … (default: read)",
    )  # fmt: skip
    add("-e", "--expires", default="30d", metavar="TIME", help="when it ends (default: 30d, at most 366d)")
    add("-c", "--container", default="", metavar="CONTAINER", help="the only container that it is for")
    add("-l", "--label", default="", metavar="TEXT", help="what it is for, in your words")
    verbs["rm"].add_argument("tokens", metavar="ID", nargs="+", help="as in `insula token ls`")


def run(options: Namespace, client: Client) -> int:
    match options.verb:
        case "ls":
            show(client.get("/v1/tokens"), COLUMNS, options=options, key="id")
        case "create":
            print(client.call("POST", "/v1/tokens", body=_wish(options))["secret"])
        case _:
            return on_each(options.tokens, lambda each: client.call("DELETE", f"/v1/tokens/{quote(each)}"))
    return 0


def _wish(options: Namespace) -> Json:
    scopes = [word.strip() for word in options.scope.split(",") if word.strip()]
    unknown = [word for word in scopes if word not in SCOPES]
    if unknown:
        raise UsageError(f"cannot use scope `{unknown[0]}`: no such action", hint=", ".join(SCOPES))
    expires_s = round(parse_duration(options.expires))
    if expires_s > LONGEST_DAYS * 24 * 3600:
        raise UsageError(f"cannot use --expires `{options.expires}`: more than {LONGEST_DAYS} days")
    return {
        "scopes": scopes,
        "expires_s": expires_s,
        "container": options.container,
        "label": options.label,
    }
