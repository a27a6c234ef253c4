# SPDX-License-Identifier: Apache-2.0
"""The frame around the story: people and hosts made before it, everything taken away and counted after it."""

import signal
import subprocess
from contextlib import ExitStack

from demo import cleanup, users
from demo.hosts import World, tail
from demo.report import Narrator, Summary
from demo.story import ANN, BEN, LANS, Story
from demo.users import CommandFailed
from insula.model.errors import InsulaError

INTERRUPTED = 130


class Stage:
    """One run."""

    def __init__(self) -> None:
        self.say = Narrator()
        self.stayed: list[str] = []

    def play(self) -> int:
        """Tell the story; returns the exit code."""
        is_interrupted = False
        summary = None
        try:
            summary = self._told()
        except KeyboardInterrupt:
            is_interrupted = True
        if self.stayed:
            self.say.problem("left behind:\n" + "\n".join(f"  {line}" for line in self.stayed))
        if is_interrupted:
            self.say.problem("interrupted")
            return INTERRUPTED
        if summary is None:
            return 1
        print(f"\n{summary.table()}\n{summary.line()}", flush=True)
        return 1 if summary.failed or summary.lost or self.stayed else 0

    def _told(self) -> Summary | None:
        world = World(lans=LANS)
        with ExitStack() as stack:
            stack.enter_context(cleanup.alone("demo"))
            before = cleanup.look()
            stack.callback(self._count, world, before)
            stack.callback(self._remove_users)
            stack.enter_context(world)
            stack.callback(_let_nobody_disturb)
            program = users.install_program(world.folder)
            ann, ben = users.make((ANN, BEN), program=program)
            try:
                summary = Story(world=world, say=self.say, ann=ann, ben=ben).tell()
            except (CommandFailed, InsulaError, OSError, subprocess.TimeoutExpired) as error:
                self._explain(world, error)
                summary = None
            self.say.step("everything is taken away again")
        return summary

    def _explain(self, world: World, error: Exception) -> None:
        self.say.problem(str(error))
        for host in world.hosts.values():
            self.say.problem(f"last words of insulad on {host.name}:\n{tail(host)}")

    def _remove_users(self) -> None:
        self.stayed += users.remove((ANN, BEN))

    def _count(self, world: World, before: cleanup.Machine) -> None:
        if hasattr(world, "folder"):
            self.stayed += world.find_leftovers(before)


def _let_nobody_disturb() -> None:
    # A second ctrl-c must not leave half of it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
