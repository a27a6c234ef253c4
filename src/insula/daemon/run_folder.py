# SPDX-License-Identifier: Apache-2.0
"""Whose run folder it is: a spawner in it holds the containers of one state folder, and of no other.

An insulad of another state folder would take the sockets over and end every container that it does not know.
Out of scope: two daemons with one state folder (`main.py` locks it).  Source: flock(2).
"""

import fcntl
import os
from pathlib import Path

from insula.model.errors import Conflict

OWNER = "state"
"""A link to the state folder of the run folder's insulad."""
_HINT = "give this one its own --run"


def check_unserved(run: Path, state: Path) -> None:
    """Refuse a run folder in which an insulad of another state folder serves.  Raises: Conflict."""
    other = _other(run, state)
    if other is not None and _is_locked(other / "lock"):
        raise Conflict(f"cannot use run folder `{run}`: another insulad does", hint=_HINT)


def claim(run: Path, state: Path, *, is_holding: bool) -> None:
    """Make it this state folder's.    is_holding: its spawner holds containers.

    Raises: Conflict if these are of another state folder.
    """
    other = _other(run, state)
    if other is not None and is_holding:
        raise Conflict(
            f"cannot use run folder `{run}`: containers of state folder `{other}` run there", hint=_HINT
        )
    fresh = run / f"{OWNER}.{os.getpid()}"
    fresh.symlink_to(state.resolve())
    fresh.replace(run / OWNER)


def _other(run: Path, state: Path) -> Path | None:
    link = run / OWNER
    try:
        return None if link.samefile(state) else link.resolve()
    except FileNotFoundError:  # nobody's yet, or of a state folder that is gone
        return None


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
