# SPDX-License-Identifier: Apache-2.0
"""The command as a process: what it imports, its errors and exit codes; the table of commands; completion."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "client"))
from daemon_double import Double, serve

from insula.cli import main, table
from insula.cli.commands import complete, completion
from insula.cli.parser import Parser
from insula.client.http import Client
from waiting import DEADLINE_S

SOURCE = Path(__file__).parents[3] / "src"
FORBIDDEN = "msgspec rich aiohttp asyncio dataclasses ssl logging subprocess typing http urllib inspect socket tarfile".split()
MAX_MODULES = 75


def insula(double: Double | None, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    host = ["-H", double.host] if double else ["-H", "/nonexistent/api.sock"]
    return subprocess.run(
        [sys.executable, "-m", "insula.cli", *host, *words],
        env={"PYTHONPATH": str(SOURCE), "PATH": "/usr/bin", "COLUMNS": "80", **more},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_ps_imports_next_to_nothing(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from insula.cli.main import main\n"
        "code = main(['-H', sys.argv[2], 'ps']); print(code, *sys.modules)"
    )
    with serve(tmp_path / "s") as double:
        double.answers["GET /v1/containers"] = (200, {}, [])
        command = [sys.executable, "-I", "-S", "-c", script, str(SOURCE), double.host]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    code, *modules = done.stdout.splitlines()[-1].split()
    assert code == "0"
    assert not set(FORBIDDEN) & set(modules)
    assert len(modules) <= MAX_MODULES, sorted(modules)


@pytest.mark.parametrize("name", sorted(set(table.SUMMARIES) - {"doctor", "setup"}))
def test_the_table_says_what_the_modules_say(name: str) -> None:
    module = main.load(name)
    assert table.SUMMARIES[name] == module.HELP
    if name not in table.RAW:
        module.arguments(Parser(prog=f"insula {name}"))


def test_every_command_module_is_in_the_table() -> None:
    folder = Path(str(importlib.import_module("insula.cli.commands").__path__[0]))
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "complete"}
    assert modules <= set(table.SUMMARIES)


def test_help_fits_100_columns_and_names_every_command() -> None:
    lines = main.help_text().splitlines()
    assert max(map(len, lines)) <= 100
    for name in table.SUMMARIES:
        assert any(line.startswith(f"  {name} ") for line in lines)


@pytest.mark.parametrize("name", sorted(set(table.SUMMARIES) - table.RAW))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: insula {name}")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["ps", "--bad"], 125, "cannot understand `insula ps`: unrecognized arguments: --bad"),
        (["rnu"], 125, "cannot run `rnu`: no such command"),
        (["run"], 125, "cannot understand `insula run`: the following arguments are required: IMAGE"),
        (["ps"], 1, "cannot reach insulad at `/nonexistent/api.sock`"),
        (["run", "host"], 125, "cannot reach insulad"),
        (["exec", "web"], 125, "cannot exec in `web`: no command"),
        (["--nope"], 125, "cannot use `--nope`: not a global option"),
        (["--tenant"], 125, "cannot use `--tenant`: its value is missing"),
        (["container"], 125, "cannot run `container`: no such command"),
        (["container", "nope"], 125, "cannot run `nope`: no such command"),
        (
            ["events", "-n", "0"],
            125,
            "cannot understand `insula events`: argument -n/--count: `0` is no number",
        ),
        (
            ["drain", "--parallel", "0"],
            125,
            "cannot understand `insula drain`: argument --parallel: `0` is no",
        ),
        (
            ["completion"],
            125,
            "cannot understand `insula completion`: the following arguments are required: SHELL",
        ),
        (
            ["restore", "--key-file", "/none", "c"],
            1,
            "cannot read key file `/none`: no such file or directory",
        ),
        (["token", "create", "-s", "read,foo"], 125, "cannot use scope `foo`: no such action"),
        (["token", "create", "-e", "400d"], 125, "cannot use --expires `400d`: more than 366 days"),
        (
            ["user", "set", "x", "--role", "foo"],
            125,
            "cannot understand `insula user set`: argument --role: invalid choice: 'foo' (choose from 'viewer',",
        ),
        (["cp", "a", "b"], 125, "cannot copy: one side must be in a container"),
        (
            ["image", "import", "/nonexistent.tar"],
            1,
            "cannot use `/nonexistent.tar`: no such file or directory",
        ),
    ],
)
def test_errors_are_two_lines_and_an_exit_code(words: list[str], code: int, message: str) -> None:
    done = insula(None, *words)
    assert done.returncode == code
    assert done.stderr.startswith(f"insula: {message}")
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("list -a", "ps -a"),
        ("container ls -a", "ps -a"),
        ("container run host list", "run host list"),
        ("image list", "image ls"),
        ("images", "image ls"),
        ("volume remove list", "volume rm list"),
        ("rm list", "rm list"),
    ],
)
def test_words_of_others_are_understood(typed: str, meant: str) -> None:
    _, command, rest = main.split(typed.split())
    assert [command, *rest] == meant.split()


def test_nouns_are_the_commands_that_have_verbs() -> None:
    def has_verbs(name: str) -> bool:
        parser = Parser(prog=name)
        main.load(name).arguments(parser)
        return any(action.dest == "verb" for action in parser._actions)

    assert {name for name in set(table.SUMMARIES) - table.RAW if has_verbs(name)} == table.NOUNS


def test_what_there_is_not_has_a_hint_to_what_there_is() -> None:
    assert not set(table.FOREIGN) & {*table.SUMMARIES, *table.ALIASES}
    done = insula(None, "pull", "nginx")
    assert (done.returncode, done.stderr.splitlines()[1]) == (125, f"  hint: {table.FOREIGN['pull']}")


@pytest.mark.parametrize("words", ["run --privileged host", "run --pull=always host", "run -d -P host true"])
def test_an_option_that_there_is_not_has_a_hint_to_what_there_is(words: str) -> None:
    done = insula(None, *words.split())
    assert done.returncode == 125
    assert done.stderr.splitlines()[1].removeprefix("  hint: ") in table.FOREIGN_OPTIONS.values()


def test_no_command_has_an_option_that_there_is_not() -> None:
    parser = Parser(prog="run")
    main.load("run").arguments(parser)
    assert not set(table.FOREIGN_OPTIONS) & {name for each in parser._actions for name in each.option_strings}


def test_one_of_several_fails_and_the_others_are_done(tmp_path: Path) -> None:
    with serve(tmp_path / "s") as double:
        double.answers["DELETE /v1/containers/b"] = (204, {}, None)
        done = insula(double, "rm", "a", "b")
    assert (done.returncode, done.stdout) == (1, "b\n")
    assert done.stderr.startswith("insula: cannot find")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_are_nobody_who_reads(tmp_path: Path, closed: str) -> None:
    with serve(tmp_path / "s") as double:
        double.answers["GET /v1/containers"] = (200, {}, [])
        command = f"exec {sys.executable} -m insula.cli -H {double.host} ps {closed}"
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            env={"PYTHONPATH": str(SOURCE)},
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_inspect_searches_all_kinds(tmp_path: Path) -> None:
    with serve(tmp_path / "s") as double:
        double.answers["GET /v1/networks/n"] = (200, {}, {"name": "n"})
        found = insula(double, "inspect", "n")
        missing = insula(double, "inspect", "x")
    assert json.loads(found.stdout) == [{"name": "n"}]
    assert (missing.returncode, missing.stdout) == (1, "[]\n")
    assert "no such container, image, network or volume" in missing.stderr


def test_logs_keep_streams_and_bytes(tmp_path: Path) -> None:
    lines = [
        {"time": 0.5, "stream": "stdout", "text": "ä\udcff"},
        {"time": 1.0, "stream": "stderr", "text": "oops"},
    ]
    with serve(tmp_path / "s") as double:
        double.answers["GET /v1/containers/web/logs"] = (200, {}, "\n".join(map(json.dumps, lines)).encode())
        command = [sys.executable, "-m", "insula.cli", "-H", double.host, "logs", "-t", "--tail", "5", "web"]
        done = subprocess.run(
            command, env={"PYTHONPATH": str(SOURCE)}, capture_output=True, check=True, timeout=DEADLINE_S
        )
    assert done.stdout == "1970-01-01T00:00:00.500000Z ä".encode() + b"\xff\n"
    assert done.stderr == b"1970-01-01T00:00:01.000000Z oops\n"


@pytest.mark.parametrize("words", [(), ("--format", "json")])
def test_diff_says_that_there_is_more(tmp_path: Path, words: tuple[str, ...]) -> None:
    changes = [{"kind": "A", "path": "/x"}, {"kind": "D", "path": "/y"}]
    with serve(tmp_path / "s") as double:
        double.answers["GET /v1/containers/web/diff"] = (200, {}, changes)
        whole = insula(double, "diff", *words, "web")
        double.answers["GET /v1/containers/web/diff"] = (200, {"X-Insula-Incomplete": "1"}, changes)
        part = insula(double, "diff", *words, "web")
    assert (whole.returncode, whole.stderr) == (0, "")
    assert (part.returncode, part.stdout) == (0, whole.stdout)
    assert part.stderr == (
        "insula: and more: only these 2 are shown; `insula exec web find / -xdev` lists all files\n"
    )


def test_migrate_shows_phases_and_the_failure(tmp_path: Path) -> None:
    def record(status: str, phase: str, **more: object) -> dict[str, object]:
        return {"id": "7", "status": status, "progress": {"phase": phase}, **more}

    result = {"target": "beta", "frozen_ms": 100, "moved_bytes": 1_000_000, "seconds": 1.0}
    good = [record("running", "freeze"), record("done", "cleanup", result=result)]
    bad = [
        record("failed", "transfer", error={"code": "target_full", "message": "cannot move", "hint": "space"})
    ]
    not_recorded = {"error": {"code": "wrong_state", "message": "it is not being recorded"}}
    with serve(tmp_path / "s") as double:
        double.answers["GET /v1/containers/web/profile"] = (409, {}, not_recorded)
        double.answers["POST /v1/containers/web/migrate"] = (202, {}, record("running", "preflight"))
        double.answers["GET /v1/operations/7/follow"] = (200, {}, "\n".join(map(json.dumps, good)).encode())
        moved = insula(double, "migrate", "web", "beta")
        double.answers["GET /v1/operations/7/follow"] = (200, {}, "\n".join(map(json.dumps, bad)).encode())
        failed = insula(double, "migrate", "web", "beta")
        double.answers["GET /v1/containers/web/profile"] = (200, {}, {})
        warned = insula(double, "migrate", "web", "beta")
    assert warned.stderr.startswith("insula: warning: the recording of `web` ends with the move")
    assert moved.stderr == "migrate web: preflight\nmigrate web: freeze\nmigrate web: cleanup\n"
    assert moved.stdout == "web: now on beta: frozen 100 ms, moved 1.0 MB, 1.0 s\n"
    assert failed.returncode == 1
    assert failed.stderr.endswith("insula: cannot move\n  hint: space\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pau"], ["pause"]),
        (["image", ""], ["build", "import", "inspect", "ls", "rm"]),
        (["image", "rm", ""], ["debian", "host"]),
        (["stop", "web", "w"], ["web", "worker"]),
        (["run", "--network", ""], ["default"]),
        (["run", "--name", "h"], []),
        (["run", "-it", "h"], ["host"]),
        (["run", "host", "-"], []),
        (["run", "--stop"], ["--stop-signal", "--stop-timeout"]),
        (["migrate", "web", ""], ["beta"]),
        (["attach", "web", ""], []),
        (["completion", ""], ["bash", "fish", "zsh"]),
        (["nothing", ""], []),
    ],
)
def test_completion_offers_what_fits(tmp_path: Path, words: list[str], expected: list[str]) -> None:
    with serve(tmp_path / "s") as double:
        double.answers["GET /v1/containers"] = (200, {}, [{"name": "web"}, {"name": "worker"}])
        double.answers["GET /v1/images"] = (200, {}, [{"names": ["host"]}, {"names": ["debian"]}])
        double.answers["GET /v1/networks"] = (200, {}, [{"name": "default"}])
        double.answers["GET /v1/hosts"] = (200, {}, [{"name": "beta"}])
        assert complete.candidates(words, Client(double.host)) == expected


def test_completion_is_silent_without_a_daemon() -> None:
    assert complete.candidates(["stop", ""], Client("/nonexistent")) == []


def test_the_bash_script_asks_the_hidden_command(tmp_path: Path) -> None:
    script = tmp_path / "insula.bash"
    script.write_text(completion.BASH)
    words = f"""
    insula() {{ "{sys.executable}" -m insula.cli "$@"; }}
    source {script}; COMP_WORDS=(insula image i); COMP_CWORD=2; _insula; echo "${{COMPREPLY[@]}}" """
    done = subprocess.run(
        ["bash", "-c", words], env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "import inspect\n"


@pytest.mark.parametrize("command", [*table.SUMMARIES, ""])
def test_help_fits_a_terminal_of_80_columns(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main.main([command, "--help"] if command else ["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert [line for line in lines if len(line) > 80] == []
