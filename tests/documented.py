# SPDX-License-Identifier: Apache-2.0
"""Answers held against the API's document: of the type that it tells, and without a field that it does not know."""

import functools
import json
from typing import Any

import jsonschema_rs

from insula.api.described import DESCRIBED, Answer
from insula.api.document import document

DOCUMENT: dict[str, Any] = json.loads(document())


def is_told(key: str) -> bool:
    """Tell whether the document has a type for what a route answers with.  key: `GET /v1/images/{ref}`."""
    return DESCRIBED[key].answer is not None and DESCRIBED[key].form in (Answer.JSON, Answer.LINES)


def faults(key: str, answer: object) -> list[str]:
    """Return what is wrong with an answer, or with one of its lines, where it succeeded."""
    return [
        f"{key} {'.'.join(map(str, each.instance_path))}: {each.message}"
        for each in _validator(key).iter_errors(answer)
    ]


@functools.cache
def _validator(key: str) -> jsonschema_rs.Draft202012Validator:
    method, path = key.split()
    success = DOCUMENT["paths"][path][method.lower()]["responses"][str(DESCRIBED[key].status)]
    form = "application/json" if DESCRIBED[key].form is Answer.JSON else "application/x-ndjson"
    content = success["content"][form]
    return jsonschema_rs.Draft202012Validator({**content["schema"], "components": _strict()})


@functools.cache
def _strict() -> dict[str, Any]:
    """Return the document's types, as those that say all: an older client may meet fields that it does not know."""
    schemas = DOCUMENT["components"]["schemas"]
    return {
        "schemas": {
            name: {"additionalProperties": False, **schema} if "properties" in schema else schema
            for name, schema in schemas.items()
        }
    }
