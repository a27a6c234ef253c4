# SPDX-License-Identifier: Apache-2.0
"""Pressure: for how long processes of a group waited for a processor, for memory, for a disk.

The v2 directory tells it, in hybrid mode too.  Source: `Documentation/accounting/psi.rst`.
"""

from typing import NamedTuple

from insula.kernel.cgroup import files


class Pressure(NamedTuple):
    """Since the group was made, in µs, at least one process waited; None: this kernel does not say (psi=1 at boot)."""

    cpu_us: int | None
    memory_us: int | None
    io_us: int | None


NONE = Pressure(None, None, None)


def read(directory: str) -> Pressure:
    """Read the v2 directory of a group."""
    return Pressure(*(_waited_us(directory, name) for name in ("cpu", "memory", "io")))


def _waited_us(directory: str, name: str) -> int | None:
    try:
        text = files.read_short(directory, f"{name}.pressure")
    except OSError:  # ENOENT without CONFIG_PSI, EOPNOTSUPP if it is off
        return None
    # some avg10=0.00 avg60=0.00 avg300=0.00 total=1234
    some, _, _ = text.partition(b"\n")
    return int(some.rpartition(b"=")[2]) if some.startswith(b"some ") else None
