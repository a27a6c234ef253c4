#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Inside the new root file system of a guest: the other kernels, what boots each, and the few files that make it a machine
# of our tests.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
export INITRD=No  # what initramfs-tools makes looks for all hardware, which takes an emulated processor ten seconds

echo "deb $1 bookworm-backports main" > /etc/apt/sources.list.d/backports.list
apt-get update -q
apt-get install -q -y --no-install-recommends -t bookworm-backports linux-image-cloud-amd64
# Kernels of elsewhere, as files: what their packages do when they are installed is for another system.
for package in /kernels/*.deb; do
    test ! -e "$package" || dpkg-deb -x "$package" /kernels/files
done
if test -d /kernels/files; then
    cp -a /kernels/files/boot/. /boot/
    cp -a /kernels/files/lib/. /usr/lib/
fi
for modules in /lib/modules/*; do
    depmod "${modules##*/}"
done
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb

# The initrd: a shell that loads the disk's driver (ext4 is in the kernels), mounts the disk and goes there.
make_initrd() {
    release=$1 tree=$(mktemp -d)
    mkdir "$tree/bin" "$tree/dev" "$tree/modules" "$tree/root"
    cp /usr/bin/busybox "$tree/bin/busybox"
    number=100
    for driver in virtio_pci virtio_blk; do
        modprobe -S "$release" --show-depends "$driver"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r module; do
        number=$((number + 1))
        case "$module" in
            *.xz) busybox xzcat "$module" ;;
            *) cat "$module" ;;
        esac > "$tree/modules/$number.ko"
    done
    cat > "$tree/init" <<'END'
#!/bin/busybox sh
for module in /modules/*.ko; do /bin/busybox insmod "$module"; done
/bin/busybox mount -t devtmpfs dev /dev
until /bin/busybox mount -t ext4 /dev/vda /root; do /bin/busybox sleep 0.1; done
/bin/busybox mount -o move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/guest-init
END
    chmod 755 "$tree/init"
    (cd "$tree" && find . | busybox cpio -o -H newc | gzip -1) > "/boot/initrd.img-$release"
    rm -r "$tree"
}
for kernel in /boot/vmlinuz-*; do
    make_initrd "${kernel#/boot/vmlinuz-}"
done

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

# PostgreSQL as the containers run it: one small cluster, whose clients of the tests' own network need no password.
pg_dropcluster 15 main
pg_createcluster --locale C.UTF-8 15 main -- --wal-segsize=1 > /dev/null
cd /etc/postgresql/15/main
echo 'host all all 0.0.0.0/0 trust' > pg_hba.conf
echo 'local all all trust' >> pg_hba.conf
cat >> postgresql.conf <<'END'
listen_addresses = '*'
ssl = off
jit = off
shared_buffers = 16MB
min_wal_size = 2MB
max_wal_size = 64MB
autovacuum_naptime = 1h
END
