# SPDX-License-Identifier: Apache-2.0
"""Which file the kernel runs first to run a program: the interpreter of a script, the loader of an ELF file.

Only so much of the formats as tells that path.  Out of scope: whether the file is valid; what we do not understand names no
interpreter, and the kernel will refuse it or not.  Sources: execve(2), "Interpreter scripts"; elf(5); fs/binfmt_script.c,
`BINPRM_BUF_SIZE`.  Standard library only.
"""

import os
import stat
import struct
from collections.abc import Iterator

_HEAD_BYTES = 256
"""What the kernel reads of a script's first line."""
_MAX_PATH_BYTES = 4096
_MAX_HEADERS = 1024
_PT_INTERP = 3
_DEPTH = 6
"""One more than the kernel follows interpreters that are scripts themselves."""
#: By ELF class: where e_phoff stands and its form; where e_phentsize and e_phnum stand; a program header's type, offset, size.
_CLASSES = {
    1: (28, "=I", 42, struct.Struct("=II8xI12x")),
    2: (32, "=Q", 54, struct.Struct("=I4xQ16xQ16x")),
}


def chain(path: str) -> Iterator[str]:
    """Yield the interpreter of a program, the interpreter of that one, and so on.  Raises: OSError."""
    for _ in range(_DEPTH):
        found = interpreter_of(path)
        if not found:
            return
        yield found
        path = found


def interpreter_of(path: str) -> str:
    """Return the path that stands in a program's file, "" for none.  Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ""
        head = os.pread(descriptor, _HEAD_BYTES, 0)
        if head.startswith(b"#!"):
            words = head[2:].split(b"\n", 1)[0].split()
            return os.fsdecode(words[0].split(b"\0", 1)[0]) if words else ""
        return _loader(descriptor, head) if head.startswith(b"\x7fELF") else ""
    finally:
        os.close(descriptor)


def _loader(descriptor: int, head: bytes) -> str:
    if len(head) < 64 or head[4] not in _CLASSES:
        return ""
    offset_at, offset_form, sizes_at, header = _CLASSES[head[4]]
    (offset,) = struct.unpack_from(offset_form, head, offset_at)
    size, count = struct.unpack_from("=HH", head, sizes_at)
    if size != header.size or count > _MAX_HEADERS or offset > 1 << 62:
        return ""
    table = os.pread(descriptor, size * count, offset)
    for kind, place, length in header.iter_unpack(table[: len(table) // size * size]):
        if kind == _PT_INTERP and place < 1 << 62:
            name = os.pread(descriptor, min(length, _MAX_PATH_BYTES), place)
            return os.fsdecode(name.split(b"\0", 1)[0])
    return ""
