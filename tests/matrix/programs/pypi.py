# SPDX-License-Identifier: Apache-2.0
"""Programs of PyPI."""

from tests.matrix.program import Program

FLASK = """
cat > /tmp/app.py <<'END'
import fcntl, flask
app = flask.Flask(__name__)
@app.get("/")
def count():
    with open("/tmp/count", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        number = int(file.read() or 0) + 1
        file.truncate(0)
        file.write(str(number))
    return str(number)
END
cd /tmp
"""
ASGI = """
cat > /tmp/app.py <<'END'
count = 0
async def app(scope, receive, send):
    global count
    if scope["type"] != "http":
        return
    count += 1
    body = str(count).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
END
cd /tmp
"""
FLASK_PINS = (
    "blinker==1.9.0",
    "click==8.5.1",
    "flask==3.1.3",
    "itsdangerous==2.2.0",
    "jinja2==3.1.6",
    "markupsafe==3.0.4",
)

PROGRAMS = (
    Program(
        name="gunicorn-flask",
        note="CPython, forked workers with threads, a file counts",
        packages=("python3",),
        pypi=("gunicorn==27.0.1", *FLASK_PINS),
        script=FLASK
        + "exec /usr/bin/python3 -m gunicorn -w 2 -k gthread --threads 4 --keep-alive 600 -b 0.0.0.0:8080 app:app",
        client="http",
        words=("counted", "/"),
        port=8080,
        connections=3,
    ),
    Program(
        name="uvicorn",
        note="CPython, asyncio",
        packages=("python3",),
        pypi=("uvicorn==0.54.0",),
        script=ASGI
        + "exec /usr/bin/python3 -m uvicorn --host 0.0.0.0 --port 8080 --timeout-keep-alive 600 --log-level error app:app",
        client="http",
        words=("counted", "/"),
        port=8080,
        connections=2,
    ),
    Program(
        name="granian",
        note="Rust (tokio, hyper) with CPython inside, a process for the worker",
        packages=("python3",),
        pypi=("granian==2.8.7",),
        script=ASGI + "exec /usr/bin/python3 -m granian --interface asgi --host 0.0.0.0 --port 8080 app:app",
        client="http",
        words=("counted", "/"),
        port=8080,
        connections=2,
    ),
    Program(
        name="aiohttp",
        note="CPython, asyncio, C extensions",
        packages=("python3",),
        pypi=("aiohttp==3.14.5",),
        script="""
cat > /tmp/s.py <<'END'
from aiohttp import web
import itertools
numbers = itertools.count(1)
async def count(request):
    return web.Response(text=str(next(numbers)))
app = web.Application()
app.add_routes([web.get("/", count)])
web.run_app(app, port=8080, keepalive_timeout=600, print=None)
END
exec /usr/bin/python3 /tmp/s.py
""",
        client="http",
        words=("counted", "/"),
        port=8080,
        connections=2,
    ),
    Program(
        name="tornado",
        note="CPython, 2 forked processes on one listener",
        packages=("python3",),
        pypi=("tornado==6.6.1",),
        script="""
cat > /tmp/s.py <<'END'
import asyncio, tornado.iostream, tornado.netutil, tornado.process, tornado.tcpserver
class Server(tornado.tcpserver.TCPServer):
    async def handle_stream(self, stream, address):
        count = 0
        try:
            while await stream.read_until(b"\\n"):
                count += 1
                await stream.write(b"%d\\n" % count)
        except tornado.iostream.StreamClosedError:
            pass
sockets = tornado.netutil.bind_sockets(7000, "0.0.0.0")
tornado.process.fork_processes(2)
async def main():
    Server().add_sockets(sockets)
    await asyncio.Event().wait()
asyncio.run(main())
END
exec /usr/bin/python3 /tmp/s.py
""",
        client="lines",
        connections=4,
    ),
    Program(
        name="twisted",
        note="CPython, a reactor on epoll",
        packages=("python3",),
        pypi=("twisted==26.10.0",),
        script="""
cat > /tmp/s.py <<'END'
from twisted.internet import protocol, reactor
from twisted.protocols.basic import LineOnlyReceiver
class Counting(LineOnlyReceiver):
    delimiter = b"\\n"
    count = 0
    def lineReceived(self, line):
        self.count += 1
        self.sendLine(b"%d" % self.count)
reactor.listenTCP(7000, protocol.Factory.forProtocol(Counting))
reactor.run()
END
exec /usr/bin/python3 /tmp/s.py
""",
        client="lines",
        connections=3,
    ),
    Program(
        name="numpy",
        note="CPython with OpenBLAS's threads, each answer a checked product of matrices",
        packages=("python3",),
        pypi=("numpy==2.4.6",),
        script="""
cat > /tmp/s.py <<'END'
import socketserver, numpy
base = numpy.random.default_rng(1).random((300, 300))
right = base @ base
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        count = 0
        for line in self.rfile:
            count += bool(numpy.allclose(base @ base, right))
            self.wfile.write(b"%d\\n" % count)
socketserver.TCPServer.allow_reuse_address = True
socketserver.TCPServer(("", 7000), Handler).serve_forever()
END
exec env OPENBLAS_NUM_THREADS=2 /usr/bin/python3 /tmp/s.py
""",
        client="lines",
    ),
    Program(
        name="celery",
        note="CPython: a Redis, a worker with forked children, a web front that waits for each task",
        packages=("python3", "redis-server"),
        pypi=("async-timeout==5.0.1", "celery==5.7.0", "redis==8.1.0"),
        script="""
redis-server --port 6379 --bind 127.0.0.1 --dir /tmp --save '' --loglevel warning &
cat > /tmp/tasks.py <<'END'
import celery, redis
app = celery.Celery("tasks", broker="redis://127.0.0.1/0", backend="redis://127.0.0.1/1")
@app.task
def count():
    return redis.Redis(db=2).incr("count")
END
cat > /tmp/s.py <<'END'
import socketserver, tasks
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(b"%d\\n" % tasks.count.delay().get(timeout=30))
socketserver.TCPServer.allow_reuse_address = True
socketserver.TCPServer(("", 7000), Handler).serve_forever()
END
cd /tmp
/usr/bin/python3 -m celery -A tasks worker -c 2 --loglevel error > /tmp/worker.log 2>&1 &
exec /usr/bin/python3 /tmp/s.py
""",
        client="lines",
        ready_s=60.0,
    ),
)
