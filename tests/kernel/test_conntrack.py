# SPDX-License-Identifier: Apache-2.0
"""A dump whose questions about tracked connections we answer: CRIU takes the answers, and what it restores is whole."""

import os
import socket
from contextlib import ExitStack

import pytest

import carried
import forked
from insula.boot.engine import RPC_FD
from insula.kernel import criu, libc, seccomp
from insula.kernel.criu_find import find_criu
from insula.runtime import lazy
from insula.runtime.conntrack import SparedWalk, has_connections
from spawned import Spawned, Started

PROGRAM = """
kept = os.urandom(1 << 20)
say('ready')
wait('go')
say('good')
"""


def _dump(
    host: Spawned, container: Started, images: int, *, accept: bool
) -> tuple[criu.Response, SparedWalk]:
    binds = enumerate(container.plan.mounts)
    options = criu.Options(
        images_dir=carried.IMAGES,
        pid=container.pid,
        external=("mnt[/dev]:dev", *(f"mnt[{each.target}]:mount{number}" for number, each in binds)),
        log_file="dump.log",
        lazy_pages=True,
        config_file=lazy.CONFIG_FILE,
    )
    program = find_criu()
    assert program is not None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ExitStack() as held:
        held.enter_context(ours)
        extra = lazy.dump_descriptors(held)
        walk = held.enter_context(SparedWalk())
        with theirs:
            argv = [*program.argv, "swrk", str(RPC_FD)]
            answer = host.client.ask("criu", descriptors=(theirs.fileno(), images, *extra), argv=argv)

        def handle(stage: criu.Notification) -> bool:
            if stage.stage == "network-lock":
                walk.begin(answer["pid"], first=container.pid, images=images)
            return accept or stage.stage != "post-dump"

        return criu.request(ours, criu.DUMP, options, handle=handle), walk


def test_criu_asks_us_and_the_program_runs_on(host: Spawned, images: int) -> None:
    container = carried.start(host, PROGRAM)
    _response, walk = _dump(host, container, images, accept=False)
    assert walk.answered == 2, carried.errors(images, "dump.log")
    assert host.execute_shell(container, "touch /root/go").code == 0
    assert host.client.wait_exit(container.key) == 0
    assert container.logged().split()[-1] == "good"


def test_the_images_are_those_of_a_namespace_without_connections(host: Spawned, images: int) -> None:
    container = carried.start(host, PROGRAM)
    response, walk = _dump(host, container, images, accept=True)
    assert (response.success, walk.answered) == (True, 2), carried.errors(images, "dump.log")
    assert host.client.wait_exit(container.key) == 137


def test_a_namespace_without_rules_tracks_nothing(host: Spawned) -> None:
    container = carried.start(host, PROGRAM)
    assert not has_connections(container.pid)
    host.end(container)


def test_who_does_not_answer_is_thought_to_track() -> None:
    assert has_connections(1 << 22)


def test_only_the_call_that_is_meant_waits() -> None:
    """Without a listener a call that is caught does not exist."""
    program = seccomp.notify_of(seccomp.Call("socket", ((0, 16), (2, 12))))

    def child() -> str:
        libc.prctl(38, 1, 0, 0, 0)  # no_new_privs
        seccomp.install(program)
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).close()
        try:
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12).close()
        except OSError as error:
            return error.strerror
        return "made"

    assert forked.run(child) == "Function not implemented"


def test_the_answers_end_with_criu_without_a_word(
    host: Spawned, images: int, caplog: pytest.LogCaptureFixture
) -> None:
    container = carried.start(host, PROGRAM)
    for _ in range(5):
        _dump(host, container, images, accept=False)
    assert not caplog.records
    host.end(container)


def test_where_nothing_can_be_watched_the_kernel_is_asked(
    host: Spawned, caplog: pytest.LogCaptureFixture
) -> None:
    container = carried.start(host, PROGRAM)
    before = os.listdir("/proc/self/fd")
    with SparedWalk() as walk:
        walk.begin(os.getpid(), first=container.pid, images=-1)  # as at the limit of inotify's instances
    assert [each.message for each in caplog.records] == ["CRIU walks through all connections"]
    assert os.listdir("/proc/self/fd") == before
    host.end(container)
