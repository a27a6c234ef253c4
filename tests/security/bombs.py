# SPDX-License-Identifier: Apache-2.0
"""Programs that take one kind of resource until there is no more; the same code takes one of it for the neighbour.

Each text defines `one`, which takes a unit and returns what keeps it.  `exhausting` takes until it fails; `taking` takes one.
"""

_CALLS = """
import ctypes, errno, fcntl, os, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *words):
    result = libc.syscall(*[ctypes.c_long(word) for word in (number, *words)])
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
count = iter(range(10**9))
"""

UNITS = {
    "process": """
def one():
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
""",
    "zombie": """
def one():
    if os.fork() == 0:
        os._exit(0)
""",
    "thread": """
threading.stack_size(65536)
def one():
    made = threading.Thread(target=time.sleep, args=(100,), daemon=True)
    made.start()
    return made
""",
    "descriptor": """
def one():
    return os.open("/dev/null", os.O_RDONLY)
""",
    "pipe": """
def one():
    ends = os.pipe()
    fcntl.fcntl(ends[1], 1031, 1 << 20)
    os.set_blocking(ends[1], False)
    os.write(ends[1], bytes(1 << 20))
    return ends
""",
    "terminal": """
def one():
    return os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
""",
    "inotify": """
def one():
    return call(294, 0)
""",
    "watch": """
instance = call(294, 0)
def one():
    path = f"/dev/shm/watched-{next(count)}"
    os.mkdir(path)
    name = ctypes.create_string_buffer(path.encode())
    return call(254, instance, ctypes.addressof(name), 0x100)
""",
    "epoll": """
import select
def one():
    return select.epoll()
""",
    "queue": """
def one():
    name = ctypes.create_string_buffer(f"queue-{os.getpid()}-{next(count)}".encode())
    shape = struct.pack("8q", 0, 10, 8192, 0, 0, 0, 0, 0)
    return call(240, ctypes.addressof(name), os.O_CREAT | os.O_RDWR, 0o600, ctypes.cast(ctypes.c_char_p(shape), ctypes.c_void_p).value)
""",
    "semaphores": """
def one():
    return call(64, 0, 250, 0o600)
""",
    "message-queue": """
def one():
    return call(68, 0, 0o600)
""",
    "segment": """
def one():
    place = ctypes.c_void_p(call(30, call(29, 0, 1 << 20, 0o600), 0, 0))
    ctypes.memset(place, 1, 1 << 20)
""",
    "timer": """
def one():
    number = ctypes.c_int()
    call(222, 1, 0, ctypes.addressof(number))
""",
    "signal": """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
def one():
    details = ctypes.create_string_buffer(struct.pack("3i", int(signal.SIGRTMIN), 0, -1), 128)
    call(129, os.getpid(), int(signal.SIGRTMIN), ctypes.addressof(details))
""",
    "socket": """
def one():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("", 0))
    return made
""",
    "flight": """
def one():
    ours, theirs = socket.socketpair()
    socket.send_fds(ours, [b"x"], [0] * 250)
    return ours, theirs
""",
    "shared-memory-file": """
def one():
    with open(f"/dev/shm/file-{next(count)}", "wb") as file:
        file.write(bytes(1 << 20))
""",
    "inode": """
def one():
    os.close(os.open(f"/dev/shm/inode-{next(count)}", os.O_CREAT | os.O_WRONLY))
""",
    "memfd": """
def one():
    made = os.memfd_create("x")
    os.write(made, bytes(1 << 20))
    return made
""",
    "ring": """
def one():
    context = ctypes.c_ulong()
    call(206, 128, ctypes.addressof(context))
""",
    "locked-memory": """
import mmap
def one():
    area = mmap.mmap(-1, 1 << 16)
    call(149, ctypes.addressof(ctypes.c_char.from_buffer(area)), 1 << 16)
    return area
""",
    "memory": """
def one():
    return b"x" * (1 << 20)
""",
    "reserved-memory": """
import mmap
def one():
    return mmap.mmap(-1, 1 << 36, flags=mmap.MAP_PRIVATE | 0x4000)
""",
}

MOST = 100_000

#: Children that are ended for want of memory, one after the other.
OUT_OF_MEMORY = """
import os, signal
number = 0
while True:
    child = os.fork()
    if child == 0:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        held = []
        while True:
            held.append(bytearray(b"x" * (1 << 20)))
    ended = os.waitpid(child, 0)[1]
    if os.WTERMSIG(ended) == signal.SIGKILL:
        number += 1
        os.write(1, f"full {number} taken back\\n".encode())
"""


def exhausting(unit: str) -> str:
    """Return the program that takes until it fails, says so, and keeps all of it."""
    return f"""{_CALLS}{UNITS[unit]}
held = []
reason = "no limit was met"
try:
    for number in range({MOST}):
        held.append(one())
except (OSError, RuntimeError, MemoryError) as error:
    reason = str(error)
os.write(1, f"full {{len(held)}} {{reason}}\\n".encode())
while True:
    time.sleep(10)
"""


def taking(unit: str) -> str:
    """Return the program that takes one."""
    return f"""{_CALLS}{UNITS[unit]}
kept = one()
os.write(1, b"taken\\n")
os.killpg(0, 9) if {unit in ("process", "zombie", "thread")!r} else os._exit(0)
"""
