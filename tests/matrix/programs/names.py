# SPDX-License-Identifier: Apache-2.0
"""Name servers: UDP."""

from tests.matrix.program import Program

PROGRAMS = (
    Program(
        name="bind9",
        note="C, threads, UDP",
        packages=("bind9",),
        script="""
mkdir -p /tmp/named
cat > /tmp/named/zone <<'END'
$TTL 60
@ IN SOA ns root 1 3600 600 86400 60
@ IN NS ns
ns IN A 192.0.2.1
* IN A 192.0.2.7
END
cat > /tmp/named/conf <<'END'
options { directory "/tmp/named"; recursion no; listen-on { any; }; listen-on-v6 { none; }; pid-file none;
  minimal-responses yes; session-keyfile "/tmp/named/key"; };
controls { };
zone "test" { type master; file "/tmp/named/zone"; };
END
exec named -f -n 2 -c /tmp/named/conf
""",
        client="dns",
        words=("192.0.2.7",),
        port=53,
    ),
    Program(
        name="unbound",
        note="C, a resolver with 2 threads, UDP",
        packages=("unbound",),
        script="""
cat > /tmp/unbound.conf <<'END'
server:
  interface: 0.0.0.0
  access-control: 0.0.0.0/0 allow
  num-threads: 2
  do-daemonize: no
  chroot: ""
  username: ""
  pidfile: ""
  use-syslog: no
  local-zone: "test." redirect
  local-data: "test. A 192.0.2.7"
END
exec unbound -d -c /tmp/unbound.conf
""",
        client="dns",
        words=("192.0.2.7",),
        port=53,
    ),
    Program(
        name="dnsmasq",
        note="C, one process, UDP",
        packages=("dnsmasq-base",),
        script="exec dnsmasq -k -h -R -u root --address=/test/192.0.2.7 --log-facility=-",
        client="dns",
        words=("192.0.2.7",),
        port=53,
    ),
)
