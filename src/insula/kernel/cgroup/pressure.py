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
    cpu_stalled_us: int | None = None
    """All that were ready waited."""
    memory_stalled_us: int | None = None
    io_stalled_us: int | None = None


NONE = Pressure(None, None, None)
_RESOURCES = ("cpu", "memory", "io")


def read(directory: str) -> Pressure:
    """Read the v2 directory of a group."""
    waited, stalled = zip(*(_waited_us(directory, name) for name in _RESOURCES), strict=True)
    return Pressure(*waited, *stalled)


def _waited_us(directory: str, name: str) -> tuple[int | None, int | None]:
    try:
        text = files.read_short(directory, f"{name}.pressure")
    except OSError:  # ENOENT without CONFIG_PSI, EOPNOTSUPP if it is off
        return None, None
    # some avg10=0.00 avg60=0.00 avg300=0.00 total=1234, then the same of `full`; of processors since Linux 5.13
    some, _, full = text.partition(b"\n")
    return _total(some, b"some "), _total(full, b"full ")


def _total(line: bytes, begin: bytes) -> int | None:
    return int(line.rpartition(b"=")[2]) if line.startswith(begin) else None
