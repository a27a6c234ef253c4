# SPDX-License-Identifier: Apache-2.0
"""The API as an OpenAPI 3.1 document, made of the routes and of the types that their handlers read and answer with.

What a route is for, reads and answers stands in `described.py`; a route that is not described there fails a test.
Source: https://spec.openapis.org/oas/v3.1.0; JSON Schema 2020-12 by msgspec.
"""

import functools
import re
from typing import Any

import msgspec

from insula import __version__
from insula.api.bodies import Failure
from insula.api.described import DESCRIBED, Answer, Described
from insula.api.routes import ROUTES, Route

_REF = "#/components/schemas/{name}"
_PLACE = re.compile(r"\{(\w+)(?::[^}]*)?\}")
_MEDIA = {
    Answer.JSON: "application/json",
    Answer.LINES: "application/x-ndjson",
    Answer.TAR: "application/x-tar",
    Answer.TEXT: "text/plain",
}
_TENANT = {
    "name": "tenant",
    "in": "query",
    "schema": {"type": "string"},
    "description": "whose things; an admin's `*`: everybody's. Without it: the caller's own",
}


def key_of(route: Route) -> str:
    """Return the route as `described.py` names it: `GET /v1/images/{ref}`."""
    return f"{route.method} {_path_of(route)}"


def _path_of(route: Route) -> str:
    """Return the path without what a place may hold: `{ref}` for `{ref:.+}`."""
    return _PLACE.sub(r"{\1}", route.path)


@functools.cache
def document() -> bytes:
    """Return the document as JSON."""
    return msgspec.json.encode(_document())


def _document() -> dict[str, Any]:
    kinds = [
        kind
        for each in DESCRIBED.values()
        for kind in (each.query, each.body, each.answer)
        if kind is not None
    ]
    unique = list({str(kind): kind for kind in (*kinds, Failure)}.values())
    schemas, components = msgspec.json.schema_components(unique, ref_template=_REF)
    by_kind = {str(kind): schema for kind, schema in zip(unique, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        described = DESCRIBED[key_of(route)]
        paths.setdefault(_path_of(route), {})[route.method.lower()] = _operation(
            route, described, schemas=by_kind, components=components
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "insula",
            "version": __version__,
            "description": "One insulad. Reached by its unix socket, or by TLS 1.3 with a pinned certificate or a token.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://localhost", "description": "the unix socket /run/insula/api.sock"}],
        "security": [{}, {"token": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(
    route: Route, described: Described, *, schemas: dict[str, Any], components: dict[str, Any]
) -> dict[str, Any]:
    module = route.handler.__module__.rpartition(".")[2]
    found: dict[str, Any] = {
        "operationId": f"{module}_{route.handler.__name__}",
        "summary": described.words,
        "tags": [module],
        "x-insula-right": route.action.value,
        "parameters": _parameters(route, described, schemas=schemas, components=components),
        "responses": _responses(described, schemas=schemas),
    }
    if described.body is not None:
        content: dict[str, Any] = {"schema": schemas[str(described.body)]}
        if described.example is not None:
            content["example"] = msgspec.to_builtins(described.example)
        found["requestBody"] = {
            "required": not described.may_be_empty,
            "content": {"application/json": content},
        }
    elif described.is_upload:
        found["requestBody"] = {
            "required": True,
            "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}},
        }
    return found


def _parameters(
    route: Route, described: Described, *, schemas: dict[str, Any], components: dict[str, Any]
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _PLACE.findall(route.path)
    ]
    if described.query is not None:
        name = schemas[str(described.query)]["$ref"].rpartition("/")[2]
        schema = components[name]
        required = schema.get("required", ())
        found += [
            {"name": field, "in": "query", "required": field in required, "schema": kind}
            for field, kind in schema["properties"].items()
        ]
    return [*found, _TENANT]


def _responses(described: Described, *, schemas: dict[str, Any]) -> dict[str, Any]:
    success: dict[str, Any] = {"description": "done"}
    if described.form is Answer.STREAM:
        success["description"] = "the connection becomes a stream of frames (`insula-stream`)"
    elif described.form is not Answer.NOTHING:
        media = _MEDIA[described.form]
        schema = schemas[str(described.answer)] if described.answer is not None else None
        success["content"] = {media: {"schema": schema} if schema is not None else {}}
    refused = {
        "description": "refused: code, message, and where there is one a hint",
        "content": {"application/json": {"schema": schemas[str(Failure)]}},
    }
    found: dict[str, Any] = {str(described.status): success, "default": refused}
    if described.may_stream:
        success["content"]["application/x-ndjson"] = {}
    return found
