# SPDX-License-Identifier: Apache-2.0
"""Options of run → the JSON that is sent, literally; docker's grammar."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from insula.cli import specification
from insula.cli.commands import exec as exec_command
from insula.cli.commands import run
from insula.cli.parser import Parser, UsageError
from insula.model.errors import InvalidSpec
from insula.model.spec import ExecSpec, Spec


def body(*words: str) -> Any:
    parser = Parser(prog="insula run")
    run.arguments(parser)
    return specification.build(parser.parse_args(list(words)))


GOLDEN = [
    (["host"], {"image": "host"}),
    (["host", "ls", "-l", "--name", "x"], {"image": "host", "command": ["ls", "-l", "--name", "x"]}),
    (
        ["--rm", "-i", "host", "git", "log", "--", "-v"],
        {"image": "host", "command": ["git", "log", "--", "-v"], "auto_remove": True, "stdin_open": True},
    ),
    (["--storage-opt", "size=1g", "host"], {"image": "host", "disk_bytes": 1073741824}),
    (["--entrypoint", "", "host"], {"image": "host", "entrypoint": []}),
    (
        ["--entrypoint=/bin/sh", "host", "-c", "x"],
        {"image": "host", "entrypoint": ["/bin/sh"], "command": ["-c", "x"]},
    ),
    (
        ["-eA=1", "-e", "B=", "-e", "OWN", "-e", "UNSET", "host"],
        {"image": "host", "environment": ["A=1", "B=", "OWN=mine"]},
    ),
    (
        ["-p", "8080:80/tcp", "host"],
        {
            "image": "host",
            "ports": [
                {
                    "host_address": "0.0.0.0",
                    "host_port": 8080,
                    "container_port": 80,
                    "count": 1,
                    "protocol": "tcp",
                }
            ],
        },
    ),
    (
        ["-p127.0.0.1:9000-9009:90-99/udp", "host"],
        {
            "image": "host",
            "ports": [
                {
                    "host_address": "127.0.0.1",
                    "host_port": 9000,
                    "container_port": 90,
                    "count": 10,
                    "protocol": "udp",
                }
            ],
        },
    ),
    (
        ["-v", "data:/d:ro", "--mount", "type=bind,src=/a,dst=/b", "--tmpfs", "/t:size=1m,ro", "host"],
        {
            "image": "host",
            "mounts": [
                {"kind": "volume", "source": "data", "target": "/d", "read_only": True},
                {"kind": "bind", "source": "/a", "target": "/b"},
                {"kind": "tmpfs", "target": "/t", "size_bytes": 1048576, "read_only": True},
            ],
        },
    ),
    (
        [
            "-m",
            "512m",
            "--cpus",
            "1.5",
            "--pids",
            "64",
            "--disk",
            "1g",
            "--inodes",
            "5000",
            "--ulimit",
            "nofile=1024:2048",
            "--stop-timeout",
            "0",
            "host",
        ],
        {
            "image": "host",
            "memory_bytes": 536870912,
            "cpus_milli": 1500,
            "pids": 64,
            "disk_bytes": 1073741824,
            "inodes": 5000,
            "rlimits": {"nofile": 1024},
            "stop_timeout_s": 0,
        },
    ),
    (
        [
            "--name=w",
            "-w/srv",
            "-u",
            "www",
            "--hostname",
            "h",
            "--init",
            "--network",
            "n",
            "--ip",
            "10.0.0.9",
            "host",
        ],
        {
            "image": "host",
            "name": "w",
            "working_directory": "/srv",
            "user": "www",
            "hostname": "h",
            "system": True,
            "network": "n",
            "address": "10.0.0.9",
        },
    ),
    (
        [
            "--restart",
            "on-failure:3",
            "-l",
            "a=b",
            "--read-only",
            "--cap-drop",
            "ALL",
            "--cap-add=NET_RAW",
            "host",
        ],
        {
            "image": "host",
            "restart": {"kind": "on-failure", "max_retries": 3},
            "labels": {"a": "b"},
            "read_only": True,
            "capabilities_add": ["NET_RAW"],
            "capabilities_drop": ["ALL"],
        },
    ),
    (
        ["-it", "host", "sh"],
        {"image": "host", "command": ["sh"], "environment": ["TERM=vt100"], "tty": True, "stdin_open": True},
    ),
]


@pytest.mark.parametrize(("words", "expected"), GOLDEN, ids=[" ".join(words) for words, _ in GOLDEN])
def test_options_become_a_spec_that_the_daemon_accepts(
    words: list[str], expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWN", "mine")
    monkeypatch.setenv("TERM", "vt100")
    monkeypatch.delenv("UNSET", raising=False)
    assert body(*words) == expected
    msgspec.convert(expected, Spec, strict=True)


def test_a_relative_folder_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert body("-v", "./a:/b", "host")["mounts"][0]["source"] == f"{tmp_path}/a"


def test_environment_files_are_read_before_words(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("# comment\n\nA=1\n  B=x y\n")
    assert specification.environment(["A=2"], [str(path)], tty=False) == ["A=2", "B=x y"]
    with pytest.raises(UsageError, match="no such file"):
        specification.environment([], [f"{path}.none"], tty=False)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["-m", "lots", "host"], "cannot read size `lots`"),
        (["-p", "99999", "host"], "not within"),
        (["--pids", "many", "host"], "not a whole number"),
        (["--tmpfs", "/t:huge", "host"], "unknown option `huge`"),
        (["-e", "=x", "host"], "no name"),
    ],
)
def test_wrong_values_are_named(words: list[str], reason: str) -> None:
    with pytest.raises(InvalidSpec, match=reason):
        body(*words)


@pytest.mark.parametrize(
    ("words", "reason"), [([], "IMAGE$"), (["--memo", "1m", "host"], "--memo"), (["--bad", "host"], "--bad")]
)
def test_a_wrong_command_line_is_a_usage_error(words: list[str], reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        body(*words)
    assert reason.rstrip("$") in caught.value.message
    assert caught.value.hint == "see `insula run --help`"


def test_exec_becomes_an_exec_spec() -> None:
    parser = Parser(prog="insula exec")
    exec_command.arguments(parser)
    made = exec_command.body(parser.parse_args(["-d", "-u", "0", "-eA=1", "web", "sh", "-c", "id -u"]))
    assert made == {"command": ["sh", "-c", "id -u"], "environment": ["A=1"], "user": "0", "detach": True}
    msgspec.convert(made, ExecSpec, strict=True)
