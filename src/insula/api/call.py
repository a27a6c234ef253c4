# SPDX-License-Identifier: Apache-2.0
"""What each handler gets: the request, the grant and the daemon's parts; and the edge where words become types."""

import asyncio
import contextvars
import functools
import json
import typing
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import msgspec
from aiohttp import web

from insula.api.bodies import Query
from insula.api.changes import Changes
from insula.api.deed import Deed
from insula.api.gate import Gate
from insula.api.lanes import Lanes, Turns
from insula.api.standing import Judge, Standing
from insula.api.verbs import Operations, Pairing, Policy, Users, Verbs
from insula.api.watch import DriftBook, Exports, HistoryBook, Monitor, Profiles, RuleBook, Sight
from insula.model.errors import BadRequest, InvalidSpec
from insula.model.grant import Action, Grant, scope
from insula.model.record import ContainerRecord
from insula.model.span import Tracer
from insula.runtime.store import Store
from insula.tenant.audit import Audit
from insula.tenant.check import check
from insula.tenant.redaction import Redaction

MAX_BODY_BYTES = 1 << 20
"""Of JSON bodies; uploads are streams and have no limit here."""
MAX_THREADS = 16
"""Verbs of one caller at once; each may wait for a container's lock, so many more than CPUs."""
MAX_TRANSFERS = 8
"""Uploads and downloads of one caller at once: a slow client holds its thread."""

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")
Body = TypeVar("Body", bound=msgspec.Struct)
QueryType = TypeVar("QueryType", bound=Query)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostIdentity:
    """What does not change while the daemon runs."""

    name: str
    version: str
    cgroups: str
    criu: str
    state_folder: str
    admins: frozenset[str] = frozenset()
    fingerprint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """The daemon's parts, as the API sees them."""

    identity: HostIdentity
    store: Store
    verbs: Verbs
    operations: Operations
    pairing: Pairing
    users: Users
    policy: Policy
    changes: Changes
    monitor: Monitor
    history: HistoryBook
    profiles: Profiles
    drifts: DriftBook
    rules: RuleBook
    sight: Sight
    exports: Exports
    audit: Audit
    standing: Standing
    gate: Gate
    tracer: Tracer = field(default_factory=Tracer)
    """Where traces of requests begin."""
    threads: Lanes = field(default_factory=lambda: Lanes("verb", width=MAX_THREADS))
    transfers: Lanes = field(default_factory=lambda: Lanes("transfer", width=MAX_TRANSFERS))
    readings: Turns = field(default_factory=Turns)
    """Readings of much: of the audit log, and of what containers have written and changed."""
    stopping: set[asyncio.Task[bool]] = field(default_factory=set)
    """Stops under way: they outlive the request that began them."""

    def close(self) -> None:
        """Take no more work.  What runs is finished by its threads."""
        self.threads.close()
        self.transfers.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request that was allowed."""

    request: web.Request
    grant: Grant
    api: Api
    deed: Deed
    """What its line in the audit log will say."""
    judge: Judge
    """Asks again whether the caller may do this, in the tenant of the grant: for what outlives the request."""
    ref: str = ""
    """The word in the path that names the thing; for a token of one container: its id."""

    def require(self, action: Action) -> None:
        """Raises: Denied unless the caller may do this, too, in the same tenant."""
        check(self.grant.principal, action, target_tenant=self.grant.tenant)

    @property
    def threads(self) -> Executor:
        """Where the caller's blocking work is done."""
        return self.api.threads.of(self.grant.principal)

    @property
    def transfers(self) -> Executor:
        """Where the caller's uploads and downloads are read and written."""
        return self.api.transfers.of(self.grant.principal)

    async def run(
        self, verb: Callable[Parameters, Answer], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Answer:
        """Call blocking code in a thread of the caller's, as a part of what is traced here."""
        work = functools.partial(verb, *args, **kwargs)
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self.threads, context.run, work)

    async def find(self) -> ContainerRecord:
        """Return the container that the path names."""
        return await self.run(self.api.store.find_container, scope(self.grant), self.ref)

    def redaction(self, tenant: str) -> Redaction:
        """Return what of a tenant's things the caller is not told."""
        return self.api.sight.of_reader(self.grant.principal, tenant)

    def query(self, kind: type[QueryType]) -> QueryType:
        """Decode what stands behind the `?`.  A switch may stand alone: `?follow`.

        Raises: BadRequest naming the parameter.
        """
        hints = typing.get_type_hints(kind)
        words = {
            name: self._said(name, value, hint=hints.get(name))
            for name, value in self.request.query.items()
            if name != "tenant"
        }
        try:
            return msgspec.convert(words, kind, strict=False)
        except msgspec.ValidationError as error:
            raise BadRequest(f"cannot read the query `{self.request.query_string}`: {error}") from error

    def _said(self, name: str, value: str, *, hint: object) -> str | list[str]:
        if typing.get_origin(hint) is tuple:  # that may be said several times
            return self.request.query.getall(name)
        return "true" if value == "" and hint is bool else value

    async def body(self, kind: type[Body], *, may_be_empty: bool = False) -> Body:
        """Decode the JSON body, strictly.

        Raises: InvalidSpec with the path to the field; BadRequest for what is no JSON.
        """
        data = await self.request.read()
        if not data and may_be_empty:
            data = b"{}"
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.ValidationError as error:
            raise InvalidSpec(_refusal(str(error))) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(f"cannot read the body: {_lower(str(error))}") from error


def _refusal(message: str) -> str:
    """Turn what msgspec says, ``Expected `int` >= 1 - at `$.parallel` ``, into our words."""
    reason, _, place = message.partition(" - at ")
    field = place.strip("`").removeprefix("$").removeprefix(".")
    return f"cannot use `{field}`: {_lower(reason)}" if field else f"cannot read the body: {_lower(reason)}"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def encoded(value: object) -> bytes:
    """Return a value as JSON.  What a program wrote may hold bytes that are no text: lone surrogates, escaped as such."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value), separators=(",", ":")).encode()


def answer(value: object, *, status: int = 200) -> web.Response:
    """Answer with JSON."""
    return web.Response(body=encoded(value), status=status, content_type="application/json")


def empty(status: int = 204) -> web.Response:
    """Answer with a status only."""
    return web.Response(status=status)


async def lines(call: Call) -> web.StreamResponse:
    """Begin an answer of one JSON value a line."""
    response = web.StreamResponse(
        headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"}
    )
    await response.prepare(call.request)
    return response


def line(value: object) -> bytes:
    """Return one line of such an answer."""
    return encoded(value) + b"\n"
