# SPDX-License-Identifier: Apache-2.0
"""Errors as HTTP answers: one table, by class; a class that is not in it has its parent's status."""

from insula.model import errors
from insula.model.record import ErrorBody

INTERNAL = 500

STATUSES: dict[type[errors.InsulaError], int] = {
    errors.InsulaError: INTERNAL,
    errors.BadRequest: 400,
    errors.Denied: 403,
    errors.Unauthenticated: 401,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Exhausted: 507,
    errors.LimitRefused: 422,
    errors.TooManyRequests: 429,
    errors.Unsupported: 501,
    errors.AuditUnavailable: 503,
    errors.StartFailed: 422,
    errors.CheckpointFailed: 500,
    errors.RestoreFailed: 500,
    errors.MigrationFailed: 502,
    errors.Cancelled: 409,
    errors.ProtocolError: 400,
    errors.Interrupted: 503,
    errors.SpawnerGone: 503,
    errors.DaemonUnreachable: 502,
}

#: Codes of aiohttp's own refusals.
CODES = {400: "bad_request", 404: "not_found", 405: "bad_request", 411: "bad_request", 413: "bad_request"}


def status_of(error: errors.InsulaError) -> int:
    """Return the HTTP status of an error."""
    for kind in type(error).__mro__:
        if issubclass(kind, errors.InsulaError) and kind in STATUSES:
            return STATUSES[kind]
    return INTERNAL


def body_of(error: errors.InsulaError) -> ErrorBody:
    """Return what a client is told."""
    return ErrorBody(code=error.code, message=error.message, hint=error.hint)
