# SPDX-License-Identifier: Apache-2.0
"""Log lines: time, level, constant text, then fields as `name=value`.  No secret, no environment of anybody.

Fields and tracebacks are told as far as the policy lets them leave the host (`[role.export]`).  What a line tells is of the
tenant that stands in `extra` beside its fields; where none stands everything is hidden that is hidden of any.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import TypeAlias

from insula.model.grant import EVERY_TENANT
from insula.tenant.redaction import NOTHING_HIDDEN, Redaction

HiddenOf: TypeAlias = Callable[[str], Redaction]
"""Tenant → what of its containers the log does not tell."""


class Lines(logging.Formatter):
    """`2026-01-02T03:04:05.678Z info request failed path="/v1/x" code="internal"`; a traceback follows if there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_of: HiddenOf = lambda tenant: NOTHING_HIDDEN

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = getattr(record, "fields", {})
        words = [f"{at}.{int(record.msecs):03d}Z", record.levelname.lower(), record.getMessage()]
        hidden = self.hidden_of(getattr(record, "tenant", EVERY_TENANT))
        words += [
            f"{name}={json.dumps(hidden.text(value) if isinstance(value, str) else value)}"
            for name, value in fields.items()
        ]
        lines = [" ".join(words)]
        if record.exc_info:
            lines += map(hidden.text, self.formatException(record.exc_info).splitlines())
        return "\n".join(lines)


def begin(level: int) -> None:
    """Send the log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)


def hide(hidden_of: HiddenOf) -> None:
    """Take away from each line from now on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, Lines):
            handler.formatter.hidden_of = hidden_of
