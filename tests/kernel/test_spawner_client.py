# SPDX-License-Identifier: Apache-2.0
"""insulad's end of the talk: answers that come too late, spawners of other versions, a spawner that is killed."""

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import insula
from insula.boot import protocol
from insula.boot.stdio import make_pipes
from insula.model.errors import SpawnerGone, Unsupported
from insula.runtime import supervise
from insula.runtime.supervise import Exit, SpawnerClient
from spawned import DEADLINE_S, Refused, Spawned, Started, is_alive, spawner, wait_until


@contextmanager
def connected(run: Path, exits: list[Exit], lost: list[str]) -> Iterator[SpawnerClient]:
    client = SpawnerClient(
        run, log=run / "log", on_exit=exits.append, on_lost=lambda: lost.append("the spawner")
    )
    client.connect()
    try:
        yield client
    finally:
        client.close()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_start_that_is_answered_too_late_is_taken_back(
    host: Spawned, monkeypatch: pytest.MonkeyPatch
) -> None:
    exits: list[Exit] = []
    plan = host.plan("/bin/sleep", "1000")
    host.started.append(Started(plan, 0))
    with connected(host.run, exits, []) as client:
        monkeypatch.setattr(supervise, "ANSWER_SECONDS", 0.05)
        with stopped(host.process.pid), pytest.raises(SpawnerGone):
            client.start(plan)
        wait_until(lambda: bool(exits), what="it is killed as soon as it is there")
    assert [(each.key, each.exit_code) for each in exits] == [(plan.key, 137)]


def test_descriptors_that_come_too_late_are_closed(host: Spawned, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = host.plan("/bin/true")
    before = len(os.listdir("/proc/self/fd"))
    with connected(host.run, [], []) as client:
        with monkeypatch.context() as patched:
            patched.setattr(supervise, "ANSWER_SECONDS", 0.05)
            with stopped(host.process.pid), pytest.raises(SpawnerGone):
                client.view(plan)
        assert client.forget("nothing"), "answers come in order"
    wait_until(lambda: len(os.listdir("/proc/self/fd")) == before, what="the mount's descriptor is closed")


def test_unknown_verbs_and_fields_are_named(host: Spawned) -> None:
    plan = protocol.encode(host.plan("/bin/true"))
    assert isinstance(plan, dict)
    for verb, body, word in (("dance", {}, "`dance`"), ("start", {"plan": plan | {"moon": 1}}, "moon")):
        with pytest.raises(Refused) as refused:
            host.client.ask(verb, **body)
        assert refused.value.failure.code == "unsupported"
        assert word in refused.value.failure.message


def test_what_is_as_by_default_is_not_sent(host: Spawned) -> None:
    plan = host.plan("/bin/true")
    assert protocol.decode(protocol.StartPlan, protocol.encode(plan)) == plan
    assert "network" not in str(protocol.encode(plan))


@pytest.fixture
def run_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="insula-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def old_spawner(run: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A spawner of an older version."""
    source = str(Path(insula.__file__).resolve().parents[1])
    code = (
        f"import sys; sys.path.insert(0, {source!r}); from insula.boot import protocol, spawner; "
        "protocol.VERSION = 1; sys.exit(spawner.main())"
    )
    process = subprocess.Popen([sys.executable, "-SI", "-c", code, str(run)], start_new_session=True)
    try:
        wait_until((run / "spawner.sock").exists, what="the spawner listens")
        yield process
    finally:
        process.kill()
        process.wait(DEADLINE_S)


def test_an_idle_spawner_of_another_version_is_replaced(run_folder: Path) -> None:
    with old_spawner(run_folder) as old, connected(run_folder, [], []) as client:
        assert old.wait(DEADLINE_S) == 0
        assert client.forget("nothing")
        client.shutdown()
    wait_until(lambda: not (run_folder / "spawner.sock").exists(), what="the new one ends")


def test_an_older_spawner_with_containers_goes_on(host: Spawned, monkeypatch: pytest.MonkeyPatch) -> None:
    container = host.start("/bin/sleep", "1000")
    monkeypatch.setattr(protocol, "VERSION", protocol.VERSION + 1)
    with connected(host.run, [], []) as client:
        client.resize(container.key, 20, columns=20)
        assert is_alive(container.pid)
        with pytest.raises(Unsupported) as refused:
            client._ask("dance")
        assert "`dance`" in refused.value.message and refused.value.hint


def test_it_is_told_into_which_container_a_connection_leads(host: Spawned) -> None:
    one, two = (host.start("/bin/sleep", "1000") for _ in range(2))
    program = protocol.ProgramPlan(argv=("/bin/sleep", "1000"), environment=(), capabilities=())
    expected: dict[int, str] = {}
    with connected(host.run, [], []) as client, ExitStack() as opened:
        for container, is_added in ((one, False), (two, False), (two, True)):
            ours, theirs = socket.socketpair()
            opened.enter_context(ours)
            plan = protocol.AttachPlan(preamble="", hello="", stdin=False)
            with theirs:
                expected[os.fstat(theirs.fileno()).st_ino] = container.key
                if is_added:
                    key = f"{container.key}-added"
                    client.execute(
                        container.key, program, exec_key=key, attach=plan, connection=theirs.fileno()
                    )
                else:
                    client.attach(container.key, plan, connection=theirs.fileno())
        assert client.streams() == expected
        opened.close()
        wait_until(lambda: client.streams() == {}, what="they have hung up")
        client._verbs -= {"streams"}
        assert client.streams() == {}, "an older spawner does not know"


def test_containers_end_with_their_spawner(run_folder: Path) -> None:
    lost: list[str] = []
    with spawner(run_folder) as made, connected(made.run, [], lost) as client:
        plan = made.plan("/bin/sleep", "1000", user="user", init="/bin/tini")
        group = made.group(Started(plan, 0))
        pid = client.start(plan)
        made.process.kill()
        wait_until(lambda: not is_alive(pid), what="the container's first process ends")
        wait_until(lambda: lost == ["the spawner"], what="insulad hears of it")
        with pytest.raises(SpawnerGone):
            client.forget(plan.key)
        group.delete(DEADLINE_S + os.times().elapsed)


def test_descriptors_beside_what_is_no_message_are_closed(host: Spawned) -> None:
    before = len(os.listdir(f"/proc/{host.process.pid}/fd"))
    for data in (b"no json", b"[]"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.settimeout(DEADLINE_S)
            stranger.connect(str(host.run / "spawner.sock"))
            socket.send_fds(stranger, [data], [0, 0])
            assert stranger.recv(10) == b"", "it is hung up on"
    assert host.client.ask("hello")["pid"] == host.process.pid
    wait_until(lambda: len(os.listdir(f"/proc/{host.process.pid}/fd")) <= before, what="they are closed")


def test_pipes_that_cannot_all_be_made_leave_no_descriptor() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(each) for each in before)
    gaps = highest + 1 - len(before)  # numbers below the limit that are free
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + 3, hard))
    fillers = [os.dup(0) for _ in range(gaps)]
    try:
        with pytest.raises(OSError, match="Too many open files"):
            make_pipes(uid=0, with_stdin=True)
        assert len(os.listdir("/proc/self/fd")) == len(before) + len(fillers)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in fillers:
            os.close(each)


def test_who_hangs_up_without_a_word_is_not_a_second_loss(run_folder: Path) -> None:
    """A child of a spawner that was killed may hold its socket for a moment; two losses would start two spawners."""
    lost: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(run_folder / "spawner.sock"))
        listener.listen()
        hangs_up = threading.Thread(target=lambda: listener.accept()[0].close())
        hangs_up.start()
        client = SpawnerClient(
            run_folder,
            log=run_folder / "log",
            on_exit=lambda _exit: None,
            on_lost=lambda: lost.append("the spawner"),
        )
        with pytest.raises(SpawnerGone):
            client.connect()
        hangs_up.join()
    assert client._reader is not None
    client._reader.join()
    client.close()
    assert lost == []
