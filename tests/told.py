# SPDX-License-Identifier: Apache-2.0
"""For tests: what `GET /v1/events` tells, and what is exported to files."""

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hosted import Person


def lines_of(path: Path) -> list[Any]:
    """Return the lines of JSON in a file that somebody writes to: those that are there as a whole."""
    whole, _, _ = path.read_text().rpartition("\n") if path.exists() else ("", "", "")
    return [json.loads(line) for line in whole.splitlines()]


class Listening:
    """A reader that was let in: it is told of whatever happens from now on."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self._answer = answer

    def read(self, count: int) -> list[tuple[str, str, str]]:
        """Return (container, event, detail) of the next ones."""
        lines = [json.loads(self._answer.readline()) for _ in range(count)]
        return [(line["name"], line["event"], line["detail"]) for line in lines]


@contextmanager
def listening(person: Person) -> Iterator[Listening]:
    with person.asking("GET", "/v1/events") as connection:
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 200
        yield Listening(answer)
        answer.close()
