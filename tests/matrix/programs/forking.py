# SPDX-License-Identifier: Apache-2.0
"""Programs that make and end processes and threads all the time."""

from tests.matrix.program import Program

_COUNT = """
printf 'n=0; while read -r word; do n=$((n+1)); echo $n; done\n' > /tmp/count
"""

PROGRAMS = (
    Program(
        name="fork-storm",
        note="a shell that starts and awaits processes without a pause, a counter beside it",
        packages=("socat",),
        script=_COUNT
        + """
echo 'while :; do /bin/true; /bin/true & wait; done' > /tmp/storm
sh /tmp/storm &
exec socat TCP-LISTEN:7000,reuseaddr,fork 'EXEC:sh /tmp/count'
""",
        client="lines",
    ),
    Program(
        name="stress-ng",
        note="C: memory mapped and unmapped, threads made and ended, pipes, a counter beside it",
        packages=("stress-ng", "socat"),
        script=_COUNT
        + """
cd /tmp
stress-ng --quiet --vm 1 --vm-bytes 32M --pthread 1 --pthread-max 8 --pipe 1 --switch 1 &
exec socat TCP-LISTEN:7000,reuseaddr,fork 'EXEC:sh /tmp/count'
""",
        client="lines",
    ),
)
