# SPDX-License-Identifier: Apache-2.0
"""The one place where the kernel's and the spawner's failures become errors for people."""

import errno

from insula.boot.protocol import Failure
from insula.model.errors import (
    DiskFull,
    InsulaError,
    LimitRefused,
    MigrationFailed,
    PathEscapes,
    StartFailed,
    TargetFull,
    from_code,
)

#: Step of a start → what it was about, for people.
_STEPS = {
    "cgroup": "set the limits",
    "rootfs": "build the root file system",
    "clone": "make namespaces",
    "map ids": "map user ids",
    "identity": "take on the container's identity",
    "network": "set up the network",
    "mask": "hide the host's files",
    "stdio": "set up standard input and output",
    "program": "run the program",
    "enter": "enter the container",
}


def from_failure(failure: Failure) -> InsulaError:
    """Turn a failed step into the narrowest error."""
    if failure.code:
        return from_code(failure.code, failure.message, hint=_hint(failure.code))
    what = _STEPS.get(failure.step, failure.step)
    if failure.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"cannot {what}: no space left", hint="free some space in the state folder")
    if failure.step == "cgroup":
        return LimitRefused(f"cannot {what}: {failure.message}", hint="raise the limit")
    if failure.errno in (errno.ELOOP, errno.EXDEV):
        return PathEscapes(f"cannot {what}: {failure.message}: a symbolic link leads out of the container")
    return StartFailed(f"cannot {what}: {failure.message}", step=failure.step, errno=failure.errno)


def _hint(code: str) -> str:
    return {
        "unsupported": "end all containers of this host, then restart insulad: it replaces an idle spawner",
        "command_not_found": "check the command, or the image",
        "command_not_executable": "it lacks the execute bit, is no program, or a profile that holds the container lacks it",
    }.get(code, "")


def from_arrival(error: OSError, name: str) -> InsulaError:
    """Turn a failed system call of a container's arrival into what the source's people are told."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TargetFull(
            f"cannot take `{name}`: no space left on this host's disk",
            hint="free some space in the target's state folder",
        )
    if error.errno == errno.ENOMEM:
        return TargetFull(
            f"cannot take `{name}`: this host has no memory left", hint="stop or move something there first"
        )
    return MigrationFailed(f"cannot take `{name}`: {error.strerror or error}")
