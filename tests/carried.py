# SPDX-License-Identifier: Apache-2.0
"""Carry a container over without its memory in CRIU's images: dump, read from outside, restore, fill.

Needs the CRIU that `insula setup` found good on this host.
"""

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack

from insula.boot import engine, protocol
from insula.boot.engine import FIRST_INHERITED_FD, IMAGES_FD, RPC_FD
from insula.kernel import criu, criu_images, userfault_permit
from insula.kernel.criu_find import find_criu
from insula.kernel.criu_images import PAGE_BYTES, PE_LAZY
from insula.migrate.memory import MemoryStore, Range
from insula.model import stream
from insula.runtime import lazy
from spawned import DEADLINE_S, PYTHON, Spawned, Started, is_alive, wait_until

IMAGES = f"/proc/self/fd/{IMAGES_FD}"
LIMIT_BYTES = 2 << 30
Reader = Callable[[int, Range], bool]


def every(_pid: int, _range: Range) -> bool:
    return True


def read_memory(
    host: Spawned, container: Started, images: int, store: MemoryStore, *, wanted: Reader
) -> None:
    """Put what CRIU left out into the store."""
    for pid in host.group(container).pids():
        inner = int(status(pid, "NSpid").split()[-1])
        try:
            data = image(images, f"pagemap-{inner}.img")
        except FileNotFoundError:
            continue  # a zombie
        entries = criu_images.decode_pagemap(data)
        ranges = [(each.vaddr, each.pages) for each in entries if each.flags & PE_LAZY]
        ranges = [each for each in ranges if wanted(inner, each)]
        taken = store.begin(inner, ranges)
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for start, pages in ranges:
                left = pages * PAGE_BYTES
                while left:
                    piece = os.pread(memory.fileno(), min(left, 1 << 20), start + pages * PAGE_BYTES - left)
                    assert piece, f"process {pid} has ended meanwhile"
                    taken.feed(piece)
                    left -= len(piece)
        taken.finish()


def end_well(host: Spawned, container: Started) -> None:
    """Let a program judge itself and end; all was right."""
    assert host.execute_shell(container, "touch /root/go").code == 0
    code = host.client.wait_exit(container.key)
    assert (code, container.logged().split()[-1]) == (0, "good"), container.logged(stream.STDERR)


def status(pid: int, key: str) -> str:
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        return next(line.split(":", 1)[1].strip() for line in file if line.startswith(key + ":"))


def image(images: int, name: str) -> bytes:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=images), "rb") as file:
        return file.read()


def errors(images: int, name: str) -> str:
    lines = image(images, name).decode(errors="replace").splitlines()
    return "\n".join(line for line in lines if "Error" in line)[-3000:]


def launch(
    host: Spawned, images: int, *, extra: tuple[int, ...] = (), **body: object
) -> tuple[socket.socket, dict[str, str]]:
    program = find_criu()
    assert program is not None, "no CRIU: run scripts/setup"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        argv = [*program.argv, "swrk", str(RPC_FD)]
        answer = host.client.ask("criu", descriptors=(theirs.fileno(), images, *extra), argv=argv, **body)
    ours.settimeout(3 * DEADLINE_S)
    return ours, answer["external"]


def dump(
    host: Spawned, container: Started, images: int, *, handle: Callable[[criu.Notification], bool]
) -> criu.Response:
    binds = enumerate(container.plan.mounts)
    external = ("mnt[/dev]:dev", *(f"mnt[{each.target}]:mount{number}" for number, each in binds))
    options = criu.Options(
        images_dir=IMAGES,
        pid=container.pid,
        external=external,
        log_file="dump.log",
        lazy_pages=True,
        config_file=lazy.CONFIG_FILE,
    )
    with ExitStack() as held:
        connection, _ = launch(host, images, extra=lazy.dump_descriptors(held))
        with connection:
            return criu.request(connection, criu.DUMP, options, handle=handle)


def begin_restore(
    host: Spawned,
    container: Started,
    images: int,
    store: MemoryStore,
    links: list[str],
    *,
    fill: str = "fill",
    on_filling: Callable[[], None] = lambda: None,
) -> int:
    key = container.key
    host.client.ask("prepare", plan=protocol.encode(container.plan))
    slots = {str(pid): slot for pid, slot in store.slots.items()}
    filler = host.client.ask(fill, descriptors=(images, store.descriptor), key=key, slots=slots)["pid"]
    on_filling()
    connection, places = launch(host, images, restore=protocol.encode(container.plan))
    expected = sum(criu_images.pid_of(name) is not None for name in os.listdir(images))

    def handle(stage: criu.Notification) -> bool:
        if stage.stage == "setup-namespaces":
            host.client.ask("plug", key=key, pid=stage.pid)
        if stage.stage == "post-restore":
            assert filling(host, container)["memories"] == expected
        return True

    inherited = {link: FIRST_INHERITED_FD + number for number, link in enumerate(links) if "pipe:" in link}
    options = criu.Options(
        images_dir=IMAGES,
        root=engine.ROOT,
        external=tuple(f"mnt[{name}]:{path}" for name, path in places.items()),
        inherit_fd=tuple(inherited.items()),
        rst_sibling=True,
        log_file="restore.log",
        lazy_pages=True,
    )
    is_adopted = False
    try:
        with connection, userfault_permit.permit():
            response = criu.request(connection, criu.RESTORE, options, handle=handle)
        assert response.success, errors(images, "restore.log")
        host.client.ask("adopt", key=key, pid=response.pid)
        is_adopted = True
    finally:
        if not is_adopted:
            host.client.ask("discard", key=key)
    container.pid = response.pid
    return int(filler)


def filling(host: Spawned, container: Started) -> dict[str, object]:
    fields, descriptors = host.client.ask_for_descriptors("filling", key=container.key)
    for each in descriptors:
        os.close(each)
    return fields


def dump_and_let_go(
    host: Spawned, container: Started, images: int, store: MemoryStore, *, wanted: Reader = every
) -> list[str]:
    links = [os.readlink(f"/proc/{container.pid}/fd/{number}") for number in range(3)]

    def handle(stage: criu.Notification) -> bool:
        if stage.stage == "post-dump":
            read_memory(host, container, images, store, wanted=wanted)
        return True

    response = dump(host, container, images, handle=handle)
    assert response.success, errors(images, "dump.log")
    assert host.client.wait_exit(container.key) == 137
    host.client.events.clear()
    host.client.ask("forget", key=container.key)
    return links


def carry(host: Spawned, container: Started, images: int, store: MemoryStore) -> None:
    links = dump_and_let_go(host, container, images, store)
    assert store.missing(images) == {}
    begin_restore(host, container, images, store, links)


def wait_filled(host: Spawned, container: Started) -> None:
    wait_until(lambda: filling(host, container)["state"] != "filling", what="all is filled")
    assert filling(host, container)["state"] == "filled"


PROLOGUE = """
import mmap, os, signal, socket, struct, sys, threading, time
def say(text): print(text, flush=True)
def wait(name):
    while not os.path.exists("/root/" + name): time.sleep(0.01)
def anonymous(megabytes):
    memory = mmap.mmap(-1, megabytes << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    write(memory, 7)
    return memory
def page(number, salt): return struct.pack("<QQ", number, salt) * 256
def write(memory, salt, step=1):
    for number in range(0, len(memory) // 4096, step): memory[number * 4096:number * 4096 + 4096] = page(number, salt)
def check(memory, salt, step=1, other=None):
    for number in range(0, len(memory) // 4096):
        salted = salt if number % step == 0 else other
        assert memory[number * 4096:number * 4096 + 4096] == page(number, salted), (number, os.getpid())
"""

EVERYTHING = """
file = open("/root/file", "w+b"); file.write(b"f" * (1 << 20)); file.flush()
mapped = mmap.mmap(file.fileno(), 1 << 20, flags=mmap.MAP_PRIVATE)
mapped[4096:8192] = b"m" * 4096
shared = mmap.mmap(-1, 4 << 20); write(shared, 3)
memory = anonymous(160)
empty = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
listener = socket.create_server(("127.0.0.1", 0))
one = socket.create_connection(listener.getsockname()); other, _ = listener.accept()
one.send(b"on the way")
counts = [0] * 3
def count(number):
    while True: counts[number] += 1; time.sleep(0.001)
children = []
for number in range(3):
    child = os.fork()
    if child == 0:
        write(memory, 100 + number, 3)
        os.write(1, b"ready\\n")
        wait("go")
        check(memory, 100 + number, 3, 7)
        assert shared[:4096] == page(0, 3)
        os._exit(5)
    children.append(child)
for number in range(3): threading.Thread(target=count, args=(number,), daemon=True).start()
say("ready")
wait("go")
before = list(counts)
grandchild = os.fork()
if grandchild == 0:
    check(memory, 7); os._exit(6)
check(memory, 7)
assert empty[:] == bytes(len(empty))
assert mapped[:4096] == b"f" * 4096 and mapped[4096:8192] == b"m" * 4096
check(shared, 3)
assert other.recv(100) == b"on the way"
assert os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 6
assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [5, 5, 5]
until = time.monotonic() + 60
while not all(now > then > 0 for now, then in zip(counts, before)):
    assert time.monotonic() < until, counts
    time.sleep(0.01)
say("good")
"""


def changes(megabytes: int) -> str:
    """Return a program that changes mappings of which the pages are not there yet; not less than 40 MB."""
    return f"""
import ctypes
memory = anonymous({megabytes})
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


def start(host: Spawned, code: str, *, ready: int = 1) -> Started:
    container = host.start(PYTHON, "-ISc", PROLOGUE + code, python=True)
    wait_until(
        lambda: container.logged().count("ready") == ready or not is_alive(container.pid), what="it is ready"
    )
    assert container.logged().count("ready") == ready, container.logged(stream.STDERR)
    return container
