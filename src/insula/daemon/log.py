# SPDX-License-Identifier: Apache-2.0
"""Log lines: time, level, constant text, then fields as `name=value`.  No secret, no environment of anybody."""

import json
import logging
import sys
import time


class Lines(logging.Formatter):
    """`2026-01-02T03:04:05.678Z info request failed path="/v1/x" code="internal"`; a traceback follows if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = getattr(record, "fields", {})
        words = [f"{at}.{int(record.msecs):03d}Z", record.levelname.lower(), record.getMessage()]
        words += [f"{name}={json.dumps(value)}" for name, value in fields.items()]
        text = " ".join(words)
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def begin(level: int) -> None:
    """Send the log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
