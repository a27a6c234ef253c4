# SPDX-License-Identifier: Apache-2.0
"""The API as a table: a line per route, with the right that it needs.  Described in docs/api.md."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from insula.api import (
    archive,
    audit,
    checkpoints,
    containers,
    exports,
    history,
    hosts,
    images,
    monitor,
    networks,
    operations,
    policy,
    profiles,
    rules,
    streams,
    system,
    tenants,
    users,
    volumes,
)
from insula.api.call import Call
from insula.model.grant import Action

Handler = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: str
    handler: Handler
    action: Action
    """The right that its caller needs."""

    def __post_init__(self) -> None:
        if not isinstance(self.action, Action):
            raise TypeError(f"the route {self.method} {self.path} names no right")


_CONTAINER = "/v1/containers/{ref}"

#: The first match counts: fixed words stand before names.
ROUTES: tuple[Route, ...] = (
    Route("GET", "/openapi.json", system.openapi, Action.OPEN),
    Route("GET", "/v1/version", system.version, Action.OPEN),
    Route("GET", "/v1/whoami", users.whoami, Action.OPEN),
    Route("GET", "/v1/users", users.list_users, Action.ADMIN),
    Route("POST", "/v1/users", users.add_user, Action.ADMIN),
    Route("PATCH", "/v1/users/{ref}", users.change_user, Action.ADMIN),
    Route("DELETE", "/v1/users/{ref}", users.remove_user, Action.ADMIN),
    Route("GET", "/v1/tokens", users.list_tokens, Action.TOKEN),
    Route("POST", "/v1/tokens", users.create_token, Action.TOKEN),
    Route("DELETE", "/v1/tokens/{ref}", users.delete_token, Action.TOKEN),
    Route("GET", "/v1/policy", policy.show, Action.ADMIN),
    Route("POST", "/v1/policy/check", policy.check, Action.ADMIN),
    Route("POST", "/v1/policy/reload", policy.reload, Action.ADMIN),
    Route("GET", "/v1/host", system.host, Action.READ),
    Route("POST", "/v1/host/drain", hosts.drain, Action.OPERATE),
    Route("POST", "/v1/host/undrain", hosts.undrain, Action.OPERATE),
    Route("GET", "/v1/hosts", hosts.list_all, Action.OPERATE),
    Route("POST", "/v1/hosts/token", hosts.issue_token, Action.ADMIN),
    Route("POST", "/v1/hosts", hosts.add, Action.ADMIN),
    Route("DELETE", "/v1/hosts/{ref}", hosts.remove, Action.ADMIN),
    Route("POST", "/v1/containers", containers.create, Action.CREATE),
    Route("GET", "/v1/containers", containers.list_all, Action.READ),
    Route("GET", _CONTAINER, containers.inspect, Action.READ),
    Route("DELETE", _CONTAINER, containers.delete, Action.DELETE),
    Route("POST", _CONTAINER + "/start", containers.start, Action.CONTROL),
    Route("POST", _CONTAINER + "/stop", containers.stop, Action.CONTROL),
    Route("POST", _CONTAINER + "/kill", containers.kill, Action.CONTROL),
    Route("POST", _CONTAINER + "/restart", containers.restart, Action.CONTROL),
    Route("POST", _CONTAINER + "/pause", containers.pause, Action.CONTROL),
    Route("POST", _CONTAINER + "/unpause", containers.unpause, Action.CONTROL),
    Route("POST", _CONTAINER + "/rename", containers.rename, Action.CONTROL),
    Route("POST", _CONTAINER + "/resize", containers.resize, Action.CONTROL),
    Route("GET", _CONTAINER + "/wait", containers.wait, Action.READ),
    Route("GET", _CONTAINER + "/logs", streams.logs, Action.LOGS),
    Route("POST", _CONTAINER + "/attach", streams.attach, Action.ENTER),
    Route("POST", _CONTAINER + "/exec", streams.execute, Action.ENTER),
    Route("GET", _CONTAINER + "/stats", containers.stats, Action.READ),
    Route("GET", "/v1/stats", containers.all_stats, Action.READ),
    Route("GET", _CONTAINER + "/history", history.one, Action.READ),
    Route("GET", "/v1/history", history.every, Action.READ),
    Route("GET", _CONTAINER + "/trace", monitor.trace, Action.ENTER),
    Route("GET", _CONTAINER + "/calls", monitor.calls, Action.READ),
    Route("GET", "/v1/audit", audit.read, Action.LOGS),
    Route("GET", "/v1/audit/verify", audit.check, Action.ADMIN),
    Route("GET", "/metrics", monitor.metrics, Action.READ),
    Route("GET", "/v1/events", monitor.events, Action.READ),
    Route("POST", _CONTAINER + "/profile/record", profiles.record, Action.CONTROL),
    Route("POST", _CONTAINER + "/profile/save", profiles.save, Action.CONTROL),
    Route("POST", _CONTAINER + "/profile/apply", profiles.apply, Action.CONTROL),
    Route("DELETE", _CONTAINER + "/profile", profiles.release, Action.CONTROL),
    Route("GET", _CONTAINER + "/profile", profiles.recorded, Action.READ),
    Route("GET", _CONTAINER + "/drift", profiles.drift, Action.READ),
    Route("GET", "/v1/rules", rules.list_all, Action.ADMIN),
    Route("POST", "/v1/rules/check", rules.check, Action.ADMIN),
    Route("POST", "/v1/rules/reload", rules.reload, Action.ADMIN),
    Route("GET", "/v1/exports", exports.list_all, Action.ADMIN),
    Route("POST", "/v1/exports/check", exports.check, Action.ADMIN),
    Route("POST", "/v1/exports/reload", exports.reload, Action.ADMIN),
    Route("GET", "/v1/profiles", profiles.list_all, Action.READ),
    Route("GET", "/v1/profiles/{ref}", profiles.inspect, Action.READ),
    Route("GET", "/v1/profiles/{ref}/seccomp", profiles.seccomp, Action.READ),
    Route("PUT", "/v1/profiles/{ref}", profiles.put, Action.CREATE),
    Route("DELETE", "/v1/profiles/{ref}", profiles.delete, Action.DELETE),
    Route("GET", "/v1/calls", monitor.all_calls, Action.READ),
    Route("GET", _CONTAINER + "/top", containers.top, Action.READ),
    Route("GET", _CONTAINER + "/diff", containers.diff, Action.READ),
    Route("GET", _CONTAINER + "/archive", archive.read, Action.ENTER),
    Route("PUT", _CONTAINER + "/archive", archive.write, Action.ENTER),
    Route("GET", _CONTAINER + "/checkpoints", checkpoints.list_all, Action.READ),
    Route("POST", _CONTAINER + "/checkpoints", checkpoints.checkpoint, Action.CHECKPOINT),
    Route("DELETE", _CONTAINER + "/checkpoints/{name}", checkpoints.delete, Action.CHECKPOINT),
    Route("POST", _CONTAINER + "/restore", checkpoints.restore, Action.CHECKPOINT),
    Route("POST", _CONTAINER + "/migrate", checkpoints.migrate, Action.MIGRATE),
    Route("POST", _CONTAINER + "/resolve", checkpoints.resolve, Action.ADMIN),
    Route("GET", "/v1/images", images.list_all, Action.READ),
    Route("POST", "/v1/images/import", images.import_tar, Action.CREATE),
    Route("POST", "/v1/images/build", images.build, Action.CREATE),
    Route("GET", "/v1/images/{ref:.+}", images.inspect, Action.READ),
    Route("DELETE", "/v1/images/{ref:.+}", images.delete, Action.DELETE),
    Route("GET", "/v1/tenants", tenants.list_all, Action.READ),
    Route("POST", "/v1/tenants", tenants.create, Action.ADMIN),
    Route("GET", "/v1/tenants/{ref}", tenants.inspect, Action.READ),
    Route("PATCH", "/v1/tenants/{ref}", tenants.change, Action.ADMIN),
    Route("DELETE", "/v1/tenants/{ref}", tenants.delete, Action.ADMIN),
    Route("GET", "/v1/networks", networks.list_all, Action.READ),
    Route("POST", "/v1/networks", networks.create, Action.CREATE),
    Route("GET", "/v1/networks/{ref}", networks.inspect, Action.READ),
    Route("DELETE", "/v1/networks/{ref}", networks.delete, Action.DELETE),
    Route("GET", "/v1/volumes", volumes.list_all, Action.READ),
    Route("POST", "/v1/volumes", volumes.create, Action.CREATE),
    Route("GET", "/v1/volumes/{ref}", volumes.inspect, Action.READ),
    Route("DELETE", "/v1/volumes/{ref}", volumes.delete, Action.DELETE),
    Route("GET", "/v1/operations", operations.list_all, Action.READ),
    Route("GET", "/v1/operations/{ref}", operations.inspect, Action.READ),
    Route("GET", "/v1/operations/{ref}/follow", operations.follow, Action.READ),
    Route("DELETE", "/v1/operations/{ref}", operations.cancel, Action.CONTROL),
    Route("POST", "/v1/peer/containers/{ref}/trace", monitor.peer_trace, Action.PEER),
    Route("POST", "/v1/peer/pair", hosts.pair, Action.OPEN),
)
