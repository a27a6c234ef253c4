# SPDX-License-Identifier: Apache-2.0
"""The log tells as much as may leave the host."""

import logging
import sys

import pytest

from insula.daemon.log import Lines
from insula.model.grant import EVERY_TENANT
from insula.tenant.redaction import NOTHING_HIDDEN, Redaction

SECRET = Redaction(paths=("/srv",))


@pytest.fixture
def lines() -> Lines:
    made = Lines()
    made.hidden_of = lambda tenant: SECRET if tenant in ("alice", EVERY_TENANT) else NOTHING_HIDDEN
    return made


def record_of(**extra: object) -> logging.LogRecord:
    fields = {"reason": "cannot execute `/srv/tool`", "count": 3}
    return logging.makeLogRecord({"msg": "a restart failed", "levelname": "INFO", "fields": fields, **extra})


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({}, "/srv/[hidden]"),
        ({"tenant": "alice"}, "/srv/[hidden]"),
        ({"tenant": "bob"}, "/srv/tool"),
    ],
)
def test_a_line_is_told_as_its_tenants_policy_says(lines: Lines, extra: dict[str, str], told: str) -> None:
    text = lines.format(record_of(**extra))
    assert text.endswith(f'info a restart failed reason="cannot execute `{told}`" count=3')


def test_a_traceback_is_told_line_by_line(lines: Lines) -> None:
    try:
        raise OSError("open: /srv/tool")
    except OSError:
        text = lines.format(record_of(exc_info=sys.exc_info()))
    assert "/srv/tool" not in text
    assert "Traceback (most recent call last):" in text
    assert text.endswith("[hidden]")
