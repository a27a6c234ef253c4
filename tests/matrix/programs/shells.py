# SPDX-License-Identifier: Apache-2.0
"""Shells, with and without a terminal."""

from tests.matrix.program import Program

PROGRAMS = (
    Program(
        name="tmux-bash",
        note="a bash in a window of tmux (pseudo-terminals, a server in the background) counts on its terminal and for the client",
        packages=("tmux", "socat"),
        script="""
cat > /tmp/window <<'END'
coproc socat TCP-LISTEN:7000,reuseaddr STDIO
n=0
while read -r word <&${COPROC[0]}; do n=$((n+1)); echo "counted $n"; echo $n >&${COPROC[1]}; done
END
export TERM=screen LC_ALL=C.UTF-8
tmux new-session -d -x 80 -y 24 'bash /tmp/window'
tmux new-window 'top'
exec tail -f /dev/null
""",
        client="lines",
    ),
    Program(
        name="bash",
        note="forks a process for each answer",
        packages=("socat",),
        script="""
echo 'n=0; while read -r word; do n=$(expr $n + 1); echo $n; done' > /tmp/count
exec socat TCP-LISTEN:7000,reuseaddr,fork 'EXEC:bash /tmp/count'
""",
        client="lines",
        connections=2,
    ),
    Program(
        name="zsh",
        note="its own TCP module",
        packages=("zsh",),
        script="""
cat > /tmp/s <<'END'
zmodload zsh/net/tcp
ztcp -l 7000; l=$REPLY
while ztcp -a $l; do c=$REPLY; n=0; while read -r word <&$c; do n=$((n+1)); print $n >&$c; done; ztcp -c $c; done
END
exec zsh /tmp/s
""",
        client="lines",
    ),
    Program(
        name="fish",
        note="a shell's script, socat before it",
        packages=("fish", "socat"),
        script="""
printf 'set n 0\nwhile read word\n set n (math $n + 1)\n echo $n\nend\n' > /tmp/count
exec socat TCP-LISTEN:7000,reuseaddr,fork 'EXEC:fish /tmp/count'
""",
        client="lines",
    ),
)
