# SPDX-License-Identifier: Apache-2.0
"""The HTTP application: who calls, may they, the handler, the answer, the audit.  One way for every route."""

import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from aiohttp import web
from aiohttp.typedefs import Middleware

from insula.api import auth
from insula.api.bodies import Failure
from insula.api.call import MAX_BODY_BYTES, Api, Call, answer
from insula.api.checkpoints import ACCEPTED
from insula.api.deed import counted, written_down
from insula.api.errors import CODES, INTERNAL, body_of, status_of
from insula.api.gate import Gate
from insula.api.routes import ROUTES, Route
from insula.model.errors import (
    Conflict,
    Denied,
    InsulaError,
    NotFound,
    OperationNotFound,
    TooManyRequests,
    from_code,
)
from insula.model.grant import Action, scope
from insula.model.span import TENANT, Attributes
from insula.runtime.store import no_container
from insula.tenant.audit import Audit
from insula.tenant.redaction import NOTHING_HIDDEN, Redaction

LOG = logging.getLogger(__name__)

SHUTDOWN_S = 1.0
"""How long open requests have when the daemon ends: those that follow something would never end by themselves."""
IDLE_S = 60.0
"""A connection that asks nothing for so long is closed."""
LINGER_S = 2.0
"""How long the rest of a refused body is read, so that its sender sees the answer."""
_UNTRACED = frozenset({Action.READ, Action.OPEN, Action.PEER})
_OF_CONTAINERS = frozenset({"containers", "streams", "checkpoints", "archive"})
_HIDDEN: web.RequestKey[Callable[[], Redaction]] = web.RequestKey("hidden")
"""Of a request, once it is known whose things it is about: finds out what the caller is not told of them."""
_HARMLESS = frozenset({Action.READ, Action.OPEN})
"""Actions that are served also while nothing can be written into the audit log."""

Plain = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build(api: Api, *, routes: Sequence[Route] = ROUTES) -> web.AppRunner:
    """Return the application, ready for sites (unix socket, TLS) to be added."""
    application = web.Application(
        client_max_size=MAX_BODY_BYTES, middlewares=[_explain, _pace(api.gate, audit=api.audit)]
    )
    for route in routes:
        application.router.add_route(route.method, route.path, _serve(route, api=api))
    return web.AppRunner(
        application,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=SHUTDOWN_S,
        keepalive_timeout=IDLE_S,
        lingering_time=LINGER_S,
    )


def _pace(gate: Gate, *, audit: Audit) -> Middleware:
    @web.middleware
    async def pace(request: web.Request, handler: Plain) -> web.StreamResponse:
        try:
            await gate.wait_turn(request)
        except TooManyRequests as error:
            counted(request, error.code, audit=audit)
            raise
        if (unknown := request.match_info.http_exception) is not None:
            counted(request, CODES.get(unknown.status, "bad_request"), audit=audit)
        return await handler(request)

    return pace


def _serve(route: Route, *, api: Api) -> Plain:
    async def handle(request: web.Request) -> web.StreamResponse:
        with written_down(request, route.action, audit=api.audit) as deed:
            caller = auth.Caller.of(request, directory=api.store, admins=api.identity.admins)
            asked = request.query.get("tenant", "")
            deed.by(principal := caller.now(), asked_tenant=asked)
            grant = caller.may(route.action, principal, target_tenant=asked)
            # In the tenant of now: it may be the caller's own because none was named, and another one later.
            judge = functools.partial(caller.may, route.action, target_tenant=grant.tenant)
            find_hidden: Callable[[], Redaction] = functools.partial(
                api.sight.of_reader, principal, grant.tenant
            )
            request[_HIDDEN] = find_hidden
            if route.action not in _HARMLESS:
                api.audit.require_room()
            named = request.match_info.get("ref", "")
            call = Call(request=request, grant=grant, api=api, judge=judge, deed=deed, ref=named)
            async with api.gate.passed(request, grant):
                call = await _confined(call)
                deed.may(grant)
                await _note_owner(call)
                with api.standing.hold(request, judge):
                    response = await _traced(call, route)
        return response

    return handle


async def _traced(call: Call, route: Route) -> web.StreamResponse:
    """Have the handler answer.  What changes something is a trace; an operation is one of its own, and this is not told."""
    if route.action in _UNTRACED or route.method == "GET":
        return await route.handler(call)
    parent = call.request.headers.get("traceparent", "")
    with call.api.tracer.root(_name_of(route), parent=parent, attributes=_attributes(call, route)) as span:
        response = await route.handler(call)
        if span is not None and response.status == ACCEPTED:
            span.drop()
    return response


def _name_of(route: Route) -> str:
    """Return `create` of a container, `networks.create` of others."""
    module, verb = route.handler.__module__.rpartition(".")[2], route.handler.__name__
    return verb if module in _OF_CONTAINERS else f"{module}.{verb}"


def _attributes(call: Call, route: Route) -> Attributes:
    named = {"insula.subject": call.ref} if call.ref else {}
    return {
        "http.request.method": route.method,
        "http.route": route.path,
        TENANT: call.grant.tenant,
        "enduser.id": call.grant.principal.name,
        **named,
    }


async def _confined(call: Call) -> Call:
    """Hold a token that is for one container to that one, by its id, and to what is done with it.

    Raises: Denied where no container is named; NotFound for another one and for its operations, as if there were none.
    """
    only, path = call.grant.principal.container, call.request.path
    if not only or call.grant.action is Action.OPEN:
        return call
    if call.ref and path.startswith("/v1/containers/"):
        found = await call.run(call.api.store.find_container, scope(call.grant), call.ref)
        if found.id != only:
            raise no_container(call.ref)
        return replace(call, ref=only)
    if call.ref and path.startswith("/v1/operations/"):
        operation = await call.run(call.api.operations.get, scope(call.grant), call.ref)
        if operation.container != only:
            raise OperationNotFound(f"cannot find operation `{call.ref}`")
        return call
    raise Denied("cannot use the token for this: it is for one container only")


async def _note_owner(call: Call) -> None:
    """Note whose container it is that the caller has named among all tenants': its owner reads of it, too."""
    if scope(call.grant) is None and call.ref and call.request.path.startswith("/v1/containers/"):
        with suppress(NotFound, Conflict):
            call.deed.about((await call.find()).tenant)


@web.middleware
async def _explain(request: web.Request, handler: Plain) -> web.StreamResponse:
    """Turn what a handler raised into an answer.  The door where unknown exceptions are caught and logged."""
    try:
        return await handler(request)
    except InsulaError as error:
        LOG.debug("request refused", extra={"fields": {"path": request.path, "code": error.code}})
        return _refuse(request, error, status=status_of(error))
    except web.HTTPException as error:
        code = CODES.get(error.status, "bad_request")
        known = from_code(code, f"cannot serve `{request.method} {request.path}`: {error.reason.lower()}")
        return _refuse(request, known, status=error.status)
    except ConnectionError:
        # The client has gone; nobody is there to be told.
        raise
    except Exception:
        LOG.exception("request failed", extra={"fields": {"method": request.method, "path": request.path}})
        return _refuse(request, InsulaError("internal error", hint="see the daemon's log"), status=INTERNAL)


def _refuse(request: web.Request, error: InsulaError, *, status: int) -> web.StreamResponse:
    if request.writer.output_size > 0 and request.transport is not None:
        # The answer has begun: cut it, so that nobody takes a part for the whole.
        request.transport.abort()
    hidden = request[_HIDDEN]() if _HIDDEN in request else NOTHING_HIDDEN
    refusal = answer(Failure(error=hidden.error(body_of(error))), status=status)
    if isinstance(error, TooManyRequests):
        refusal.headers["Retry-After"] = str(error.after_s)
    return refusal
