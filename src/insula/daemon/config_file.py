# SPDX-License-Identifier: Apache-2.0
"""Read a file by which root says what counts: nobody else may have written it."""

import os
from pathlib import Path

from insula.model.errors import BadRequest


def read_roots_file(path: Path, *, name: str, max_bytes: int, error: type[BadRequest]) -> str:
    """Return what the file holds; empty if there is none.

    name: what people call it.  Raises: `error` for one that others may write, is too large or no text.
    """
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            if found.st_uid != 0 or found.st_mode & 0o022:
                raise error(
                    f"cannot use {name} `{path}`: others than root may write it",
                    hint=f"chown root {path}; chmod 644 {path}",
                )
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise error(f"cannot use {name} `{path}`: more than {max_bytes >> 20} MiB")
        return data.decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as why:
        reason = why.strerror if isinstance(why, OSError) else "no UTF-8"
        raise error(f"cannot read {name} `{path}`: {reason}") from why
