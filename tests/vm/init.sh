#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The guest's init: pseudo file systems, pure cgroup v2, network; then the agent, which does what the test says.
# Name and number of the guest stand on the kernel's command line: vm_name=alpha vm_number=1.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8

mounted() { mountpoint -q "$1" || { mkdir -p "$1"; return 1; }; }
mounted /proc || mount -t proc proc /proc
mounted /sys || mount -t sysfs sysfs /sys
mounted /dev || mount -t devtmpfs devtmpfs /dev
mounted /run || mount -t tmpfs -o mode=755 run /run
mounted /dev/pts || mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mounted /dev/shm || mount -t tmpfs -o mode=1777 shm /dev/shm
mounted /tmp || mount -t tmpfs -o mode=1777 tmp /tmp
mounted /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
mounted /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
# As systemd has it on every Debian: mounts go on into namespaces.
mount --make-rshared /
mount --bind /opt/insula/criu /usr/local/lib/insula/criu
modprobe virtio_net

for word in $(cat /proc/cmdline); do
    case "$word" in
        vm_name=*) name="${word#*=}" ;;
        vm_number=*) number="${word#*=}" ;;
    esac
done
hostname "$name"
echo "127.0.0.1 localhost $name" > /etc/hosts
ip link set lo up
ip address add "10.88.0.$number/24" dev eth0
ip link set eth0 up
ip link set eth1 name lan1
ip link set lan1 up
echo "guest: $name is up after $(cut -d' ' -f1 /proc/uptime) s, Linux $(uname -r)"
exec /usr/bin/tini-static -s -- /usr/bin/python3 -I /opt/insula/tests/vm/agent.py
