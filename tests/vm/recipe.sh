#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Inside the new root file system of a guest: the second kernel, and the few files that make it a machine of our tests.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

echo "deb $1 bookworm-backports main" > /etc/apt/sources.list.d/backports.list
apt-get update -q
apt-get install -q -y --no-install-recommends -t bookworm-backports linux-image-cloud-amd64
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb

mkdir -p /opt/insula /usr/local/lib/insula/criu
printf '/opt/insula/src\n/opt/insula/packages\n' > /usr/lib/python3/dist-packages/insula.pth
printf '#!/usr/bin/python3\nimport sys\n\nfrom insula.cli.main import main\n\nsys.exit(main())\n' > /usr/local/bin/insula
chmod 755 /usr/local/bin/insula

# The first program of the guest: everything else of it comes on a disk that is made anew for each run.
cat > /sbin/guest-init <<'END'
#!/bin/sh
mount -t ext4 -o ro /dev/vdb /opt/insula
exec /bin/sh /opt/insula/tests/vm/init.sh
END
chmod 755 /sbin/guest-init

# PostgreSQL as the containers run it: clients of the tests' own network need no password.
cd /etc/postgresql/15/main
echo 'host all all 0.0.0.0/0 trust' > pg_hba.conf
echo 'local all all trust' >> pg_hba.conf
cat >> postgresql.conf <<'END'
listen_addresses = '*'
ssl = off
jit = off
shared_buffers = 32MB
autovacuum_naptime = 1h
END
