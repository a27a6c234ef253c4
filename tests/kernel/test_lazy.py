# SPDX-License-Identifier: Apache-2.0
"""Memory that goes before the freeze: dumps without it, restores that are filled while the program runs.

The memory is read from outside while the program stands, kept in the target's store, and filled in by the spawner's filler.
Needs the CRIU that `insula setup` found good on this host.
"""

import os
import signal

import carried
from insula.kernel import criu
from insula.migrate.memory import MemoryStore, Range
from insula.model import stream
from spawned import Spawned, Started, is_alive, wait_until


def test_every_byte_comes_through(host: Spawned, images: int, store: MemoryStore) -> None:
    container = carried.start(host, carried.EVERYTHING, ready=4)
    carried.carry(host, container, images, store)
    carried.end_well(host, container)


def test_it_is_filled_without_being_touched(host: Spawned, images: int, store: MemoryStore) -> None:
    container = carried.start(host, carried.EVERYTHING, ready=4)
    carried.carry(host, container, images, store)
    carried.wait_filled(host, container)
    assert os.fstat(store.descriptor).st_blocks * 512 < 8 << 20, "what was brought is freed"
    carried.end_well(host, container)


LOOP = """
memory = anonymous(64)
listener = socket.create_server(("127.0.0.1", 0))
one = socket.create_connection(listener.getsockname()); other, _ = listener.accept()
say("ready")
number = 0
while True:
    one.send(b"x"); assert other.recv(1) == b"x"
    say(f"at-{number}"); number += 1; time.sleep(0.02)
"""


def _assert_runs_on(host: Spawned, container: Started) -> None:
    before = len(container.logged().split())
    wait_until(lambda: len(container.logged().split()) > before + 5, what="it runs on")
    assert host.execute_shell(container, "echo fine").out == "fine\n"


def test_refused_lazy_dump_leaves_the_program_running(host: Spawned, images: int) -> None:
    container = carried.start(host, LOOP)
    seen: list[str] = []

    def refuse(stage: criu.Notification) -> bool:
        seen.append(stage.stage)
        return stage.stage != "post-dump"

    assert not carried.dump(host, container, images, handle=refuse).success
    assert "post-dump" in seen
    _assert_runs_on(host, container)


def test_what_no_round_has_brought_is_missing(host: Spawned, images: int, store: MemoryStore) -> None:
    container = carried.start(host, LOOP)
    left_out: list[Range] = []

    def wanted(_pid: int, each: Range) -> bool:
        is_left_out = not left_out and each[1] > 100
        if is_left_out:
            left_out.append(each)
        return not is_left_out

    carried.dump_and_let_go(host, container, images, store, wanted=wanted)
    assert store.missing(images) == {1: left_out}


def _restore_with_a_stopped_filler(host: Spawned, container: Started, images: int, store: MemoryStore) -> int:
    links = carried.dump_and_let_go(host, container, images, store)
    filler = carried.begin_restore(host, container, images, store, links)
    os.kill(filler, signal.SIGSTOP)
    assert carried.filling(host, container)["state"] == "filling", "it was filled too soon"
    return filler


BIG = "memory = anonymous(600)\nsay('ready')\nwait('go')\ncheck(memory, 7)\nsay('good')\n"


def test_dead_filler_kills_the_container(host: Spawned, images: int, store: MemoryStore) -> None:
    container = carried.start(host, BIG)
    filler = _restore_with_a_stopped_filler(host, container, images, store)
    os.kill(filler, signal.SIGKILL)
    assert host.client.wait_exit(container.key) == 137
    event = next(each for each in host.client.events if each["key"] == container.key)
    assert "its memory did not arrive" in event["reason"]
    assert "good" not in container.logged()


def test_container_in_filling_can_be_frozen_entered_and_killed(
    host: Spawned, images: int, store: MemoryStore
) -> None:
    container = carried.start(host, BIG)
    filler = _restore_with_a_stopped_filler(host, container, images, store)
    assert host.execute_shell(container, "echo fine").out == "fine\n"
    group = host.group(container)
    group.freeze()
    # Not sooner than this it is sure to stand: it may be in a call whose argument is a page that is not there yet.
    os.kill(filler, signal.SIGCONT)
    wait_until(group.is_frozen, what="it is frozen")
    carried.wait_filled(host, container)
    group.thaw()
    assert host.execute_shell(container, "touch /root/go").code == 0
    assert host.client.wait_exit(container.key) == 0
    assert container.logged().split()[-1] == "good"


def test_killed_while_it_is_filled(host: Spawned, images: int, store: MemoryStore) -> None:
    container = carried.start(host, BIG)
    filler = _restore_with_a_stopped_filler(host, container, images, store)
    assert host.end(container) == 137
    os.kill(filler, signal.SIGCONT)
    wait_until(lambda: not is_alive(filler), what="the filler has ended")
    assert next(each for each in host.client.events if each["key"] == container.key)["reason"] == ""


def test_mappings_that_change_while_they_are_filled(host: Spawned, images: int, store: MemoryStore) -> None:
    container = carried.start(host, carried.changes(512))
    filler = _restore_with_a_stopped_filler(host, container, images, store)
    assert host.execute_shell(container, "touch /root/go").code == 0
    os.kill(filler, signal.SIGCONT)
    code = host.client.wait_exit(container.key)
    assert (code, container.logged().split()[-1]) == (0, "good"), container.logged(stream.STDERR)
    wait_until(lambda: not is_alive(filler), what="the filler has ended")
