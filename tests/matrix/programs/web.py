# SPDX-License-Identifier: Apache-2.0
"""Web servers and proxies."""

from tests.matrix.program import Program

PROGRAMS = (
    Program(
        name="nginx",
        note="C, a master and 4 workers, files written by PUT",
        packages=("nginx-core",),
        script="""
mkdir -p /var/log/nginx /tmp/dav; chmod 1777 /tmp/dav
cat > /tmp/nginx.conf <<'END'
daemon off; worker_processes 4; user www-data; pid /tmp/nginx.pid;
events {}
http {
  access_log off; client_body_temp_path /tmp/dav/.part; keepalive_requests 1000000;
  server { listen 8080; root /tmp; location /dav/ { dav_methods PUT; create_full_put_path on; } }
}
END
exec nginx -c /tmp/nginx.conf
""",
        client="http",
        words=("put", "/dav/"),
        port=8080,
        connections=4,
    ),
    Program(
        name="apache2",
        note="C, prefork: a process per connection, files written by PUT",
        packages=("apache2",),
        script="""
mkdir -p /var/log/apache2 /tmp/www; chmod 1777 /tmp/www
m=/usr/lib/apache2/modules
cat > /tmp/apache.conf <<END
ServerName test
ServerRoot /tmp
Listen 8080
User www-data
Group www-data
PidFile /tmp/apache.pid
ErrorLog /dev/stderr
LoadModule mpm_prefork_module $m/mod_mpm_prefork.so
LoadModule authz_core_module $m/mod_authz_core.so
LoadModule dav_module $m/mod_dav.so
LoadModule dav_fs_module $m/mod_dav_fs.so
DavLockDB /tmp/www/.lock
MaxKeepAliveRequests 0
KeepAliveTimeout 600
DocumentRoot /tmp/www
<Directory /tmp/www>
  Dav On
  Require all granted
</Directory>
END
exec apache2 -f /tmp/apache.conf -D FOREGROUND
""",
        client="http",
        words=("put", "/"),
        port=8080,
        connections=4,
    ),
    Program(
        name="lighttpd",
        note="C, one process, files written by PUT",
        packages=("lighttpd", "lighttpd-mod-webdav"),
        script="""
mkdir /tmp/www /tmp/up
cat > /tmp/lighttpd.conf <<'END'
server.modules = ("mod_webdav")
server.document-root = "/tmp/www"
server.upload-dirs = ("/tmp/up")
server.port = 8080
server.max-keep-alive-requests = 1000000
webdav.activate = "enable"
END
exec lighttpd -D -f /tmp/lighttpd.conf
""",
        client="http",
        words=("put", "/"),
        port=8080,
        connections=2,
    ),
    Program(
        name="haproxy",
        note="C, a master and a worker with threads, counts requests in a table",
        packages=("haproxy",),
        script="""
cat > /tmp/haproxy.cfg <<'END'
global
  nbthread 2
defaults
  mode http
  timeout client 600s
  timeout connect 5s
  timeout server 600s
  timeout http-keep-alive 600s
frontend web
  bind 0.0.0.0:8080
  stick-table type integer size 10 expire 1h store http_req_cnt
  http-request track-sc0 int(1)
  http-request return status 200 content-type text/plain lf-string "%[sc0_http_req_cnt]"
END
exec haproxy -W -db -f /tmp/haproxy.cfg
""",
        client="http",
        words=("counted", "/"),
        port=8080,
        connections=3,
    ),
    Program(
        name="busybox-httpd",
        note="C, forks for each connection",
        packages=("busybox",),
        script="mkdir /tmp/www; printf hello > /tmp/www/index.html; exec busybox httpd -f -p 8080 -h /tmp/www",
        client="web",
        words=("/index.html", "hello"),
        port=8080,
    ),
    Program(
        name="caddy",
        note="Go, its own counter of requests",
        packages=("caddy",),
        script="""
printf '{\\n admin off\\n auto_https off\\n servers {\\n  metrics\\n }\\n}\\n:8080 {\\n metrics /metrics\\n}\\n' > /tmp/Caddyfile
exec caddy run --config /tmp/Caddyfile --adapter caddyfile
""",
        client="http",
        words=("counted", "/metrics", r'caddy_http_requests_total\{handler="metrics"[^}]*\} (\d+)'),
        port=8080,
    ),
)
