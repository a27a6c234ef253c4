# SPDX-License-Identifier: Apache-2.0
"""What is exported where: read strictly."""

import pytest

from insula.export.config import read_exports
from insula.model.errors import InvalidExport
from insula.model.monitor import EventKind

WHOLE = """
[[otlp]]
endpoint = "https://collector:4318"
headers = { authorization = "Bearer x" }
kinds = ["exec", "oom"]

[[file]]
path = "/var/log/insula/events.jsonl"
tenants = ["web*"]

[[syslog]]
address = "tcp://loghost:6514"
changes = false
"""


def test_all_of_them() -> None:
    exports = read_exports(WHOLE)
    assert exports.otlp[0].kinds == (EventKind.EXEC, EventKind.OOM)
    assert exports.file[0].is_about(tenant="web1", container="c")
    assert not exports.file[0].is_about(tenant="db", container="c")
    assert not exports.syslog[0].changes
    assert len(exports.choices) == 3
    assert read_exports("").choices == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[otlp]]\n", "missing required field `endpoint`"),
        ('[[otlp]]\nendpoint = "collector:4318"', "is no address of http or https"),
        ('[[otlp]]\nendpoint = "http://"', "is no address of http or https"),
        ('[[otlp]]\nendpoint = "http://h:port"', "is no address of http or https"),
        ('[[otlp]]\nendpoint = "http://me:secret@h"', "belongs in `headers`"),
        ('[[otlp]]\nendpoint = "http://h?token=x"', "belongs in `headers`"),
        ('[[otlp]]\nendpoint = "http://h"\nca_file = "/x"', "certificates need https"),
        ('[[otlp]]\nendpoint = "http://h"\nheaders = {"a b" = "c"}', "`a b` cannot be a header"),
        ('[[otlp]]\nendpoint = "http://h"\nheaders = {a = "c\\r\\nd: e"}', "`a` cannot be a header"),
        ('[[otlp]]\nendpoint = "http://h"\nkinds = ["bogus"]', "invalid enum value 'bogus'"),
        ('[[file]]\npath = "events"', "`events` is not absolute"),
        ('[[file]]\npath = "/e"\n[[file]]\npath = "/e"', "`/e` stands there twice"),
        ('[[file]]\npath = "/e"\nmax_bytes = 0', "file[0].max_bytes"),
        ('[[syslog]]\naddress = "http://h"', "cannot use `http://h` as a syslog"),
        ('[[syslog]]\naddress = "h:0"', "cannot use `h:0` as a syslog"),
        ("[[kafka]]\n", "unknown field `kafka`"),
        ("otlp", "cannot read the exports"),
    ],
)
def test_what_is_wrong_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidExport) as caught:
        read_exports(text)
    assert reason in caught.value.message
