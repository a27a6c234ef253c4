# SPDX-License-Identifier: Apache-2.0
"""What each route is for, what it reads and what it answers with: the words of the API's document.  Data only."""

from enum import StrEnum
from typing import Any

import msgspec

from insula.api import bodies
from insula.api.history import HistoryQuery, SpanQuery
from insula.api.monitor import AllCallsQuery, CallsQuery, TraceQuery
from insula.api.profiles import SeccompQuery
from insula.model import change, history, monitor, profile, quota, record, spec, users
from insula.model.export import SinkCounts
from insula.monitor.oci_seccomp import SeccompList
from insula.monitor.rules import Rule, RulesJudged


class Answer(StrEnum):
    """The form of an answer."""

    JSON = "json"
    LINES = "lines"
    """A JSON value a line, as they come."""
    TAR = "tar"
    TEXT = "text"
    NOTHING = "nothing"
    STREAM = "stream"
    """The connection is upgraded: `model/stream.py`."""


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """One route."""

    words: str
    query: Any = None
    """A `bodies.Query`."""
    body: Any = None
    """The type of the JSON body."""
    example: Any = None
    """Such a body, as the document shows it; of the body's type."""
    may_be_empty: bool = False
    is_upload: bool = False
    """The body is a tar stream."""
    answer: Any = None
    """The type that is answered with, of one line if it is lines."""
    form: Answer = Answer.JSON
    status: int = 200
    may_stream: bool = False
    """With `stream=1`: one such value a line, one a second."""


def _get(words: str, answer: Any, **rest: Any) -> Described:
    return Described(words=words, answer=answer, **rest)


def _do(words: str, body: Any = None, example: Any = None, **rest: Any) -> Described:
    return Described(words=words, body=body, example=example, form=Answer.NOTHING, status=204, **rest)


def _make(words: str, body: Any, answer: Any, example: Any, **rest: Any) -> Described:
    return Described(words=words, body=body, answer=answer, example=example, **{"status": 201, **rest})


def _begin(words: str, body: Any, example: Any = None, **rest: Any) -> Described:
    return Described(
        words=words, body=body, example=example, answer=record.OperationRecord, status=202, **rest
    )


_LINES = {"form": Answer.LINES}
_C = "/v1/containers/{ref}"
_PROFILE = profile.Profile(
    name="web",
    calls={"read": 10, "write": 5},
    capabilities={},
    written={"/tmp": 1},
    outgoing={},
    listening={},
)
_RULES = '[[rule]]\nname = "shell"\nkinds = ["exec"]\npaths = ["/bin/sh"]\n'

DESCRIBED: dict[str, Described] = {
    "GET /openapi.json": _get("this document", None),
    "GET /v1/version": _get("what runs here", bodies.Version),
    "GET /v1/whoami": _get("who the caller is, and may do", users.Identity),
    "GET /v1/users": _get("users that are known", list[users.UserRecord]),
    "POST /v1/users": _make("give a user a role, or make a remote one", users.UserWish, users.UserAdded, users.UserWish(name="alice")),
    "PATCH /v1/users/{ref}": Described(words="change a user", body=users.UserChange, example=users.UserChange(), answer=users.UserRecord),
    "DELETE /v1/users/{ref}": _do("forget a user; its rights end at once"),
    "GET /v1/tokens": _get("tokens, without their secrets", list[users.TokenRecord]),
    "POST /v1/tokens": _make("make a token; its secret is told once", users.TokenWish, users.TokenMade, None),
    "DELETE /v1/tokens/{ref}": _do("take a token back"),
    "GET /v1/policy": _get("what users may ask for", bodies.PolicyView),
    "POST /v1/policy/check": _do("judge a policy", bodies.PolicyText, bodies.PolicyText(text="")),
    "POST /v1/policy/reload": _get("read the policy again", bodies.PolicyView),
    "GET /v1/host": _get("this host", bodies.HostFacts),
    "POST /v1/host/drain": _begin("move all running containers to the paired hosts", spec.DrainWish, may_be_empty=True),
    "POST /v1/host/undrain": _begin("bring back what a drain moved away", spec.UndrainWish, may_be_empty=True),
    "GET /v1/hosts": _get("paired hosts", list[bodies.HostView]),
    "POST /v1/hosts/token": _get("a token with which another host can pair", bodies.PairingToken),
    "POST /v1/hosts": _make("pair with a host that printed a token", spec.HostWish, record.HostRecord, None),
    "DELETE /v1/hosts/{ref}": _do("trust a host no more"),
    "POST /v1/containers": _make("create a container", spec.Spec, bodies.Created, spec.Spec(image="host", command=("sleep", "60"))),
    "GET /v1/containers": _get("containers: those that run, or all", list[record.ContainerRecord], query=bodies.ListQuery),
    f"GET {_C}": _get("all that is known of a container", record.ContainerRecord),
    f"DELETE {_C}": _do("remove a container", query=bodies.DeleteQuery),
    f"POST {_C}/start": _do("start it"),
    f"POST {_C}/stop": _do("ask it to end, kill it when the time is over", spec.StopWish, spec.StopWish(), may_be_empty=True),
    f"POST {_C}/kill": _do("send a signal", spec.KillWish, spec.KillWish(signal="TERM"), may_be_empty=True),
    f"POST {_C}/restart": _do("stop and start it", spec.StopWish, spec.StopWish(), may_be_empty=True),
    f"POST {_C}/pause": _do("freeze all its processes"),
    f"POST {_C}/unpause": _do("let them go on"),
    f"POST {_C}/rename": _do("give it another name", spec.RenameWish, spec.RenameWish(name="web")),
    f"POST {_C}/resize": _do("tell its terminal a size", spec.ResizeWish, spec.ResizeWish(rows=24, columns=80)),
    f"GET {_C}/wait": _get("how it ended, when it has", bodies.Ended, query=bodies.WaitQuery),
    f"GET {_C}/logs": _get("what it wrote", record.LogLine, query=bodies.LogsQuery, **_LINES),
    f"POST {_C}/attach": Described(words="stand at its terminal or pipes", query=bodies.AttachQuery, form=Answer.STREAM, status=101),
    f"POST {_C}/exec": Described(words="run another program in it", body=spec.ExecSpec, example=spec.ExecSpec(command=("id",)), form=Answer.STREAM, status=101),
    f"GET {_C}/stats": _get("what it uses", record.ContainerStats, query=bodies.StreamQuery, may_stream=True),
    "GET /v1/stats": _get("what all that run use", list[record.ContainerStats], query=bodies.StreamQuery, may_stream=True),
    f"GET {_C}/history": _get("what it used during the last hour, in spans of so many seconds", list[history.Usage], query=HistoryQuery),
    "GET /v1/history": _get("what each used during the last so many seconds of the hour that is kept", list[history.Usage], query=SpanQuery),
    f"GET {_C}/trace": _get("what it asks of the kernel, as it happens, also after it has moved", monitor.TraceLine, query=TraceQuery, **_LINES),
    f"GET {_C}/calls": _get("its system calls, counted while this is open", list[monitor.ContainerCounts], query=CallsQuery, may_stream=True),
    "GET /v1/calls": _get("system calls of all that run, counted while this is open", list[monitor.ContainerCounts], query=AllCallsQuery, may_stream=True),
    "GET /v1/audit": _get("the caller's part of the audit log", None, query=bodies.AuditQuery, **_LINES),
    "GET /v1/audit/verify": _get("whether the audit log is as it was written", bodies.AuditVerdict),
    "GET /metrics": _get("figures for Prometheus", None, form=Answer.TEXT),
    "GET /v1/events": _get("what happens to containers, from now on", change.ChangeLine, **_LINES),
    f"POST {_C}/profile/record": _do("record what it uses"),
    f"POST {_C}/profile/save": Described(words="end a recording and keep it", body=profile.SaveWish, example=profile.SaveWish(name="web"), answer=profile.Profile),
    f"POST {_C}/profile/apply": Described(words="hold it to a profile, from its next start on", body=profile.ApplyWish, example=profile.ApplyWish(profile="web"), answer=profile.Applied),
    f"DELETE {_C}/profile": Described(words="hold it to nothing any more, from its next start on", answer=profile.Applied),
    f"GET {_C}/profile": _get("what is recorded so far", profile.Profile),
    f"GET {_C}/drift": _get("what it has done since its last start that its profile lacks", profile.Drifts),
    "GET /v1/profiles": _get("profiles", list[profile.Profile]),
    "GET /v1/profiles/{ref}": _get("a profile", profile.Profile),
    "GET /v1/profiles/{ref}/seccomp": _get("its system calls as an allow-list for OCI runtimes, docker and podman", SeccompList, query=SeccompQuery),
    "PUT /v1/profiles/{ref}": Described(words="keep a profile of another host", body=profile.Profile, example=_PROFILE, answer=profile.Profile),
    "DELETE /v1/profiles/{ref}": _do("forget a profile"),
    "GET /v1/rules": _get("which events are an alarm", list[Rule]),
    "POST /v1/rules/check": Described(words="judge rules", body=bodies.PolicyText, example=bodies.PolicyText(text=_RULES), answer=RulesJudged),
    "POST /v1/rules/reload": _get("read the rules again", RulesJudged),
    "GET /v1/exports": _get("where events and traces go, and how many went", list[SinkCounts]),
    "POST /v1/exports/check": _do("judge a list of exports", bodies.PolicyText, bodies.PolicyText(text="")),
    "POST /v1/exports/reload": _get("read the list of exports again", list[SinkCounts]),
    f"GET {_C}/top": _get("its processes", list[record.ProcessRecord]),
    f"GET {_C}/diff": _get("files that it changed", list[record.ChangedPath]),
    f"GET {_C}/archive": _get("a path of it, as tar", None, query=bodies.PathQuery, form=Answer.TAR),
    f"PUT {_C}/archive": _do("unpack a tar below a folder of it", query=bodies.PathQuery, is_upload=True),
    f"GET {_C}/checkpoints": _get("its checkpoints", list[record.CheckpointRecord]),
    f"POST {_C}/checkpoints": _begin("save its state", spec.CheckpointWish, spec.CheckpointWish(name="before"), may_be_empty=True),
    f"DELETE {_C}/checkpoints/{{name}}": _do("forget a checkpoint"),
    f"POST {_C}/restore": _begin("go on from a checkpoint", spec.RestoreWish, spec.RestoreWish(checkpoint="before"), may_be_empty=True),
    f"POST {_C}/migrate": _begin("carry it to a paired host while it runs", spec.MigrateWish, spec.MigrateWish(target="beta")),
    f"POST {_C}/resolve": _do("decide for a host that does not return", spec.ResolveWish, None),
    "GET /v1/images": _get("images", list[record.ImageRecord]),
    "POST /v1/images/import": Described(words="make an image of a tar", query=bodies.NameQuery, is_upload=True, answer=record.ImageRecord, status=201),
    "POST /v1/images/build": _begin("build an image of Debian packages", spec.ImageBuildWish, spec.ImageBuildWish(name="web", packages=("nginx-light",))),
    "GET /v1/images/{ref}": _get("an image", record.ImageRecord),
    "DELETE /v1/images/{ref}": _do("remove an image"),
    "GET /v1/tenants": _get("who shares this host, and what each uses", list[quota.TenantView]),
    "POST /v1/tenants": _make("make a tenant", quota.TenantWish, quota.TenantView, quota.TenantWish(name="team")),
    "GET /v1/tenants/{ref}": _get("a tenant, used and limit", quota.TenantView),
    "PATCH /v1/tenants/{ref}": Described(words="change limits", body=quota.QuotaWish, example=None, answer=quota.TenantView),
    "DELETE /v1/tenants/{ref}": _do("forget a tenant that has nothing"),
    "GET /v1/networks": _get("networks", list[record.NetworkRecord]),
    "POST /v1/networks": _make("make a network", spec.NetworkWish, record.NetworkRecord, spec.NetworkWish(name="inside")),
    "GET /v1/networks/{ref}": _get("a network", record.NetworkRecord),
    "DELETE /v1/networks/{ref}": _do("remove a network"),
    "GET /v1/volumes": _get("volumes", list[record.VolumeRecord]),
    "POST /v1/volumes": _make("make a volume", spec.VolumeWish, record.VolumeRecord, spec.VolumeWish(name="data")),
    "GET /v1/volumes/{ref}": _get("a volume", record.VolumeRecord),
    "DELETE /v1/volumes/{ref}": _do("remove a volume and its files"),
    "GET /v1/operations": _get("long operations", list[record.OperationRecord]),
    "GET /v1/operations/{ref}": _get("an operation", record.OperationRecord),
    "GET /v1/operations/{ref}/follow": _get("an operation until it ends", record.OperationRecord, **_LINES),
    "DELETE /v1/operations/{ref}": _get("ask an operation to stop", record.OperationRecord),
    "POST /v1/peer/containers/{ref}/trace": Described(words="between hosts: go on watching", body=monitor.TraceWish, example=monitor.TraceWish(), answer=monitor.TraceLine, form=Answer.LINES),
    "POST /v1/peer/pair": Described(words="between hosts: pair, with a token", body=bodies.PairRequest, answer=bodies.PairAnswer),
}  # fmt: skip
