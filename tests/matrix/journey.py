# SPDX-License-Identifier: Apache-2.0
"""One program's journey: started, loaded, carried to and fro, judged, removed."""

import time
from dataclasses import replace
from itertools import cycle

from demo.cleanup import wait_until
from demo.hosts import Host, Lan, World
from tests.matrix.loader import ClientGone, Loader
from tests.matrix.program import Program
from tests.matrix.results import Row

from insula.client.http import Client
from insula.client.operations import ENDED, cancel, failure
from insula.model.errors import InsulaError, PauseTooLong

IMAGE = "matrix"
MOVE_S = 90.0
"""A move that takes longer is cancelled, and counts as not carried."""
REST_S = 0.5
ANSWERS_BETWEEN = 20
"""That its client must get after a move before the next one."""
GIVE_UP_AFTER = 3
"""Moves in a row that were not carried: the next would not be, either."""
PATIENCE_MS = 10_000
"""Allowed once a move was refused because the usual pause would not do: the table tells both."""
UID = "1000"


class Journey:
    """One program; `travel` tells everything."""

    def __init__(self, program: Program, *, world: World, lan: Lan, number: int, moves: int) -> None:
        self._program, self._world, self._moves = program, world, moves
        self._address = lan.address(number)
        self._where = "alpha"
        self._gaps: list[float] = []
        self._frozen: list[float] = []
        self._reasons: dict[str, str] = {}
        self._is_patient = False
        self._row = Row(
            name=program.name,
            note=program.note,
            client=f"{program.client} × {program.connections}",
            moves=0,
            carried=0,
            answers=0,
            rest_ms=0.0,
            gap_ms=0.0,
            frozen_ms=0.0,
        )

    def travel(self, *, words: tuple[str, ...]) -> Row:
        """Do it all; never raises for what the program, its client or insula does."""
        loader: Loader | None = None
        try:
            self._start(words)
            loader = Loader(
                self._program, self._address, network=self._world.outside, words=self._words(words)
            )
            if problem := loader.wait_ready(self._program.ready_s + 30.0):
                self._note(problem=f"{problem}; {self._last_words()}")
            else:
                self._carry(loader)
                self._end(loader)
        except (InsulaError, OSError, ClientGone) as error:
            self._note(problem=f"{type(error).__name__}: {error}")
        finally:
            if loader is not None:
                loader.close()
            self._remove()
        if self._row.problem and self._row.carried and self._program.limit:
            self._row = replace(self._row, problem="", refused=f"carried, but {self._program.limit}")
        return self._row

    def _words(self, words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(word.replace("{key}", words[0]) for word in self._program.words)

    def _note(self, **changes: str | int | float) -> None:
        if self._row.problem:
            changes.pop("problem", None)  # the first one is the cause of the others
        self._row = replace(self._row, **changes)  # type: ignore[arg-type]

    def _host(self, name: str) -> Host:
        return self._world.hosts[name]

    def _client(self, name: str) -> Client:
        return self._host(name).client()

    # -- before and after

    def _start(self, words: tuple[str, ...]) -> None:
        script = self._program.script.replace("{public_key}", words[1]).replace("{address}", self._address)
        body = {
            "image": IMAGE,
            "name": self._program.name,
            "network": "lan",
            "address": self._address,
            "user": "0" if self._program.is_root else UID,
            "command": ["/bin/sh", "-euc", script],
            "environment": ["PYTHONPATH=/opt/pypi", "HOME=/tmp"],
        }
        self._client("alpha").call("POST", "/v1/containers", body=body)
        self._client("alpha").call("POST", f"/v1/containers/{self._program.name}/start")

    def _last_words(self) -> str:
        for name in self._world.hosts:
            for each in self._client(name).get("/v1/containers", {"all": "1"}):
                log = self._host(name).folder / f"state/containers/{each['id']}/log"
                if each["name"] == self._program.name and log.exists():
                    words = log.read_bytes()[-400:].decode("ascii", "ignore").split()
                    return f"{each['status']}, its last words: {' '.join(filter(str.isprintable, words))}"
        return "it is gone"

    def _end(self, loader: Loader) -> None:
        outcome = loader.finish()
        self._note(answers=outcome.answers, gap_ms=round(max(self._gaps, default=0.0), 1))
        if outcome.problem:
            self._note(problem=outcome.problem)

    def _remove(self) -> None:
        for name in self._world.hosts:
            try:
                for each in self._client(name).get("/v1/containers", {"all": "1"}):
                    if each["name"] == self._program.name:
                        query = {"force": "1", "volumes": "1"}
                        self._client(name).call("DELETE", f"/v1/containers/{each['id']}", query=query)
            except (InsulaError, OSError) as error:
                self._note(problem=f"cannot be removed on {name}: {error}")

    # -- the moves

    def _carry(self, loader: Loader) -> None:
        wait_until(lambda: False, deadline_s=REST_S)
        self._note(rest_ms=round(loader.look().gap_ms, 1))
        targets = cycle(("beta", "alpha"))
        target, refusals = next(targets), 0
        while self._row.moves < self._moves and not self._row.problem and refusals < GIVE_UP_AFTER:
            reason = self._migrate(target)
            self._note(moves=self._row.moves + 1)
            if reason:
                refusals += 1
                self._note(refused="; ".join(self._reasons.values()))
            else:
                self._where, target, refusals = target, next(targets), 0
                self._note(carried=self._row.carried + 1)
            self._judge(loader, is_carried=not reason)

    def _migrate(self, target: str) -> str:
        """Carry it; returns why it was not carried."""
        client = self._client(self._where)
        path = f"/v1/containers/{self._program.name}/migrate"
        wish: dict[str, object] = {"target": target}
        if self._is_patient:
            wish["max_pause_ms"] = PATIENCE_MS
        try:
            operation = client.call("POST", path, body=wish)
            deadline = time.monotonic() + MOVE_S
            is_late = False
            while operation["status"] not in ENDED:
                if not is_late and time.monotonic() > deadline:
                    is_late, deadline = True, deadline + MOVE_S
                    cancel(client, operation["id"])
                if time.monotonic() > deadline:
                    self._note(problem=f"a move has not ended for {2 * MOVE_S:.0f} s")
                    return "it takes for ever"
                wait_until(lambda: False, deadline_s=0.02)
                operation = client.get(f"/v1/operations/{operation['id']}")
            error = failure(operation)
        except InsulaError as refusal:
            error = refusal
        if error is None:
            self._frozen.append(float(operation["result"]["frozen_ms"]))
            return ""
        self._is_patient |= isinstance(error, PauseTooLong)
        self._reasons.setdefault(error.code, str(error))
        return str(error)

    def _judge(self, loader: Loader, *, is_carried: bool) -> None:
        """Look whether one copy answers, and note what the client saw of the move."""
        seen = [loader.look()]
        if is_carried:
            self._gaps.append(seen[0].gap_ms)
        wanted = seen[0].answers + ANSWERS_BETWEEN

        def goes_on() -> bool:
            seen.append(loader.look())
            return bool(seen[-1].problem) or seen[-1].answers >= wanted

        if not wait_until(goes_on, deadline_s=30.0):
            self._note(problem=f"no answers any more; {self._last_words()}")
        if is_carried:
            self._gaps.append(max(each.gap_ms for each in seen))
        if seen[-1].problem:
            self._note(problem=f"{seen[-1].problem}; {self._last_words()}")
        self._note(answers=seen[-1].answers, gap_ms=round(max(self._gaps, default=0.0), 1))
        self._note(frozen_ms=round(max(self._frozen, default=0.0), 1))
        running = [name for name in self._world.hosts if self._status(name) == "running"]
        if running != [self._where]:
            self._note(problem=f"runs on {' and '.join(running) or 'no host'} instead of {self._where}")

    def _status(self, host: str) -> str:
        for each in self._client(host).get("/v1/containers", {"all": "1"}):
            if each["name"] == self._program.name:
                return str(each["status"])
        return ""
