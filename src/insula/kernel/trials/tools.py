# SPDX-License-Identifier: Apache-2.0
"""Trials of the programs that insula runs: found on the PATH and able to say their version."""

import os
import shutil
import subprocess

from insula.kernel import call_functions, criu_find
from insula.kernel.bpf_object import CAPABILITY_TRACEPOINT, knows_tracepoint
from insula.kernel.nsswitch import lenders_elsewhere
from insula.kernel.trials import Absent

_SECONDS = 20.0


def criu() -> str:
    """Run `criu check` of the CRIU that `insula setup` recorded, and tell if it was tried on this kernel."""
    program = criu_find.find_criu()
    record = criu_find.read_record()
    if program is None or record is None:
        raise Absent("`insula setup` has recorded none on this host")
    _first_line(*program.argv, "check")
    if record.kernel != os.uname().release:
        return f"{program.version}, tried on kernel {record.kernel}, not yet on this one: run `insula setup`"
    return program.version


def mmdebstrap() -> str:
    """Ask mmdebstrap for its version."""
    return _version("mmdebstrap", "--version")


def tini() -> str:
    """Ask the static tini for its version."""
    return _version("tini-static", "--version")


def lent_uids() -> str:
    """Look whether uids are lent by /etc/subuid alone."""
    if others := lenders_elsewhere():
        raise Absent(f"/etc/nsswitch.conf: subid: {' '.join(others)}")
    return "/etc/subuid"


def tar() -> str:
    """Ask tar for its version."""
    return _version("tar", "--version")


def ip() -> str:
    """Ask ip for its version."""
    return _version("ip", "-V")


def _version(name: str, option: str) -> str:
    if shutil.which(name) is None:
        raise Absent(f"`{name}` is not installed")
    words = _first_line(name, option).replace(",", " ").split()
    return next((word for word in words if word[0].isdigit() or ("-" in word and word[-1].isdigit())), "")


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Absent(f"`{command[0]}` did not end within {_SECONDS:.0f} s") from None
    lines = (done.stdout or done.stderr).strip().splitlines()
    if done.returncode != 0:
        raise Absent(lines[-1] if lines else f"`{command[0]}` ended with {done.returncode}")
    return lines[0] if lines else ""


def libbpf() -> str:
    """libbpf finds the kernel's own description of its structures; it and the kernel can do without some tracepoints."""
    if not knows_tracepoint("sys_exit"):
        raise Absent("the kernel does not describe its tracepoints (/sys/kernel/btf/vmlinux)")
    return (
        ""
        if knows_tracepoint(CAPABILITY_TRACEPOINT)
        else "uses of capabilities are not seen: Linux 6.14 or later tells them"
    )


def call_hooks() -> str:
    """Hang a program at a function of the kernel, as events of system calls are told."""
    call_functions.try_hook()
    return "events of system calls are told at the calls themselves"
