# SPDX-License-Identifier: Apache-2.0
"""The client's process, seen from the run: started in the clients' network namespace, asked, ended."""

import json
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from demo.hosts import inside
from tests.matrix.client import Outcome
from tests.matrix.program import Program

ROOT = Path(__file__).resolve().parents[2]
ANSWER_S = 60.0


class ClientGone(Exception):
    """The client's process does not talk any more: it, not the program, is wrong."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the client saw since it was last asked."""

    gap_ms: float
    answers: int
    problem: str


class Loader:
    """One client that runs until `finish`."""

    def __init__(self, program: Program, address: str, *, network: int, words: tuple[str, ...]) -> None:
        numbers = (str(program.port), str(program.connections), str(program.ready_s))
        command = [
            sys.executable,
            "-m",
            "tests.matrix.client",
            program.client,
            address,
            *numbers,
            *words,
        ]
        self._process = subprocess.Popen(
            inside(network, *command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        self._rest = b""

    def wait_ready(self, seconds: float) -> str:
        """Wait for the first answer; returns why there is none."""
        return str(self._answer(seconds).get("problem", ""))

    def look(self) -> Seen:
        """Return the longest wait since this was last asked, and how many answers there are."""
        self._send(b"gap\n")
        return Seen(**self._answer(ANSWER_S))  # type: ignore[arg-type]

    def finish(self) -> Outcome:
        """End it; returns what it saw."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        answer = self._answer(ANSWER_S)
        self._process.wait(timeout=ANSWER_S)
        return Outcome(**answer)  # type: ignore[arg-type]

    def close(self) -> None:
        """End its process, however it is."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _send(self, words: bytes) -> None:
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(words)
                self._process.stdin.flush()
        except OSError as error:
            raise ClientGone(f"the client ended: {error}") from error

    def _answer(self, seconds: float) -> dict[str, object]:
        deadline = time.monotonic() + seconds
        output = self._process.stdout
        assert output is not None
        while b"\n" not in self._rest:
            ready, _, _ = select.select([output], [], [], max(0.0, deadline - time.monotonic()))
            data = output.read1(65536) if ready else b""  # type: ignore[attr-defined]
            if not data:
                raise ClientGone(
                    "the client ended" if ready else f"the client said nothing for {seconds:.0f} s"
                )
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return dict(json.loads(line))
