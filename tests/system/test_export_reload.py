# SPDX-License-Identifier: Apache-2.0
"""The list of exports read anew while containers run: at SIGHUP, and by `insula export reload`."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hosted import Host, wait_until
from told import lines_of


@pytest.fixture
def web(host: Host) -> Iterator[Host]:
    host.root("run", "-d", "--name", "web", "box", "sleep", "1000")
    yield host
    (host.folder / "export.toml").unlink(missing_ok=True)
    host.root("export", "reload")


def sink(path: Path, more: str = "") -> str:
    return f'[[file]]\npath = "{path}"\n{more}\n'


def listed(host: Host, text: str) -> None:
    (host.folder / "export.toml").write_text(text)


def by_signal(host: Host) -> None:
    before = host.log().count("exports read")
    assert host.daemon is not None
    os.kill(host.daemon.pid, signal.SIGHUP)
    wait_until(lambda: host.log().count("exports read") > before, what="exports read")


def by_command(host: Host) -> None:
    host.root("export", "reload")


def programs(path: Path) -> list[str]:
    """Return the first words of the programs whose starts are told there."""
    return [each["arguments"][0] for each in lines_of(path) if each.get("kind") == "exec"]


@pytest.mark.parametrize("reread", [by_signal, by_command])
def test_who_is_listed_anew_hears_of_running_containers_and_who_is_not_hears_no_more(
    web: Host, tmp_path: Path, reread: Callable[[Host], None]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    listed(web, sink(first, 'kinds = ["exec"]'))
    reread(web)
    web.root("exec", "web", "id")
    wait_until(lambda: programs(first) == ["id"], what=lambda: str(programs(first)))
    listed(web, sink(second, 'kinds = ["exec"]'))
    reread(web)
    web.root("exec", "web", "true")
    wait_until(lambda: programs(second) == ["true"], what=lambda: str(programs(second)))
    assert programs(first) == ["id"]
    listed(web, "")
    reread(web)
    web.root("exec", "web", "id")
    assert programs(second) == ["true"]
    assert web.root("export", "ls", "--quiet") == ""


def numbers(path: Path) -> list[int]:
    """Return those of the folders that programs wanted to remove."""
    paths = [each["path"] for each in lines_of(path) if each.get("call") == "rmdir"]
    return [int(path.removeprefix("/none/")) for path in paths]


def test_what_others_are_listed_for_and_a_new_name_leave_no_gap(web: Host, tmp_path: Path) -> None:
    """With a sink that stays while what is watched in all changes ten times, and the container's name."""
    stays, other = tmp_path / "stays", tmp_path / "other"
    listed(web, sink(stays, 'kinds = ["file"]'))
    by_command(web)
    loop = "i=0; while [ ! -e /enough ]; do rmdir /none/$i; i=$((i + 1)); done"
    web.root("exec", "-d", "web", "sh", "-c", loop)
    for number in range(10):
        kind = ("network", "mount")[number % 2]
        listed(web, sink(stays, 'kinds = ["file"]') + sink(other, f'kinds = ["{kind}"]'))
        by_command(web)
    web.root("rename", "web", "other")
    web.root("rename", "other", "web")
    web.root("exec", "web", "touch", "/enough")
    wait_until(lambda: "/enough" in {each.get("path") for each in lines_of(stays)}, what="the last event")
    told = numbers(stays)
    assert told == list(range(told[0], told[0] + len(told)))
    assert len(told) > 10
    assert '"lost"' not in stays.read_text()


def test_a_wrong_list_is_refused_and_the_old_one_stays(web: Host, tmp_path: Path) -> None:
    listed(web, sink(tmp_path / "all"))
    by_command(web)
    listed(web, sink(tmp_path / "other") + "[[syslog]]\naddress = 1\n")
    for words in (("reload",), ("check", str(web.folder / "export.toml"))):
        assert "address" in web.root.fails("export", *words)
    assert web.daemon is not None
    os.kill(web.daemon.pid, signal.SIGHUP)
    wait_until(lambda: "exports stay as they were" in web.log(), what=lambda: web.log()[-500:])
    assert web.root("export", "ls", "--quiet") == f"file {tmp_path / 'all'}"
    web.root("rename", "web", "other")
    web.root("rename", "other", "web")
    wait_until(lambda: (tmp_path / "all").exists(), what="the old sink goes on")


def test_others_than_admins_see_no_exports(host: Host) -> None:
    assert "needs the right" in host.alice.fails("export", "ls")
