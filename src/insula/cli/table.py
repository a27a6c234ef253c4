# SPDX-License-Identifier: Apache-2.0
"""All commands with one line of help each, so that `insula --help` imports none of them.

A command `NAME` is the module `cli/commands/NAME.py` with HELP (the same line), `arguments(parser)` and
`run(options, client) -> exit code`; one in RAW has `run(arguments: list[str]) -> exit code` and parses for itself.
"""

GROUPS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Containers",
        (
            ("run", "create and start a container, and stay attached to it"),
            ("create", "create a container without starting it"),
            ("start", "start stopped containers"),
            ("stop", "ask containers to end, kill them when the time is over"),
            ("restart", "stop and start containers"),
            ("kill", "send a signal to containers"),
            ("pause", "freeze all processes of containers"),
            ("unpause", "let frozen containers go on"),
            ("rm", "remove containers"),
            ("rename", "give a container another name"),
            ("wait", "wait until containers end, print their exit codes"),
        ),
    ),
    (
        "Look and enter",
        (
            ("ps", "list containers"),
            ("logs", "print what a container wrote"),
            ("attach", "stand at a running container's terminal or pipes"),
            ("exec", "run another program in a running container"),
            ("cp", "copy files into or out of a container"),
            ("diff", "list the files that a container changed"),
            ("inspect", "print all that is known of containers, images and so on, as JSON"),
            ("stats", "show CPU, memory, pressure and traffic of containers"),
            ("top", "watch all containers, live, or list the processes of one"),
            ("events", "show what happens to containers, from now on"),
            ("trace", "show what a container asks of the kernel, as it happens"),
            ("rule", "which events are an alarm, and what follows: ls, check, reload"),
            ("export", "where events and traces go unasked: ls, check, reload"),
            ("profile", "record what a container uses, and hold it to that"),
        ),
    ),
    (
        "Carry",
        (
            ("checkpoint", "save a running container's state: create, ls, rm"),
            ("restore", "let a container go on from a checkpoint"),
            ("migrate", "carry a running container to another host"),
            ("drain", "move all running containers to the paired hosts"),
            ("undrain", "bring back what `insula drain` moved away"),
        ),
    ),
    (
        "What containers need",
        (
            ("image", "images: ls, import, build, rm, inspect"),
            ("network", "networks: ls, create, rm, inspect"),
            ("volume", "volumes: ls, create, rm, inspect"),
        ),
    ),
    (
        "People",
        (
            ("user", "who may give commands: ls, add, set, rm"),
            ("token", "tokens by which programs give commands for you: ls, create, rm"),
            ("whoami", "tell who you are here, and what you may do"),
            ("policy", "what users may ask for: show, check, reload"),
        ),
    ),
    (
        "Hosts",
        (
            ("host", "this host and those paired with it: ls, info, add, rm, token"),
            ("tenant", "who shares this host and may use what: ls, show, create, set, rm"),
            ("audit", "who did what, and how it ended: ls, verify"),
            ("operation", "long operations: ls, cancel"),
            ("doctor", "tell what this machine can do, what is missing, and the cure"),
            ("setup", "make this machine ready for checkpoints and migrations"),
            ("daemon", "run insulad, the daemon of this host"),
            ("version", "print the versions of insula, insulad and the kernel"),
            ("completion", "print the shell's completion script: bash, zsh, fish"),
        ),
    ),
)

RAW = frozenset({"daemon", "doctor", "setup"})
HIDDEN = frozenset({"__complete"})
#: Words that people coming from docker type.
ALIASES: dict[str, tuple[str, ...]] = {
    "images": ("image", "ls"),
    "rmi": ("image", "rm"),
    "info": ("host", "info"),
    "ls": ("ps",),
    "list": ("ps",),
}
#: Second words that they type: `insula image list`.
VERB_ALIASES = {"list": "ls", "remove": "rm", "delete": "rm"}
NOUNS = frozenset(
    "audit checkpoint export host image network operation policy profile rule tenant token user volume".split()
)
_NO_REGISTRY = "there are no registries: `insula image import` takes a tar, as of `docker export`"
#: What they look for and what there is in its place.
FOREIGN: dict[str, str] = {
    "build": "`insula image build` makes an image of Debian packages, `insula image import` of a tar",
    "commit": "`insula diff` shows what changed, `insula cp CONTAINER:/ -` prints it as a tar",
    "console": "`insula attach`, or one more shell: `insula exec -it CONTAINER sh`",
    "container": "its verbs are commands of their own, as `insula ps` and `insula run`",
    "delete": "`insula rm`",
    "history": "`insula image inspect` shows the layers",
    "import": "`insula image import`",
    "launch": "`insula run -d --init IMAGE /sbin/init` starts a system container",
    "load": "`insula image import` takes the tar of a root file system",
    "login": _NO_REGISTRY,
    "move": "`insula migrate CONTAINER HOST`",
    "port": "`insula ps` shows published ports",
    "prune": "`insula rm`, `insula image rm` and `insula volume rm` remove what they are told",
    "pull": _NO_REGISTRY,
    "push": _NO_REGISTRY,
    "remove": "`insula rm`",
    "save": "`insula cp CONTAINER:/ -` prints a container's files as a tar",
    "search": "`insula image ls` lists what there is",
    "shell": "`insula exec -it CONTAINER sh`",
    "snapshot": "`insula checkpoint create`",
    "system": "`insula info` tells of this host, `insula tenant show` what is used",
    "update": "limits are given to `insula run`; those of a tenant: `insula tenant set`",
}
FOREIGN_OPTIONS: dict[str, str] = {
    "--add-host": "containers of a network find each other by name",
    "--dns": "names are asked of this host, which asks its own servers",
    "--gpus": "name the nodes: --device /dev/dri/card0",
    "--platform": "a container's programs are of this host's processor",
    "--privileged": "nobody gets that; `--cap-add` gives what counts inside, `--init` a whole system",
    "--publish-all": "`-p PORT` publishes one on a port that is picked",
    "-P": "`-p PORT` publishes one on a port that is picked",
    "--pull": _NO_REGISTRY,
    "--security-opt": "`insula profile` holds a container to what it uses",
}
SUMMARIES: dict[str, str] = {name: line for _, commands in GROUPS for name, line in commands}

#: docker's: 125 is insula's own failure, everything else is the program's.
OWN_FAILURE = 125
RUNS_PROGRAMS = frozenset({"run", "create", "exec"})
EXIT_CODES = {"command_not_executable": 126, "command_not_found": 127}


def exit_code(command: str, code: str) -> int:
    """Return the exit code for an error with that code."""
    return EXIT_CODES.get(code, OWN_FAILURE) if command in RUNS_PROGRAMS else 1
