# SPDX-License-Identifier: Apache-2.0
"""T13: requests made of the API's document by schemathesis: answered in time, never by an internal error, with little memory."""

import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import documented
from hosted import Host, Person
from insula.api.document import document

TAR = "application/x-tar"


@schemathesis.serializer(TAR)
def as_it_is(_context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")


SCHEMA = schemathesis.openapi.from_dict(json.loads(document()))
OPERATIONS = {
    f"{found.ok().method.upper()} {found.ok().path}": found.ok() for found in SCHEMA.get_all_operations()
}
#: Asked as root, too: nothing of the machine is named in what they do.
HARMLESS = sorted(key for key in OPERATIONS if key.startswith("GET ") or "/check" in key or "tenants" in key)
MOST_MEMORY_KB = 400_000
EXAMPLES = 15


def send(person: Person, case: Any) -> int:
    """Send a request, return the status; of a stream only the head is read."""
    path = case.path
    for name, value in (case.path_parameters or {}).items():
        path = path.replace("{" + name + "}", quote(str(value), safe=""))
    query = urlencode({key: str(value) for key, value in (case.query or {}).items()})
    has_body = not isinstance(case.body, schemathesis.core.NotSet)
    body = (
        b"" if not has_body else case.body if isinstance(case.body, bytes) else json.dumps(case.body).encode()
    )
    with person.asking(case.method.upper(), f"{path}?{query}" if query else path, body=body) as connection:
        answer = http.client.HTTPResponse(connection, method=case.method.upper())
        answer.begin()
        if answer.status >= 400:
            assert set(json.loads(answer.read())["error"]) == {"code", "message", "hint"}
        elif is_one_value(answer) and documented.is_told(key := f"{case.method.upper()} {case.path}"):
            assert not documented.faults(key, json.loads(answer.read()))
        answer.close()
        return answer.status


def is_one_value(answer: http.client.HTTPResponse) -> bool:
    """Tell whether an answer is JSON that ends; of lines only the head is read."""
    return (answer.getheader("Content-Type") or "").startswith("application/json")


def memory_kb(host: Host) -> int:
    assert host.daemon is not None
    text = Path(f"/proc/{host.daemon.pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1])


def fuzz(host: Host, person: Person, key: str) -> None:
    @settings(max_examples=EXAMPLES, database=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def ask(data: st.DataObject) -> None:
        status = send(person, data.draw(OPERATIONS[key].as_strategy()))
        assert status != 500, host.log()

    ask()
    assert memory_kb(host) < MOST_MEMORY_KB


@pytest.mark.parametrize("key", sorted(OPERATIONS), ids=lambda key: f"T13-{key}")
def test_t13_a_tenant_asks_anything(host: Host, key: str) -> None:
    fuzz(host, host.alice, key)


@pytest.mark.parametrize("key", HARMLESS, ids=lambda key: f"T13-root-{key}")
def test_t13_root_asks_anything(host: Host, key: str) -> None:
    fuzz(host, host.root, key)
