# SPDX-License-Identifier: Apache-2.0
"""The live screen of `insula top`: what runs, at a glance, and one container looked into.

    insulad ═══ /v1/stats, a line a second ══► feed, a thread ──► Board ──► the screen that is shown
            ═══ /v1/calls?only=shown ════════►

System calls are counted as long as the screen is there, and only of the containers that it shows: another set is asked
for before the former is let go, so that no counter begins anew.
"""

from __future__ import annotations

from typing import Any, ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.message import Message

from insula.cli.top.detail import Detail
from insula.cli.top.feed import Feed
from insula.cli.top.figures import Board
from insula.cli.top.overview import Overview
from insula.client.http import Client

ALL: frozenset[str] = frozenset()
"""Count every container."""


class Told(Message):
    """A feed has a value."""

    def __init__(self, feed: Feed, value: Any) -> None:
        super().__init__()
        self.feed = feed
        self.value = value


class Failed(Message):
    """A feed has none for now."""

    def __init__(self, feed: Feed, reason: str) -> None:
        super().__init__()
        self.feed = feed
        self.reason = reason


class Top(App[None]):
    """Owns the feeds and what they told; its screens draw it."""

    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "quit", show=False, priority=False),
    ]
    CSS = """
    Screen { layout: vertical; overflow: hidden; }
    Static { height: auto; }
    .head { text-style: bold; }
    .help { color: ansi_bright_black; }
    """

    def __init__(self, client: Client, *, host: str, is_exact: bool = False) -> None:
        """is_exact: each system call is counted, not those of a fifth of the time."""
        super().__init__(ansi_color=True)
        self.board = Board()
        self.host = host
        self._exact = {"exact": "1"} if is_exact else {}
        self.client = client
        self.problem = ""
        """Why there are no figures for now."""
        self.no_counts = ""
        """Why there are no system calls for now."""
        self._stats: Feed | None = None
        self._counting: Feed | None = None
        self._next: Feed | None = None
        """Will take the other's place with its first value."""
        self._counted: frozenset[str] | None = None

    def on_mount(self) -> None:
        self._stats = self._feed("/v1/stats", {"stream": "1"})
        self.push_screen(Overview())

    def on_unmount(self) -> None:
        for feed in (self._stats, self._counting, self._next):
            if feed is not None:
                feed.close()

    def count(self, only: frozenset[str] | None) -> None:
        """Have the system calls of these containers counted from now on.    only: None: of none."""
        if only == self._counted:
            return
        self._counted = only
        if self._next is not None:
            self._next.close()
            self._next = None
        if only is not None:
            self._next = self._feed(
                "/v1/calls", {"stream": "1", "only": ",".join(sorted(only)), **self._exact}
            )
        elif self._counting is not None:
            self._counting.close()
            self._counting = None
            self.board.drop_counts()

    def look_into(self, container: str) -> None:
        """Show one container."""
        self.push_screen(Detail(container))

    def _feed(self, path: str, query: dict[str, str]) -> Feed:
        return Feed(
            self.client,
            path,
            query,
            tell=lambda feed, value: self._post(Told(feed, value)),
            fail=lambda feed, reason: self._post(Failed(feed, reason)),
        )

    def _post(self, message: Message) -> None:
        if self.is_running:
            self.post_message(message)

    def on_told(self, message: Told) -> None:
        if message.feed is self._stats:
            self.problem = ""
            self.board.take_stats(message.value)
        elif message.feed is self._next or message.feed is self._counting:
            if message.feed is self._next:
                if self._counting is not None:
                    self._counting.close()
                self._counting, self._next = self._next, None
            self.no_counts = ""
            self.board.take_counts(message.value)
            return  # drawn with the next figures
        self._draw()

    def on_failed(self, message: Failed) -> None:
        if message.feed is self._stats:
            self.problem = message.reason
        elif message.feed is self._next or message.feed is self._counting:
            self.no_counts = message.reason
        self._draw()

    def _draw(self) -> None:
        for screen in self.screen_stack[-1:]:  # at the end there is none
            if isinstance(screen, Overview | Detail):
                screen.draw()


def show(client: Client, *, host: str, is_exact: bool) -> int:
    """Show the screen until its reader has seen enough."""
    Top(client, host=host, is_exact=is_exact).run()
    return 0
