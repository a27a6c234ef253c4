# SPDX-License-Identifier: Apache-2.0
"""The demo's story, step by step: two users on alpha, Redis carried to beta, alpha switched off, Redis goes on."""

import json
import select
from dataclasses import dataclass

from demo import users
from demo.check import python_of_host
from demo.clients import LoadClient
from demo.hosts import Lan, World
from demo.load import Outcome
from demo.report import Move, Narrator, Summary
from demo.users import CommandFailed, User

ANN, BEN = "insula-ann", "insula-ben"
LANS = (Lan(name="lan1", tenant=ANN, prefix="10.99.1"), Lan(name="lan2", tenant=BEN, prefix="10.99.2"))
CONTAINER_HOST = 10
REDIS_PORT, WEB_PORT = 6379, 8000
REDIS_MB = 50
BEFORE_S, AFTER_S, ALONE_S = 2.0, 2.0, 2.0
REDIS = ("redis-server", "--save", "", "--appendonly", "no", "--protected-mode", "no")
#: A web server that keeps connections alive and numbers its answers.  Buffered, so that an answer is one packet.
WEB_SERVER = f"""\
import http.server

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536
    count = 0

    def do_GET(self):
        Handler.count += 1
        body = b"%d\\n" % Handler.count
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass

http.server.ThreadingHTTPServer(("", {WEB_PORT}), Handler).serve_forever()
"""


@dataclass(kw_only=True)
class Story:
    """The people, and what they do."""

    world: World
    say: Narrator
    ann: User
    ben: User

    def tell(self) -> Summary:
        """Play everything.  Raises: CommandFailed, InsulaError."""
        self._prepare_hosts()
        self._start_programs()
        self._show_isolation()
        outcomes, move = self._carry()
        return Summary(outcomes=outcomes, move=move, seconds=self.say.seconds)

    def _command(self, user: User, host: str, *words: str) -> str:
        self.say.step(f"{user.name}@{host}$ {users.shown(words)}")
        done = user.run(self.world.hosts[host].socket, *words)
        self.say.detail(done.stdout)
        return done.stdout

    def _prepare_hosts(self) -> None:
        self.say.step("hosts alpha and beta: an insulad each, in a network namespace of its own")
        self.world.start()
        root = users.administrator(self.ann.program)
        token = root.run(self.world.hosts["beta"].socket, "host", "token", "-q").stdout.strip()
        address = f"{self.world.hosts['beta'].address}:7443"
        done = root.run(self.world.hosts["alpha"].socket, "host", "add", "--token", token, "beta", address)
        self.say.detail(done.stdout)
        self.world.create_networks()

    def _start_programs(self) -> None:
        address = LANS[0].address(CONTAINER_HOST)
        place = ("--network", "lan", "--ip")
        self._command(self.ann, "alpha", "run", "-d", "--name", "redis", *place, address, "host", *REDIS)
        python = str(python_of_host())
        web = ("host", python, "-c", WEB_SERVER)
        address = LANS[1].address(CONTAINER_HOST)
        self._command(self.ben, "alpha", "run", "-d", "--name", "web", *place, address, *web)

    def _show_isolation(self) -> None:
        for user, own, other in ((self.ann, "redis", "web"), (self.ben, "web", "redis")):
            names = self._command(user, "alpha", "ps", "--format", "{{.Names}}").split()
            if names != [own]:
                raise CommandFailed(f"{user.name} should see `{own}` alone, but sees {names}")
            words = ("exec", other, "/bin/true")
            self.say.step(f"{user.name}@alpha$ {users.shown(words)}")
            done = user.run(self.world.hosts["alpha"].socket, *words, may_fail=True)
            self.say.detail(done.stderr)
            if done.returncode == 0 or "cannot find container" not in done.stderr:
                raise CommandFailed(f"{user.name} reached `{other}`, which is another's: {done.returncode}")

    def _carry(self) -> tuple[dict[str, Outcome], Move]:
        network = self.world.outside
        redis = LoadClient(
            "redis", LANS[0].address(CONTAINER_HOST), port=REDIS_PORT, network=network, megabytes=REDIS_MB
        )
        web = LoadClient("http", LANS[1].address(CONTAINER_HOST), port=WEB_PORT, network=network)
        redis.wait_ready()
        web.wait_ready()
        self.say.step(f"clients: one connection each; Redis holds {REDIS_MB} MB and counts as fast as it can")
        pause(BEFORE_S)
        move = self._migrate()
        pause(AFTER_S)
        self._command(self.ann, "beta", "ps")
        outcomes = {"web": web.finish()}
        self._stop_alpha()
        pause(ALONE_S)
        outcomes["redis"] = redis.finish()
        self.say.step("clients: ended; every value in Redis was read again and compared")
        return outcomes, move

    def _migrate(self) -> Move:
        words = ("migrate", "redis", "beta", "--format", "json")
        self.say.step(f"{self.ann.name}@alpha$ {users.shown(words)}")
        socket = self.world.hosts["alpha"].socket
        done = self.ann.run(socket, *words, shows_progress=True, may_fail=True)
        if done.returncode != 0:
            raise CommandFailed(f"`insula migrate redis beta` ended with {done.returncode}")
        result = json.loads(done.stdout)
        return Move(
            frozen_ms=float(result["frozen_ms"]),
            moved_bytes=int(result["moved_bytes"]),
            seconds=float(result["seconds"]),
        )

    def _stop_alpha(self) -> None:
        self._command(self.ben, "alpha", "stop", "-t", "1", "web")
        self._command(self.ben, "alpha", "rm", "web")
        self.say.step("alpha is switched off")
        stayed = self.world.power_off("alpha")
        if stayed:
            raise CommandFailed(f"alpha left {', '.join(stayed)}")


def pause(seconds: float) -> None:
    """Let the clients work for a while."""
    select.select([], [], [], seconds)
