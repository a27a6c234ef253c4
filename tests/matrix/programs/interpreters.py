# SPDX-License-Identifier: Apache-2.0
"""Interpreters and virtual machines, each with a small counting server in its own language."""

from tests.matrix.program import Program

PROGRAMS = (
    Program(
        name="python-threads",
        note="CPython of Debian, a thread per connection and two that work",
        packages=("python3",),
        script="""
cat > /tmp/s.py <<'END'
import socket, threading, time
lock, count, junk = threading.Lock(), 0, {}
def work():
    while True:
        junk[time.monotonic_ns() % 5000] = bytearray(1000)
        time.sleep(0.002)
def serve(connection):
    global count
    with connection.makefile("rw") as file:
        for line in file:
            with lock:
                count += 1
                answer = count
            print(answer, file=file, flush=True)
for _ in range(2):
    threading.Thread(target=work).start()
listener = socket.create_server(("", 7000))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],)).start()
END
exec /usr/bin/python3 -u /tmp/s.py
""",
        client="lines",
        words=("count", r"(\d+)", "shared"),
        connections=3,
    ),
    Program(
        name="pypy3",
        note="a compiler at run time, a thread per connection",
        packages=("pypy3",),
        script="""
cat > /tmp/s.py <<'END'
import socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        count = 0
        for line in self.rfile:
            count += 1
            self.wfile.write(b"%d\\n" % count)
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("", 7000), Handler).serve_forever()
END
exec env -u PYTHONPATH pypy3 /tmp/s.py
""",
        client="lines",
        connections=2,
    ),
    Program(
        name="perl",
        note="forks for each connection",
        packages=("perl",),
        script="""
cat > /tmp/s.pl <<'END'
use IO::Socket::INET; $SIG{CHLD} = 'IGNORE';
my $l = IO::Socket::INET->new(LocalPort => 7000, Listen => 5, ReuseAddr => 1) or die;
while (my $c = $l->accept) { next if fork; $c->autoflush(1); my $n = 0; while (<$c>) { print $c ++$n, "\\n" } exit }
END
exec perl /tmp/s.pl
""",
        client="lines",
        connections=3,
    ),
    Program(
        name="ruby",
        note="a thread per connection",
        packages=("ruby",),
        script="""
cat > /tmp/s.rb <<'END'
require 'socket'
server = TCPServer.new(7000)
loop { Thread.new(server.accept) { |c| n = 0; while c.gets; n += 1; c.puts n; end } }
END
exec ruby /tmp/s.rb
""",
        client="lines",
        connections=2,
    ),
    Program(
        name="php",
        note="its own web server with 2 workers, a file counts",
        packages=("php-cli",),
        script="""
mkdir /tmp/www
cat > /tmp/www/index.php <<'END'
<?php $f = fopen('/tmp/count', 'c+'); flock($f, LOCK_EX); $n = (int)fgets($f) + 1; rewind($f); fwrite($f, "$n\\n");
header('Content-Type: text/plain'); echo $n;
END
exec php -S 0.0.0.0:8080 -t /tmp/www 2> /dev/null
""",
        client="web",
        words=("/", ""),
        port=8080,
    ),
    Program(
        name="lua",
        note="Lua 5.4 with lua-socket",
        packages=("lua5.4", "lua-socket"),
        script="""
cat > /tmp/s.lua <<'END'
local server = assert(require('socket').bind('*', 7000))
while true do
  local c, n = server:accept(), 0
  while c:receive('*l') do n = n + 1; c:send(n .. '\\n') end
end
END
exec lua5.4 /tmp/s.lua
""",
        client="lines",
    ),
    Program(
        name="luajit",
        note="a compiler at run time, socat before it",
        packages=("luajit", "socat"),
        script="""
echo 'local n = 0; for _ in io.lines() do n = n + 1; print(n); io.flush() end' > /tmp/s.lua
exec socat TCP-LISTEN:7000,reuseaddr,fork 'EXEC:luajit /tmp/s.lua'
""",
        client="lines",
        connections=2,
    ),
    Program(
        name="guile",
        note="Guile 3.0, garbage collector threads",
        packages=("guile-3.0",),
        script="""
cat > /tmp/s.scm <<'END'
(use-modules (ice-9 rdelim))
(define s (socket PF_INET SOCK_STREAM 0))
(setsockopt s SOL_SOCKET SO_REUSEADDR 1)
(bind s AF_INET INADDR_ANY 7000)
(listen s 5)
(let next ()
  (let ((c (car (accept s))))
    (let loop ((n 1))
      (if (not (eof-object? (read-line c)))
          (begin (display (format #f "~a\\n" n) c) (force-output c) (loop (+ n 1))))))
  (next))
END
exec guile --no-auto-compile /tmp/s.scm
""",
        client="lines",
    ),
    Program(
        name="tcl",
        note="Tcl 8.6, events",
        packages=("tcl",),
        script="""
cat > /tmp/s.tcl <<'END'
set n 0
proc answer {c} { global n; if {[gets $c] eq "" && [eof $c]} { close $c; return }; puts $c [incr n]; flush $c }
proc greet {c address port} { fconfigure $c -buffering line; fileevent $c readable [list answer $c] }
socket -server greet 7000
vwait for_ever
END
exec tclsh /tmp/s.tcl
""",
        client="lines",
        words=("count", r"(\d+)", "shared"),
        connections=2,
    ),
    Program(
        name="gawk",
        note="its own TCP listener",
        packages=("gawk",),
        script="""
exec gawk 'BEGIN { s = "/inet/tcp/7000/0/0"; while ((s |& getline line) > 0) { print ++n |& s; fflush(s) } }'
""",
        client="lines",
    ),
    Program(
        name="nodejs",
        note="V8, libuv's threads, HTTP",
        packages=("nodejs",),
        script="""
echo 'let n = 0; require("http").createServer((q, a) => a.end(String(++n))).listen(8080).keepAliveTimeout = 600000' > /tmp/s.js
exec node /tmp/s.js
""",
        client="http",
        words=("counted", "/"),
        port=8080,
        connections=3,
    ),
    Program(
        name="openjdk",
        note="JVM 17, its collector's and compiler's threads, a thread per connection",
        packages=("openjdk-17-jdk-headless",),
        script="""
cat > /tmp/Count.java <<'END'
import java.io.*; import java.net.*; import java.util.concurrent.atomic.*;
public class Count {
  public static void main(String[] words) throws Exception {
    AtomicInteger count = new AtomicInteger();
    ServerSocket server = new ServerSocket(7000);
    while (true) {
      Socket s = server.accept();
      s.setTcpNoDelay(true);
      new Thread(() -> {
        try { BufferedReader in = new BufferedReader(new InputStreamReader(s.getInputStream()));
          OutputStream out = s.getOutputStream();
          while (in.readLine() != null) out.write((count.incrementAndGet() + "\\n").getBytes());
        } catch (IOException e) { }
      }).start();
    }
  }
}
END
exec java -Xmx256m /tmp/Count.java
""",
        client="lines",
        words=("count", r"(\d+)", "shared"),
        connections=2,
        ready_s=60.0,
    ),
    Program(
        name="erlang",
        note="BEAM, its scheduler threads",
        packages=("erlang-base",),
        script="""
cat > /tmp/count.erl <<'END'
-module(count).
-export([start/0]).
start() -> {ok, L} = gen_tcp:listen(7000, [binary, {packet, line}, {active, false}, {reuseaddr, true}]), accept(L).
accept(L) -> {ok, S} = gen_tcp:accept(L), P = spawn(fun() -> receive go -> loop(S, 1) end end),
  gen_tcp:controlling_process(S, P), P ! go, accept(L).
loop(S, N) -> case gen_tcp:recv(S, 0) of {ok, _} -> gen_tcp:send(S, [integer_to_list(N), "\\n"]), loop(S, N + 1); _ -> ok end.
END
cd /tmp; erlc count.erl; exec erl -noinput -s count start
""",
        client="lines",
        connections=2,
    ),
    Program(
        name="sbcl",
        note="Common Lisp, memory of its own",
        packages=("sbcl",),
        script="""
cat > /tmp/s.lisp <<'END'
(require :sb-bsd-sockets)
(let ((l (make-instance 'sb-bsd-sockets:inet-socket :type :stream :protocol :tcp)))
  (setf (sb-bsd-sockets:sockopt-reuse-address l) t)
  (sb-bsd-sockets:socket-bind l #(0 0 0 0) 7000)
  (sb-bsd-sockets:socket-listen l 5)
  (loop (let ((s (sb-bsd-sockets:socket-make-stream (sb-bsd-sockets:socket-accept l) :input t :output t)) (n 0))
    (loop while (read-line s nil) do (format s "~d~%" (incf n)) (finish-output s)))))
END
exec sbcl --script /tmp/s.lisp
""",
        client="lines",
    ),
    Program(
        name="swi-prolog",
        note="threads, socat before it",
        packages=("swi-prolog-nox", "socat"),
        script="""
cat > /tmp/s.pl <<'END'
loop(N) :- read_line_to_string(user_input, L), L \\== end_of_file, !, format("~d~n", [N]), flush_output, M is N + 1, loop(M).
:- initialization((loop(1) ; halt)).
END
exec socat TCP-LISTEN:7000,reuseaddr,fork 'EXEC:swipl -q /tmp/s.pl'
""",
        client="lines",
    ),
)
