# SPDX-License-Identifier: Apache-2.0
"""The processes of a container, as the host's /proc shows them.

What a process says of itself (its arguments) is the container's word, and is only made printable.  Source: proc(5).
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from insula.model.grant import Grant
from insula.model.record import ContainerRecord, ProcessRecord
from insula.runtime.context import Runtime

MAX_COMMAND_BYTES = 4096
ID_COUNT = 65536
OVERFLOW_ID = 65534

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


Told: TypeAlias = Callable[[Sequence[str]], Sequence[str]]
"""Arguments → what of them may be told."""


def top(grant: Grant, runtime: Runtime, ref: str, *, told: Told) -> list[ProcessRecord]:
    """List the processes of a running container, by their pids inside.

    Raises: ContainerNotFound, WrongState.
    """
    record = runtime.find_alive(grant, ref)
    return processes(record, runtime.group(record).pids(), told=told)


def processes(record: ContainerRecord, pids: list[int], *, told: Told) -> list[ProcessRecord]:
    """Describe processes of a container; those that end meanwhile are left out."""
    depth = len(_status(record.pid).get("NSpid", "").split()) or 1
    found = []
    for pid in pids:
        try:
            found.append(_describe(pid, depth=depth, uid_base=record.uid_base, told=told))
        except (OSError, KeyError, IndexError, ValueError):
            continue  # it ended: its files are gone, or empty
    inner = {each.host_pid: each.pid for each in found}
    return sorted(
        (
            ProcessRecord(
                pid=each.pid,
                host_pid=each.host_pid,
                parent_pid=inner.get(each.parent_pid, 0),
                uid=each.uid,
                state=each.state,
                cpu_time_s=each.cpu_time_s,
                resident_bytes=each.resident_bytes,
                command=each.command,
            )
            for each in found
        ),
        key=lambda each: each.pid,
    )


def _describe(pid: int, *, depth: int, uid_base: int, told: Told) -> ProcessRecord:
    # parent_pid is the host's here.
    status = _status(pid)
    # After the name, which may hold anything, in parentheses: field 3 of proc(5) is the first.
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    uid = int(status["Uid"].split()[1]) - uid_base
    return ProcessRecord(
        pid=int(status["NSpid"].split()[depth - 1]),
        host_pid=pid,
        parent_pid=int(status["PPid"]),
        uid=uid if 0 <= uid < ID_COUNT else OVERFLOW_ID,
        state=status["State"][:1],
        cpu_time_s=(int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
        resident_bytes=int(status.get("VmRSS", "0 kB").split()[0]) * 1024,
        command=_command(pid, told=told) or f"[{status['Name']}]",
    )


def _status(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/status").read_text("utf-8", "backslashreplace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n"))
    return {name: value.strip() for name, colon, value in pairs if colon}


def _command(pid: int, *, told: Told) -> str:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read(MAX_COMMAND_BYTES).rstrip(b"\0").decode("utf-8", "replace").split("\0")
    text = " ".join(told(words))
    return "".join(each if each.isprintable() else "?" for each in text)
