# SPDX-License-Identifier: Apache-2.0
"""Signals by the names that people write: `TERM`, `SIGTERM`, `15`."""

import signal

from insula.model.errors import InvalidSpec


def signal_number(word: str) -> int:
    """Return the number.  Raises: InvalidSpec."""
    name = word.strip().upper()
    if name.isascii() and name.isdigit() and 1 <= int(name) <= 64:
        return int(name)
    try:
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"].value
    except KeyError:
        raise InvalidSpec(
            f"cannot send signal `{word}`: unknown", hint="for example TERM, SIGTERM or 15"
        ) from None
