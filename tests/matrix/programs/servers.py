# SPDX-License-Identifier: Apache-2.0
"""Other servers: ssh, ftp, mail, relays."""

from tests.matrix.program import Program

PROGRAMS = (
    Program(
        name="openssh",
        note="C, a session with a shell in it through OpenSSH's own client",
        packages=("openssh-server",),
        script="""
mkdir -p /run/sshd /root/.ssh
chmod 700 /root /root/.ssh
echo '{public_key}' > /root/.ssh/authorized_keys
printf 'n=0; while read -r word; do n=$((n+1)); echo $n; done\n' > /tmp/count
exec /usr/sbin/sshd -D -e -p 2222 -o UsePAM=no -o PermitRootLogin=yes
""",
        client="ssh",
        words=("{key}", "sh /tmp/count"),
        port=2222,
    ),
    Program(
        name="vsftpd",
        note="C, two processes per session, folders made",
        packages=("vsftpd",),
        script="""
mkdir -p /tmp/ftp/in /tmp/empty; chown ftp /tmp/ftp/in
cat > /tmp/vsftpd.conf <<'END'
listen=YES
background=NO
anonymous_enable=YES
write_enable=YES
anon_upload_enable=YES
anon_mkdir_write_enable=YES
anon_root=/tmp/ftp
secure_chroot_dir=/tmp/empty
seccomp_sandbox=NO
pasv_enable=YES
xferlog_enable=NO
END
exec vsftpd /tmp/vsftpd.conf
""",
        client="ftp",
        words=("in",),
        port=21,
    ),
    Program(
        name="opensmtpd",
        note="C, 7 processes that share a queue, mail delivered to a mailbox",
        packages=("opensmtpd",),
        script="""
echo 'nameserver 127.0.0.1' > /etc/resolv.conf
mkdir -p /var/spool/smtpd; chmod 711 /var/spool/smtpd
printf 'smtp limit max-mails 1000000\nlisten on 0.0.0.0 port 2525\naction "local" mbox\nmatch from any for any action "local"\n' > /tmp/smtpd.conf
exec smtpd -d -f /tmp/smtpd.conf
""",
        client="smtp",
        port=2525,
    ),
    Program(
        name="socat",
        note="C, a relay to a second one, two processes in a pipe",
        packages=("socat",),
        script="""
printf 'n=0; while read -r word; do n=$((n+1)); echo $n; done\n' > /tmp/count
socat TCP-LISTEN:7001,reuseaddr,fork 'EXEC:sh /tmp/count' &
exec socat TCP-LISTEN:7000,reuseaddr,fork TCP:127.0.0.1:7001,retry=50,interval=0.1
""",
        client="lines",
        connections=2,
    ),
)
