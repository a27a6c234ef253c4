# SPDX-License-Identifier: Apache-2.0
"""pgbench as the client of a PostgreSQL in a container, run from the files of the guests' own system.

Its log has a line for each transaction; the longest time without one is the gap.  SIGALRM is how pgbench's own `-T` ends
it, so that it finishes what it has begun and counts.  Source: pgbench(1).
"""

import itertools
import re
import signal
import subprocess
import uuid
from pathlib import Path

from demo.hosts import inside

SECONDS_AT_MOST = 1800
_END_SECONDS = 90.0
_FAILED = re.compile(r"number of failed transactions: (\d+)")
_DONE = re.compile(r"number of transactions actually processed: (\d+)")


class PgBench:
    """Four connections that write, until `finish`."""

    def __init__(self, tree: Path, address: str, *, network: int) -> None:
        self._tree, self._network = tree, network
        self._target = ("-h", address, "-U", "postgres")
        self._name = f"/tmp/pgbench-{uuid.uuid4().hex}"

    def _words(self, *words: str) -> list[str]:
        return inside(self._network, "chroot", str(self._tree), *words)

    def is_ready(self) -> bool:
        """Answer whether the server takes connections."""
        words = self._words("/usr/bin/pg_isready", "-q", *self._target[:2], "-t", "5")
        return subprocess.run(words, stdin=subprocess.DEVNULL, check=False, timeout=30.0).returncode == 0

    def fill(self) -> None:
        """Make the tables."""
        words = self._words("/usr/bin/pgbench", "-i", "-q", "-s", "1", *self._target, "postgres")
        subprocess.run(words, stdin=subprocess.DEVNULL, check=True, timeout=300.0, capture_output=True)

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._words(
                "/usr/bin/pgbench", "-c", "4", "-j", "1", "-n", "-T", str(SECONDS_AT_MOST), "--log",
                f"--log-prefix={self._name}", *self._target, "postgres",
            ),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def transactions(self) -> list[float]:
        """Return when each transaction was done, so far."""
        times = []
        for file in self._tree.glob(self._name[1:] + "*"):
            for line in file.read_text(encoding="ascii").splitlines()[:-1]:
                words = line.split()  # client, number, latency, script, seconds, microseconds
                times.append(int(words[4]) + int(words[5]) / 1e6)
        return sorted(times)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def finish(self) -> tuple[int, int, float]:
        """End it.  Returns: transactions done, failed, the longest gap in seconds; all failed if it gave up."""
        if self.is_running():
            self._process.send_signal(signal.SIGALRM)
        words = self._process.communicate(timeout=_END_SECONDS)[0]
        times = self.transactions()
        for file in self._tree.glob(self._name[1:] + "*"):
            file.unlink()
        failed, done = _FAILED.search(words), _DONE.search(words)
        if self._process.returncode != 0 or not failed or not done:
            raise AssertionError(f"pgbench ended with {self._process.returncode}:\n{words[-3000:]}")
        gap = max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)
        return int(done[1]), int(failed[1]), gap

    def kill(self) -> None:
        """End it at once, if it runs."""
        if hasattr(self, "_process") and self.is_running():
            self._process.kill()
            self._process.communicate()
