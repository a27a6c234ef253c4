# SPDX-License-Identifier: Apache-2.0
"""Go and Rust binaries that are in no other family (Go: etcd, nats, caddy; Rust: granian)."""

from tests.matrix.program import Program

PROGRAMS = (
    Program(
        name="node-exporter",
        note="Go, its own counter of requests",
        packages=("prometheus-node-exporter",),
        script="""
exec prometheus-node-exporter --web.listen-address=0.0.0.0:9100 --collector.disable-defaults --collector.loadavg \
--log.level=error
""",
        client="http",
        words=("counted", "/metrics", r'promhttp_metric_handler_requests_total\{code="200"\} (\d+)'),
        port=9100,
    ),
    Program(
        name="ripgrep",
        note="Rust, an endless filter of lines that is held up by its reader, socat before it",
        packages=("ripgrep", "socat"),
        script="""
echo 'seq 1 1000000000 | rg .' > /tmp/numbers
exec socat TCP-LISTEN:7000,reuseaddr,fork 'EXEC:sh /tmp/numbers'
""",
        client="stream",
    ),
)
