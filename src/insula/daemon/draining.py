# SPDX-License-Identifier: Apache-2.0
"""The API's verbs for emptying this host and filling it again, tied to `cluster/` and `migrate/`."""

from dataclasses import dataclass, replace

from insula.api.verbs import Reporter, Result
from insula.cluster.drain import Left, Outcome, Part, carry_all, place
from insula.migrate.recall import recall
from insula.migrate.source import migrate
from insula.migrate.wire import Peers
from insula.model import span
from insula.model.errors import Cancelled, ContainerNotFound, InsulaError, MigrationFailed
from insula.model.grant import Grant
from insula.model.lifecycle import Status
from insula.model.record import ContainerRecord, PlannedMove
from insula.model.spec import DrainWish, MigrateWish, UndrainWish
from insula.runtime.context import Runtime

AWAY = "away:"
"""In the journal: a container that a drain moved away → the host that took it."""
LOOK_SECONDS = 0.5


@dataclass(kw_only=True)
class Draining:
    """What can be done to this host as a whole."""

    runtime: Runtime
    peers: Peers

    def plan_drain(self, grant: Grant, wish: DrainWish) -> list[PlannedMove]:
        """Say which container would go where.  Raises: HostNotFound, TargetUnreachable."""
        del grant
        return place(self._all(Status.RUNNING), self._hosts(wish))

    def _all(self, status: Status) -> list[ContainerRecord]:
        return [each for each in self.runtime.store.list_containers() if each.status is status]

    def drain(self, grant: Grant, wish: DrainWish, *, reporter: Reporter) -> Result:
        """Carry every running container off; what is paused stays, and is named.

        Raises: Cancelled; MigrationFailed naming those that stay; HostNotFound, TargetUnreachable.
        """
        hosts, whole = self._hosts(wish), span.current()

        def carry(move: PlannedMove, part: Part) -> None:
            moving = MigrateWish(target=move.target, max_pause_ms=wish.max_pause_ms)
            with span.part_of(whole, "migrate"):
                migrate(grant, self.runtime, move.container, wish=moving, peers=self.peers, reporter=part)
            self.runtime.store.write_journal(AWAY + move.container, move.target.encode())

        reporter.phase("drain")
        moves = place(self._all(Status.RUNNING), hosts)
        outcome = carry_all(moves, carry, hosts=hosts, reporter=reporter, parallel=wish.parallel)
        self._await_the_last(reporter)
        paused = (Left(each.name, "it is paused, `insula unpause` it") for each in self._all(Status.PAUSED))
        return _told(replace(outcome, left=(*outcome.left, *paused)), verb="drain this host")

    def _await_the_last(self, reporter: Reporter) -> None:
        """Wait for what has moved before, and still needs this host: its memory follows (post-copy), or it is in doubt."""
        store = self.runtime.store
        while left := [each for each in store.list_containers() if each.status is Status.MOVED]:
            reporter.message(f"`{left[0].name}`, which has moved to `{left[0].owner}`, still needs this host")
            reporter.check()
            if self.runtime.closing.wait(LOOK_SECONDS):
                raise MigrationFailed("cannot drain this host wholly: insulad ends")

    def undrain(self, grant: Grant, wish: UndrainWish, *, reporter: Reporter) -> Result:
        """Bring back what a drain moved away.

        Raises: Cancelled; MigrationFailed naming those that did not come.
        """
        del grant
        reporter.phase("undrain")
        store = self.runtime.store
        away = [key.removeprefix(AWAY) for key in store.list_journal(AWAY)]
        moves = [
            PlannedMove(container=each, name=each[:12], tenant="", target=self._host_of(each))
            for each in away
        ]

        whole = span.current()
        gone: list[str] = []

        def carry(move: PlannedMove, part: Part) -> None:
            try:
                with span.part_of(whole, "recall"):
                    recall(
                        self.peers,
                        host=move.target,
                        container=move.container,
                        max_pause_ms=wish.max_pause_ms,
                        reporter=part,
                    )
            except ContainerNotFound:
                part.message(f"is no longer on `{move.target}`")
                gone.append(move.container)
            store.delete_journal(AWAY + move.container)

        outcome = carry_all(moves, carry, hosts=(), reporter=reporter)
        return _told(replace(outcome, moved=outcome.moved - len(gone)), verb="fill this host again")

    def _host_of(self, container: str) -> str:
        return (self.runtime.store.read_journal(AWAY + container) or b"").decode()

    def _hosts(self, wish: DrainWish) -> list[str]:
        """Return the hosts that may take something: those wished, or all that answer."""
        names = wish.to or tuple(each.name for each in self.runtime.store.list_hosts())
        found = []
        for name in names:
            host = self.peers.find(name)
            try:
                self.peers.open(host).close()
            except InsulaError:
                if wish.to:
                    raise
                continue
            found.append(name)
        return found


def _told(outcome: Outcome, *, verb: str) -> Result:
    if outcome.left:
        named = "; ".join(f"`{each.name}` stays: {each.reason}" for each in outcome.left[:5])
        more = f" and {len(outcome.left) - 5} more" if len(outcome.left) > 5 else ""
        raise MigrationFailed(
            f"cannot {verb} wholly: {outcome.moved} moved, {len(outcome.left)} not; {named}{more}",
            hint="cure these and do it again; what moved stays moved",
        )
    if outcome.is_cancelled:
        raise Cancelled(f"cancelled after {outcome.moved} containers; `insula undrain` brings them back")
    return {"moved": outcome.moved}
