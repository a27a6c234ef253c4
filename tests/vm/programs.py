# SPDX-License-Identifier: Apache-2.0
"""The three programs that move between the guests, and their clients, who count what fails."""

from demo.clients import LoadClient

from vm.guest import Guest, wait_until
from vm.laboratory import LAN, Laboratory
from vm.postgres import PgBench

IMAGE = "debian"
REDIS, POSTGRES, PYTHON = (f"{LAN}.{number}" for number in (20, 21, 22))
NAMES = ("postgres", "python", "redis")
#: Emulated processors are tens of times slower than the pause that insula promises.
IN_LAN = ("--network", "lan", "--max-pause", "60s")
#: A web server that numbers its answers; a thread for each connection, one that ticks, and a file kept open for writing.
SERVER = """
import http.server, threading, time
out = open("/root/answers", "w", buffering=1)
lock = threading.Lock()
count = ticks = 0

def tick():
    global ticks
    while True:
        time.sleep(0.05)
        ticks += 1

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536

    def do_GET(self):
        global count
        with lock:
            count += 1
            answer = count
            out.write("%d\\n" % answer)
        body = b"%d\\n" % answer
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass

threading.Thread(target=tick, daemon=True).start()
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""


class Load:
    """The three programs and their clients."""

    def __init__(self, laboratory: Laboratory) -> None:
        self.laboratory = laboratory
        outside = laboratory.outside
        self.redis = LoadClient("redis", REDIS, port=6379, network=outside, megabytes=10)
        self.python = LoadClient("http", PYTHON, port=8000, network=outside)
        self.postgres = PgBench(laboratory.guests["alpha"].system.tree, POSTGRES, network=outside)

    def start(self) -> None:
        assert wait_until(self.postgres.is_ready), "PostgreSQL does not answer"
        self.postgres.fill()
        self.postgres.start()
        for client in (self.redis, self.python):
            client.wait_ready()
            client.take_gap_ms()

    def wait_for_more(self, count: int = 20) -> None:
        """Wait until PostgreSQL has done so many transactions from now on."""
        wanted = len(self.postgres.transactions()) + count
        assert wait_until(
            lambda: len(self.postgres.transactions()) >= wanted or not self.postgres.is_running(),
        ), "pgbench gets no answers any more"

    def tell_gaps(self, what: str) -> None:
        redis, python = self.redis.take_gap_ms(), self.python.take_gap_ms()
        self.laboratory.say(f"{what}: longest gap of redis {redis:.0f} ms, of python {python:.0f} ms")

    def kill(self) -> None:
        for client in (self.redis, self.python, self.postgres):
            client.kill()

    def finish(self) -> None:
        """End all clients: none has seen a failure."""
        redis, python = self.redis.finish(), self.python.finish()
        done, failed, gap = self.postgres.finish()
        self.laboratory.say(f"redis {redis}")
        self.laboratory.say(f"python {python}")
        self.laboratory.say(
            f"postgres: {done} transactions, {failed} failed, longest gap {gap * 1000:.0f} ms"
        )
        for outcome in (redis, python):
            assert (outcome.failed, outcome.lost) == (0, 0), outcome
        assert failed == 0 and done > 0


def start_programs(host: Guest) -> None:
    run = ("run", "-d", *IN_LAN)
    quiet = ("--save", "", "--protected-mode", "no")
    host.insula(*run, "--ip", REDIS, "--name", "redis", IMAGE, "redis-server", *quiet)
    host.insula(
        *run, "--ip", POSTGRES, "--name", "postgres", "--user", "postgres", IMAGE,
        "/usr/lib/postgresql/15/bin/postgres", "-c", "config_file=/etc/postgresql/15/main/postgresql.conf",
        "-c", "external_pid_file=", "-c", "unix_socket_directories=/tmp",
    )  # fmt: skip
    host.insula(*run, "--ip", PYTHON, "--name", "python", IMAGE, "python3", "-c", SERVER)


def names_on(host: Guest) -> list[str]:
    return sorted(host.insula("ps", "--format", "{{.name}}").split())
