# SPDX-License-Identifier: Apache-2.0
"""`insula completion bash|zsh|fish`: the shell's script; what it completes is asked of `insula __complete`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "print the shell's completion script: bash, zsh, fish"

BASH = """\
# bash completion of insula.  Use: source <(insula completion bash)
_insula() {
    local IFS=$'\\n'
    COMPREPLY=($(insula __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _insula insula
"""
ZSH = """\
#compdef insula
# zsh completion of insula.  Use: source <(insula completion zsh)
_insula() {
    local -a found
    found=("${(@f)$(insula __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    found=(${found:#})
    if (( ${#found} )); then compadd -- $found; else _files; fi
}
if (( $+functions[compdef] )); then compdef _insula insula; fi
"""
FISH = """\
# fish completion of insula.  Use: insula completion fish | source
function __insula_complete
    set -l words (commandline -opc) (commandline -ct)
    insula __complete -- $words[2..-1] 2>/dev/null
end
complete -c insula -a '(__insula_complete)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "shell",
        choices=tuple(SCRIPTS),
        metavar="SHELL",
        help="bash, zsh or fish, for example: source <(insula completion bash)",
    )


def run(options: Namespace, client: Client) -> int:
    print(SCRIPTS[options.shell], end="")
    return 0
