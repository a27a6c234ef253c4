# SPDX-License-Identifier: Apache-2.0
"""Two real servers, recorded under load and held to that for the same load: nothing is denied, but a planted shell is."""

import http.client
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drifts import Events, events
from hosted import Host, wait_until

NGINX_PORT, REDIS_PORT = 8080, 6379
CONFIGURATION = """
daemon off; worker_processes 2; user www-data; pid /run/nginx.pid; error_log stderr notice;
events {}
http {
  access_log /tmp/access.log; client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy;
  fastcgi_temp_path /tmp/fastcgi; uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
  keepalive_requests 1000; sendfile on; client_body_in_file_only clean;
  server {
    listen 8080; listen [::]:8080; root /opt/nginx/www;
    location /stored/ { alias /tmp/stored/; dav_methods PUT DELETE MOVE; create_full_put_path on; autoindex on; }
    location /moved { return 301 /; }
    location /forbidden { deny all; }
    location /broken { proxy_pass http://127.0.0.1:9; }
  }
}
"""
#: The container's own program: has nginx run, passes signals on, and starts a script that visitors have left.
MAIN = """
import os, signal, subprocess, sys
HUP, TERM, CHLD = signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD
signal.pthread_sigmask(signal.SIG_BLOCK, (HUP, TERM))
nginx = subprocess.Popen(
    ["/opt/nginx/usr/sbin/nginx", "-c", "/opt/nginx/nginx.conf"],
    preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, (HUP, TERM)),
)
while True:
    found = signal.sigtimedwait((HUP, TERM), 0.1)
    if found is not None:
        nginx.send_signal(found.si_signo)
        if found.si_signo == TERM:
            sys.exit(nginx.wait())
    if os.path.exists("/tmp/stored/planted"):
        try:
            subprocess.run(["/bin/sh", "/tmp/stored/planted"])
        except OSError as error:
            print(error.strerror, flush=True)
        os.unlink("/tmp/stored/planted")
"""
#: Method, path, body, and the status that comes.
REQUESTS = (
    ("GET", "/", b"", 200), ("HEAD", "/", b"", 200), ("GET", "/large", b"", 200), ("GET", "/missing", b"", 404),
    ("POST", "/", b"x" * 100_000, 405), ("GET", "/moved", b"", 301), ("GET", "/forbidden", b"", 403),
    ("GET", "/broken", b"", 502), ("PUT", "/stored/a", b"y" * 50_000, 201), ("GET", "/stored/", b"", 200),
    ("GET", "/stored/a", b"", 200), ("DELETE", "/stored/a", b"", 204),
)  # fmt: skip
ROUNDS = 20


@pytest.fixture(scope="module")
def nginx() -> Iterator[Path]:
    """Debian's nginx, its configuration, and what it serves, in a folder of this host."""
    folder = Path(tempfile.mkdtemp(prefix="insula-test-nginx-", dir="/var/tmp"))
    folder.chmod(0o755)
    words = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", "nginx"]
    subprocess.run(words, cwd=folder, check=True, capture_output=True, timeout=120)
    (package,) = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", package, folder], check=True, timeout=60)
    (folder / "nginx.conf").write_text(CONFIGURATION)
    www = folder / "www"
    www.mkdir()
    (www / "index.html").write_text("hello\n")
    (www / "large").write_bytes(os.urandom(1 << 20))
    yield folder
    shutil.rmtree(folder)


def load_nginx(host: Host, address: str) -> None:
    """Ask for everything, on connections that are kept.  Raises: AssertionError for a wrong answer."""
    for _ in range(ROUNDS):
        reset(host, address, NGINX_PORT)
        connection = http.client.HTTPConnection(address, NGINX_PORT)
        connection.sock = host.connect(address, NGINX_PORT)
        for method, path, body, status in REQUESTS:
            connection.request(method, path, body=body or None)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status, (method, path, answer.status)
        connection.close()


def address_of(host: Host, name: str, port: int) -> str:
    """Return a container's address as soon as it listens."""
    address = str(host.root.look(name)["attachment"]["address"])

    def listens() -> bool:
        try:
            host.connect(address, port).close()
        except OSError:
            return False
        return True

    wait_until(listens, what=f"{name} listens")
    return address


@contextmanager
def recorded(host: Host, name: str) -> Iterator[None]:
    """Record a container from its start to its end, and hold it to that."""
    host.root("profile", "record", name)
    host.root("start", name)
    yield
    host.root("stop", name)
    host.root("profile", "stop", name, name)
    host.root("profile", "apply", name, name)


def reload_nginx(host: Host, told: Callable[[], int]) -> None:
    """Have the workers replaced, and wait until the old ones have gone."""
    before = told()
    host.root("kill", "-s", "HUP", "web")
    wait_until(lambda: told() > before, what="the workers are new")


def told_by_nginx(host: Host) -> str:
    return host.root.give("logs", "web").err


def gone_workers(host: Host) -> int:
    return told_by_nginx(host).count("exited with code 0")


def nothing_is_lacked(host: Host, name: str, told: Events) -> None:
    assert told.drifts() == []
    assert host.root("profile", "drift", name) == ""


def test_nginx(host: Host, nginx: Path) -> None:
    host.root(
        "create", "--name", "web", "-v", f"{nginx}:/opt/nginx:ro", "host", "python3", "-Suc", MAIN,
    )  # fmt: skip

    def work() -> None:
        address = address_of(host, "web", NGINX_PORT)
        load_nginx(host, address)
        reload_nginx(host, lambda: gone_workers(host))
        load_nginx(host, address)

    with recorded(host, "web"):
        work()
    print(host.root("profile", "show", "web"))
    with events(host.root) as told:
        host.root("start", "web")
        work()
        nothing_is_lacked(host, "web", told)
        # A visitor leaves a script, which the main program starts as it has started nginx: by `vfork` instead of `clone`.
        ask(host, address_of(host, "web", NGINX_PORT), body=b"echo planted > /tmp/here; echo planted")
        wait_until(lambda: told.drifts() != [], what="the planted shell is told")
        assert all("/bin/sh (new program, refused)" in each for each in told.drifts()), told.drifts()
        wait_until(lambda: "Permission denied" in host.root("logs", "web"), what="the shell is denied")
        assert "planted" not in host.root("logs", "web")
        load_nginx(host, address_of(host, "web", NGINX_PORT))
        drifts = host.root.json("profile", "drift", "--format", "json", "web")
        assert {each["thing"] for each in drifts["drifts"] if each["part"] == "programs"} == {"/bin/sh"}
        host.root("stop", "web")
    host.root("profile", "rm", "web")


def ask(host: Host, address: str, *, body: bytes) -> None:
    """Leave a file."""
    connection = http.client.HTTPConnection(address, NGINX_PORT)
    connection.sock = host.connect(address, NGINX_PORT)
    connection.request("PUT", "/stored/planted", body=body)
    assert connection.getresponse().status == 201
    connection.close()


def reset(host: Host, address: str, port: int) -> None:
    """Connect, say half a word, and be gone: servers ask then who that was."""
    with host.connect(address, port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(b"*")


def load_redis(host: Host, address: str) -> None:
    """Ask for everything that a cache and a store are asked for.  Raises: AssertionError for a wrong answer."""
    for _ in range(ROUNDS):
        reset(host, address, REDIS_PORT)
    with host.connect(address, REDIS_PORT) as connection, connection.makefile("rb") as answers:

        def ask(*words: str) -> bytes:
            request = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
            connection.sendall(request.encode())
            first = answers.readline()
            if first.startswith(b"$") and first != b"$-1\r\n":
                return answers.readline()
            return first

        def info() -> bytes:
            connection.sendall(b"*2\r\n$4\r\nINFO\r\n$11\r\npersistence\r\n")
            size = int(answers.readline()[1:])
            return answers.read(size + 2)

        for number in range(ROUNDS):
            assert ask("SET", f"key:{number}", "x" * 5000) == b"+OK\r\n"
            assert ask("GET", f"key:{number}") == b"x" * 5000 + b"\r\n"
            assert ask("EXPIRE", f"key:{number}", "100") == b":1\r\n"
            assert ask("LPUSH", "list", str(number)).startswith(b":")
        assert ask("EVAL", "return redis.call('GET', 'key:1')", "0") == b"x" * 5000 + b"\r\n"
        assert ask("SAVE") == b"+OK\r\n"
        assert ask("BGSAVE").startswith(b"+")
        wait_until(lambda: b"rdb_bgsave_in_progress:0" in info(), what="saved")
        assert ask("BGREWRITEAOF").startswith(b"+")
        wait_until(lambda: b"aof_rewrite_in_progress:0" in info(), what="written anew")
        assert ask("FLUSHALL") == b"+OK\r\n"


def test_redis(host: Host) -> None:
    host.root(
        "create", "--name", "store", "host", "redis-server", "--bind", "0.0.0.0", "--protected-mode", "no",
        "--dir", "/var/lib", "--enable-protected-configs", "yes", "--appendonly", "yes",
        # Of what is slow it asks who has sent it: on a busy machine other words than in the recording.
        "--slowlog-log-slower-than", "0",
    )  # fmt: skip
    with recorded(host, "store"):
        load_redis(host, address_of(host, "store", REDIS_PORT))
    print(host.root("profile", "show", "store"))
    with events(host.root) as told:
        host.root("start", "store")
        address = address_of(host, "store", REDIS_PORT)
        load_redis(host, address)
        nothing_is_lacked(host, "store", told)
        # The usual way into a Redis: have it write its store where the system reads what to start.
        with host.connect(address, REDIS_PORT) as connection:
            connection.sendall(b"CONFIG SET dir /etc\r\nCONFIG SET dbfilename planted\r\nSAVE\r\n")
            wait_until(lambda: any("/etc" in each for each in told.drifts()), what="the planted file is told")
        (planted,) = (each for each in told.drifts() if "/etc" in each)
        assert "(new folder, refused)" in planted
    host.root("profile", "rm", "store")
