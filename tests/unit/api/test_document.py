# SPDX-License-Identifier: Apache-2.0
"""The API's document: every route is in it, its examples are right, and so is it."""

import json
from typing import Any

import msgspec
import pytest
import schemathesis

from insula.api.described import DESCRIBED, Answer
from insula.api.document import document, key_of
from insula.api.routes import ROUTES

DOCUMENT: dict[str, Any] = json.loads(document())


def test_every_route_is_described_and_nothing_else() -> None:
    assert {key_of(route) for route in ROUTES} == set(DESCRIBED)


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names)) == len(ROUTES)


@pytest.mark.parametrize("key", [key for key, each in DESCRIBED.items() if each.example is not None])
def test_examples_are_of_the_type_that_is_read(key: str) -> None:
    described = DESCRIBED[key]
    method, path = key.split()
    shown = DOCUMENT["paths"][path][method.lower()]["requestBody"]["content"]["application/json"]["example"]
    assert msgspec.convert(shown, described.body) == described.example


@pytest.mark.parametrize("key", DESCRIBED)
def test_the_form_of_an_answer_is_told(key: str) -> None:
    method, path = key.split()
    described = DESCRIBED[key]
    responses = DOCUMENT["paths"][path][method.lower()]["responses"]
    has_content = "content" in responses[str(described.status)]
    assert has_content is (described.form not in (Answer.NOTHING, Answer.STREAM))
    assert "default" in responses


def test_the_type_of_an_answer_is_told() -> None:
    untold = {key for key, each in DESCRIBED.items() if each.form is Answer.JSON and each.answer is None}
    assert untold == {"GET /openapi.json"}


def test_the_right_that_a_route_needs_is_told() -> None:
    for route in ROUTES:
        method, path = key_of(route).split()
        assert DOCUMENT["paths"][path][method.lower()]["x-insula-right"] == route.action.value


def test_it_is_an_openapi_document() -> None:
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    found = list(schema.get_all_operations())
    assert len(found) == len(ROUTES)
    assert all(each.ok() for each in found)
