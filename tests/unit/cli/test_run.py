# SPDX-License-Identifier: Apache-2.0
"""`insula run` that is interrupted before it stands at its container leaves none running."""

import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "client"))
from daemon_double import Double, Exchange, serve

from waiting import DEADLINE_S

SOURCE = Path(__file__).parents[3] / "src"


@pytest.mark.parametrize(
    ("words", "last"),
    [
        (("run", "--rm"), "DELETE /v1/containers/c1?force=1&volumes=1"),
        (("run",), "POST /v1/containers/c1/stop"),
    ],
)
def test_ctrl_c_while_it_starts_ends_what_was_begun(
    tmp_path: Path, words: tuple[str, ...], last: str
) -> None:
    starting, over = threading.Event(), threading.Event()

    def start_for_ever(_exchange: Exchange) -> None:
        starting.set()
        over.wait(DEADLINE_S)

    with serve(tmp_path / "s") as double:
        double.answers["POST /v1/containers"] = (201, {}, {"id": "c1", "name": "web"})
        double.answers["POST /v1/containers/c1/attach"] = start_for_ever
        double.answers["POST /v1/containers/c1/stop"] = (204, {}, None)
        double.answers["DELETE /v1/containers/c1"] = (204, {}, None)
        try:
            code = _interrupted(double, *words, "host", "true", when=starting)
        finally:
            over.set()
        asked = [f"{each.method} {each.target}" for each in double.seen]
    assert (code, asked[-1]) == (130, last)


def _interrupted(double: Double, *words: str, when: threading.Event) -> int:
    command = [sys.executable, "-m", "insula.cli", "-H", double.host, *words]
    environment = {"PYTHONPATH": str(SOURCE), "PATH": "/usr/bin"}
    # Who runs in the background of a shell, as these tests may, has ctrl-c ignored, and so have its children.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, env=environment, preexec_fn=heard) as process:
        try:
            assert when.wait(DEADLINE_S)
            process.send_signal(signal.SIGINT)
            return process.wait(DEADLINE_S)
        finally:
            process.kill()
