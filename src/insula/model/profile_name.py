# SPDX-License-Identifier: Apache-2.0
"""Names of profiles.  Pure and standard library only: the `insula` command makes them, too."""

import re

MAX_PROFILE_NAME = 63
PROFILE_NAME = rf"^[a-z0-9][a-z0-9._-]{{0,{MAX_PROFILE_NAME - 1}}}$"


def name_like(container: str, *, number: int = 1) -> str:
    """Return the profile's name that is nearest to a container's, which may be in upper case.

    number: of those that want the same name; from the second on it stands at the end.
    """
    end = "" if number == 1 else f"-{number}"
    return re.sub(r"[^a-z0-9._-]", "-", container.lower())[: MAX_PROFILE_NAME - len(end)] + end
