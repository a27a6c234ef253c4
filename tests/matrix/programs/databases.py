# SPDX-License-Identifier: Apache-2.0
"""Databases and caches."""

from tests.matrix.program import Program

_SQLITE = """
sqlite3 /tmp/db 'PRAGMA journal_mode=MODE; CREATE TABLE numbers (n integer PRIMARY KEY)'
exec socat TCP-LISTEN:7000,reuseaddr,fork 'EXEC:sqlite3 -batch /tmp/db'
"""
_INSERT = ("INSERT INTO numbers VALUES ({n}); SELECT max(n) FROM numbers;", r"(\d+)", "numbered")

_MARIADB = """
mkdir -p /run/mysqld /var/log/mysql
chown mysql /run/mysqld /var/log/mysql
cat > /tmp/init.sql <<'END'
CREATE DATABASE IF NOT EXISTS test;
CREATE USER 'client'@'%' IDENTIFIED VIA mysql_native_password USING '';
GRANT ALL ON test.* TO 'client'@'%';
END
options='--user=mysql --bind-address=0.0.0.0 --init-file=/tmp/init.sql --skip-name-resolve'
"""

PROGRAMS = (
    Program(
        name="redis",
        note="C, one thread for commands",
        packages=("redis-server",),
        script="exec redis-server --port 6379 --bind 0.0.0.0 --protected-mode no --dir /tmp --appendonly yes",
        client="redis",
        port=6379,
    ),
    Program(
        name="memcached",
        note="C, 4 worker threads",
        packages=("memcached",),
        script="exec memcached -u nobody -t 4 -l 0.0.0.0",
        client="memcached",
        port=11211,
    ),
    Program(
        name="postgresql",
        note="C, a process per connection, shared memory",
        packages=("postgresql-15",),
        script="""
mkdir -p /var/run/postgresql /var/log/postgresql /tmp/pg
chown postgres /var/run/postgresql /var/log/postgresql /tmp/pg
cd /tmp/pg
bin=/usr/lib/postgresql/15/bin
as='setpriv --reuid=postgres --regid=postgres --clear-groups'
$as $bin/initdb -D /tmp/pg/data --auth=trust --no-sync > /dev/null
echo 'host all all 0.0.0.0/0 trust' >> /tmp/pg/data/pg_hba.conf
exec $as $bin/postgres -D /tmp/pg/data -c listen_addresses='*'
""",
        client="postgres",
        port=5432,
        connections=3,
    ),
    Program(
        name="mariadb",
        note="C++, a thread per connection, asynchronous I/O; address space reserved for 1 GiB",
        packages=("mariadb-server",),
        script=_MARIADB + "exec mariadbd $options --innodb-buffer-pool-size-max=1G",
        client="mariadb",
        words=("client",),
        port=3306,
        connections=3,
    ),
    Program(
        name="mariadb-8tib",
        note="the same as it comes: it reserves 8 TiB of address space",
        packages=("mariadb-server",),
        script=_MARIADB + "exec mariadbd $options",
        client="mariadb",
        words=("client",),
        port=3306,
        connections=3,
    ),
    Program(
        name="sqlite3",
        note="C, a shell on a database file with a write-ahead log, socat before it",
        packages=("sqlite3", "socat"),
        script=_SQLITE.replace("MODE", "wal"),
        client="lines",
        words=_INSERT,
    ),
    Program(
        name="sqlite3-rollback",
        note="the same with a rollback journal",
        packages=("sqlite3", "socat"),
        script=_SQLITE.replace("MODE", "delete"),
        client="lines",
        words=_INSERT,
        limit="in this mode SQLite compares the inode number of its file with the one that it saw when it opened it, and a copied"
        " file has another: it calls the database read-only until it is opened again; no file system gives a copy the inode"
        " number of its original: use PRAGMA journal_mode=WAL (as above)",
    ),
    Program(
        name="tarantool",
        note="C and LuaJIT, coroutines, a write-ahead log",
        packages=("tarantool",),
        script="""
mkdir /tmp/t
cat > /tmp/t/init.lua <<'END'
box.cfg{work_dir = '/tmp/t', log_level = 1}
box.schema.space.create('numbers'):create_index('primary')
require('console').listen('0.0.0.0:7000')
END
exec tarantool /tmp/t/init.lua
""",
        client="lines",
        words=("return box.space.numbers:insert({{n}})[1]", r"- (\d+)", "numbered"),
    ),
    Program(
        name="etcd",
        note="Go, many threads, synchronous log",
        packages=("etcd-server",),
        script="""
exec etcd --data-dir /tmp/etcd --listen-client-urls http://0.0.0.0:2379 --advertise-client-urls http://{address}:2379 \
--log-level error
""",
        client="http",
        words=("etcd",),
        port=2379,
        connections=2,
    ),
)
