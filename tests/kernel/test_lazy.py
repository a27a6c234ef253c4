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


CHANGES = """
import ctypes
memory = anonymous(512)
say("ready")
wait("go")
c = ctypes.CDLL(None, use_errno=True)
c.mremap.restype = c.mmap.restype = ctypes.c_void_p
at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
half = len(memory) // 2
def at_page(address, number): return ctypes.string_at(address + number * 4096, 4096)
# The upper half moves elsewhere, a piece below is given back, another one becomes read-only.
c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
c.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
c.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
c.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
moved = c.mremap(at + half, half, half * 2, 1)
assert moved not in (None, 2**64 - 1)
assert c.madvise(at + (4 << 20), 4 << 20, 4) == 0
assert c.mprotect(at + (16 << 20), 4 << 20, 1) == 0
child = os.fork()
for number in range(half // 4096):
    expected = bytes(4096) if 1024 <= number < 2048 else page(number, 7)
    assert at_page(at, number) == expected, number
    assert at_page(moved, number) == page(number + half // 4096, 7), number
if child == 0: os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
say("good")
os._exit(0)
"""


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
    wait_until(group.is_frozen, what="it is frozen")
    os.kill(filler, signal.SIGCONT)
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
    container = carried.start(host, CHANGES)
    filler = _restore_with_a_stopped_filler(host, container, images, store)
    assert host.execute_shell(container, "touch /root/go").code == 0
    os.kill(filler, signal.SIGCONT)
    code = host.client.wait_exit(container.key)
    assert (code, container.logged().split()[-1]) == (0, "good"), container.logged(stream.STDERR)
    wait_until(lambda: not is_alive(filler), what="the filler has ended")
