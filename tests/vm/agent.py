# SPDX-License-Identifier: Apache-2.0
"""In the guest: run the commands that the test sends, one to a connection, and send back what came of them.

One line of JSON in: {"words": [...], "seconds": 60.0, "log": ""}; one out: {"code": 0, "output": "...", "errors": "..."}.
With a log the command is a daemon, told `--ready-fd N`: it writes there and runs on, and the answer comes when it says that
it is ready or has ended, whichever is first.  Only the tests' own network reaches it.  Standard library only.
"""

import json
import os
import select
import signal
import socketserver
import subprocess
from pathlib import Path

PORT = 5000
ENVIRONMENT = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


def run(words: list[str], *, seconds: float) -> dict[str, object]:
    """Run a command to its end, or to the end of its time: then its whole session is killed."""
    with subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=ENVIRONMENT,
        cwd="/",
    ) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # what it started holds its output open
            output, errors = process.communicate()
            errors += f"\nguest: not over after {seconds:.0f} s\n".encode()
    return answer_of(process.returncode, output=output, errors=errors)


def start(words: list[str], *, log: str, seconds: float) -> dict[str, object]:
    """Start a daemon, and wait until it is ready: the code is 0; else what it wrote is told."""
    reading, writing = os.pipe()
    with open(log, "ab") as file:
        begin = file.tell()
        process = subprocess.Popen(
            [*words, "--ready-fd", str(writing)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=ENVIRONMENT,
            cwd="/",
            pass_fds=[writing],
        )
    os.close(writing)
    with open(reading, "rb", buffering=0) as ready:
        in_time = select.select([ready], [], [], seconds)[0]
        if in_time and ready.readline() == b"ready\n":
            return answer_of(0, output=str(process.pid).encode())
    how = f"ended with {process.wait()}" if in_time else f"not ready after {seconds:.0f} s"
    return answer_of(1, output=Path(log).read_bytes()[begin:], errors=f"guest: {how}\n".encode())


def answer_of(code: int, *, output: bytes = b"", errors: bytes = b"") -> dict[str, object]:
    """Return an answer as it is sent."""
    return {
        "code": code,
        "output": output.decode(errors="replace"),
        "errors": errors.decode(errors="replace"),
    }


class Command(socketserver.StreamRequestHandler):
    """One connection."""

    def handle(self) -> None:
        """Do what the line says."""
        wish = json.loads(self.rfile.readline())
        try:
            if wish["log"]:
                answer = start(wish["words"], log=wish["log"], seconds=wish["seconds"])
            else:
                answer = run(wish["words"], seconds=wish["seconds"])
        except OSError as error:
            answer = answer_of(127, errors=str(error).encode())
        self.wfile.write(json.dumps(answer).encode() + b"\n")


class Server(socketserver.ThreadingTCPServer):
    """A thread for each command."""

    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    with Server(("0.0.0.0", PORT), Command) as server:
        print("guest: agent ready", flush=True)
        server.serve_forever()
