# SPDX-License-Identifier: Apache-2.0
"""Try a CRIU on this kernel: dump and restore a program that talks to itself over an established TCP connection.

`criu check` is not enough: CRIU 3.17.1 passes it and dies in the restore (`vdso: Unexpected rt vDSO area bounds`), 4.1.1
passes it and fails on every TCP socket since Linux 6.16 (`sockets: Can't get 1:16 opt`).  Only a whole round tells.

    insula setup ──► unshare: new network, mount and pid namespace, all killed with it
                       └── python -m insula.daemon.criu_trial FOLDER SECONDS CRIU…   (pid 1 of the namespace)
                             ├── python -m insula.daemon.criu_trial --program     (listener + client + server end)
                             ├── CRIU dump, then CRIU restore
                             └── asks the restored program to send a byte through its connection

Out of scope: which CRIUs exist (`criu_find`) and where they come from (`setup`).  Exit code 0: good; 1: the last line of
standard output is the reason.  Nothing is left: the network rules and processes go with the namespaces.
"""

import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from insula.kernel.criu_find import CriuProgram

TRIAL_SECONDS = 60.0
STEP_SECONDS = 20.0
#: As insula itself drives CRIU: rules by libnftables (no iptables needed), cgroups are insula's own work.
_OPTIONS = ("--tcp-established", "--network-lock", "nftables", "--manage-cgroups=ignore", "-v4")
#: CRIU says `Error` where root lacks CAP_SYS_RESOURCE, and goes on.
_HARMLESS = "Can't setup RLIMIT_NOFILE for self"
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_UP = 1


class TrialFailed(Exception):
    """A step of the trial went wrong; the message is CRIU's own reason, for people."""


def try_criu(program: CriuProgram, *, step_seconds: float = STEP_SECONDS) -> str:
    """Dump and restore a small program with this CRIU.    step_seconds: the most that each step may take.

    Returns: "" if that went well, else the reason it did not.
    """
    with tempfile.TemporaryDirectory(prefix="insula-criu-trial-", dir="/var/tmp") as folder:
        inner = (sys.executable, "-m", "insula.daemon.criu_trial", folder, str(step_seconds), *program.argv)
        namespaces = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        try:
            done = subprocess.run(
                ("unshare", *namespaces, "--", *inner),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TRIAL_SECONDS,
                check=False,
                env=_environment(),
            )
        except FileNotFoundError:
            return "`unshare` is not installed (Debian package util-linux)"
        except subprocess.TimeoutExpired:
            return f"no answer for {TRIAL_SECONDS:.0f} s"
    if done.returncode == 0:
        return ""
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1] if lines else f"the trial ended with {done.returncode}"


def _environment() -> dict[str, str]:
    source = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": source, "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"}


def _bring_up_loopback() -> None:
    # Restored sockets get their addresses back, and those must be reachable: netdevice(7).
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack("16sh22x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))


def _run_criu(command: tuple[str, ...], log: Path, *, seconds: float) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
    )
    if done.returncode == 0:
        return
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else done.stderr
    errors = [line for line in text.splitlines() if "Error" in line and _HARMLESS not in line]
    reason = (errors or text.splitlines() or [f"exit code {done.returncode}"])[0].strip()
    raise TrialFailed(reason)


def _ask(pid: int, pipe: Path, *, seconds: float) -> None:
    # The program answers through its TCP connection, then into the FIFO.
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if pid:
            os.kill(pid, signal.SIGUSR1)
        ready, _, _ = select.select([reader], [], [], seconds)
        if not ready or os.read(reader, 16) != b"ok":
            raise TrialFailed(
                "the restored program does not answer" if pid else "the program to dump does not start"
            )
    finally:
        os.close(reader)


def _trial(folder: Path, argv: tuple[str, ...], *, seconds: float) -> None:
    _bring_up_loopback()
    images, pipe = folder / "images", folder / "answers"
    images.mkdir()
    os.mkfifo(pipe)
    # Both ends of the FIFO stay open here, so that the program's short openings of it never block or break.
    keeper = os.open(pipe, os.O_RDWR | os.O_CLOEXEC)
    program = subprocess.Popen(
        (sys.executable, "-m", "insula.daemon.criu_trial", "--program", str(pipe)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _ask(0, pipe, seconds=seconds)
        common = ("--images-dir", str(images), *_OPTIONS)
        dump = (*argv, "dump", "--tree", str(program.pid), *common, "--log-file", "dump.log")
        _run_criu(dump, images / "dump.log", seconds=seconds)
        program.wait(seconds)
        restore = (*argv, "restore", "--restore-detached", *common, "--log-file", "restore.log")
        _run_criu(restore, images / "restore.log", seconds=seconds)
        _ask(program.pid, pipe, seconds=seconds)
    finally:
        os.close(keeper)


def _program(pipe: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    while True:
        client.sendall(b"ok")
        answer = server.recv(2)
        writer = os.open(pipe, os.O_WRONLY | os.O_CLOEXEC)
        os.write(writer, answer)
        os.close(writer)
        signal.sigwait({signal.SIGUSR1})


def main(arguments: list[str]) -> int:
    """Be the trial, or the program that is tried: see the head of this file."""
    if arguments[0] == "--program":
        _program(arguments[1])
        return 0
    try:
        _trial(Path(arguments[0]), tuple(arguments[2:]), seconds=float(arguments[1]))
    except (TrialFailed, OSError, subprocess.TimeoutExpired) as error:
        print(f"{error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
