# SPDX-License-Identifier: Apache-2.0
"""Clients as processes in the clients' network namespace: started, asked, ended.  What they do: `load.py`."""

import json
import select
import subprocess
import sys
import time
from pathlib import Path

from demo.hosts import inside
from demo.load import Outcome
from demo.users import CommandFailed

PROGRAM = Path(__file__).with_name("load.py")
DEADLINE_S = 90.0


class ClientProcess:
    """A client that talks by lines as `load.py` does, until `finish`."""

    def __init__(self, kind: str, *words: str, network: int) -> None:
        self._kind = kind
        self._process = subprocess.Popen(
            inside(network, sys.executable, "-S", *words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
        )
        self._rest = b""

    def wait_ready(self) -> None:
        """Wait for the first answer of its server.  Raises: CommandFailed."""
        words = self._answer()
        if not words.get("ready"):
            raise CommandFailed(f"the {self._kind} client cannot begin: {words.get('reason', words)}")

    def take_gap_ms(self) -> float:
        """Return the longest silence since this was last asked."""
        return float(str(self.take("gap")["gap_ms"]))

    def take(self, word: str) -> dict[str, object]:
        """Ask what gaps there were; returns all that it tells.  Raises: CommandFailed."""
        self._send(f"{word}\n".encode())
        answer = self._answer()
        if "gap_ms" not in answer:
            raise CommandFailed(f"the {self._kind} client gave up: {answer.get('reason', answer)}")
        return answer

    def finish(self) -> Outcome:
        """End it; returns what it saw."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        answer = self._answer()
        self._process.wait(timeout=DEADLINE_S)
        self.kill()
        return Outcome(**answer)  # type: ignore[arg-type]

    def kill(self) -> None:
        """End it at once, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _send(self, words: bytes) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(words)
            self._process.stdin.flush()

    def _answer(self) -> dict[str, object]:
        deadline = time.monotonic() + DEADLINE_S
        output = self._process.stdout
        if output is None:
            raise CommandFailed(f"the {self._kind} client has no output")
        while b"\n" not in self._rest:
            ready, _, _ = select.select([output], [], [], max(0.0, deadline - time.monotonic()))
            data = output.read1(65536) if ready else b""  # type: ignore[attr-defined]
            if not data:
                how = "ended" if ready else f"did not answer for {DEADLINE_S:.0f} s"
                raise CommandFailed(f"the {self._kind} client {how}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return dict(json.loads(line))


class LoadClient(ClientProcess):
    """One client of `load.py`."""

    def __init__(
        self,
        kind: str,
        address: str,
        *,
        port: int,
        network: int,
        megabytes: int = 0,
        rewritten_mb_s: float = 0.0,
    ) -> None:
        words = (kind, address, str(port), str(megabytes), str(rewritten_mb_s))
        super().__init__(kind, str(PROGRAM), *words, network=network)
