# SPDX-License-Identifier: Apache-2.0
"""In the guest: run the commands that the test sends, one to a connection, and send back what came of them.

One line of JSON in: {"words": [...], "seconds": 60.0, "log": ""}; one out: {"code": 0, "output": "...", "errors": "..."}.
With a log the command runs on in the background and writes there; the answer has its pid.  Only the tests' own network
reaches it.  Standard library only.
"""

import json
import os
import signal
import socketserver
import subprocess

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
    return {
        "code": process.returncode,
        "output": output.decode(errors="replace"),
        "errors": errors.decode(errors="replace"),
    }


def start(words: list[str], *, log: str) -> dict[str, object]:
    """Start a command that runs on."""
    with open(log, "ab") as file:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=ENVIRONMENT,
            cwd="/",
        )
    return {"code": 0, "output": str(process.pid), "errors": ""}


class Command(socketserver.StreamRequestHandler):
    """One connection."""

    def handle(self) -> None:
        """Do what the line says."""
        wish = json.loads(self.rfile.readline())
        try:
            if wish["log"]:
                answer = start(wish["words"], log=wish["log"])
            else:
                answer = run(wish["words"], seconds=wish["seconds"])
        except OSError as error:
            answer = {"code": 127, "output": "", "errors": str(error)}
        self.wfile.write(json.dumps(answer).encode() + b"\n")


class Server(socketserver.ThreadingTCPServer):
    """A thread for each command."""

    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    with Server(("0.0.0.0", PORT), Command) as server:
        print("guest: agent ready", flush=True)
        server.serve_forever()
