# SPDX-License-Identifier: Apache-2.0
"""Message brokers and job queues."""

from tests.matrix.program import Program

PROGRAMS = (
    Program(
        name="mosquitto",
        note="C, MQTT",
        packages=("mosquitto",),
        script="""
printf 'listener 1883 0.0.0.0\\nallow_anonymous true\\nuser nobody\\n' > /tmp/mosquitto.conf
exec mosquitto -c /tmp/mosquitto.conf
""",
        client="mqtt",
        port=1883,
    ),
    Program(
        name="rabbitmq",
        note="Erlang, its virtual machine's threads and helper processes, MQTT",
        packages=("rabbitmq-server",),
        script="""
mkdir -p /var/log/rabbitmq /tmp/rabbit
chown rabbitmq /var/log/rabbitmq /tmp/rabbit
echo '[rabbitmq_mqtt].' > /etc/rabbitmq/enabled_plugins
printf 'loopback_users = none\\nmqtt.allow_anonymous = true\\n' > /etc/rabbitmq/rabbitmq.conf
chown -R rabbitmq /etc/rabbitmq
export RABBITMQ_NODENAME=rabbit@localhost RABBITMQ_MNESIA_BASE=/tmp/rabbit HOME=/var/lib/rabbitmq
unset PYTHONPATH
exec setpriv --reuid=rabbitmq --regid=rabbitmq --clear-groups /usr/lib/rabbitmq/bin/rabbitmq-server
""",
        client="mqtt",
        port=1883,
        ready_s=60.0,
    ),
    Program(
        name="beanstalkd",
        note="C, a job queue with a log",
        packages=("beanstalkd",),
        script="mkdir /tmp/log; exec beanstalkd -l 0.0.0.0 -p 11300 -b /tmp/log -f 0",
        client="beanstalk",
        port=11300,
    ),
    Program(
        name="nats",
        note="Go, publish and subscribe",
        packages=("nats-server",),
        script="exec nats-server -a 0.0.0.0 -p 4222",
        client="nats",
        port=4222,
    ),
    Program(
        name="gearmand",
        note="C++, threads",
        packages=("gearman-job-server",),
        script="exec gearmand -L 0.0.0.0 -p 4730 -l stderr --threads=4 -u nobody",
        client="gearman",
        port=4730,
    ),
    Program(
        name="ngircd",
        note="C, chat",
        packages=("ngircd",),
        script="""
printf '[Global]\\nName = irc.test\\nInfo = test\\nListen = 0.0.0.0\\nServerUID = nobody\\nServerGID = nogroup\\n\
[Limits]\\nMaxPenaltyTime = 0\\nPingTimeout = 3600\\n[Options]\\nDNS = no\\nIdent = no\\nPAM = no\\n' > /tmp/ngircd.conf
exec ngircd -n -f /tmp/ngircd.conf
""",
        client="irc",
        port=6667,
    ),
)
