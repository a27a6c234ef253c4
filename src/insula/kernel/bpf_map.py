# SPDX-License-Identifier: Apache-2.0
"""Maps between an eBPF program and us: read and written by descriptor; and the ring buffer, read where it lies.

Keys and values are bytes, as long as the map was made for.  Out of scope: what stands in them (`monitor/layout.py`).

Sources: bpf(2); `include/uapi/linux/bpf.h` (union bpf_attr); `kernel/bpf/ringbuf.c` and
`Documentation/bpf/ringbuf.rst` for the layout of the pages.
"""

import errno
import mmap
import os
import struct
from collections.abc import Iterator

from insula.kernel import libc

_CREATE = 0
_PER_CPU_ARRAY = 6
#: { __u32 map_type, key_size, value_size, max_entries, map_flags; }
_MADE = struct.Struct("=IIIII")
_LOOKUP, _UPDATE, _DELETE, _LOOKUP_BATCH = 1, 2, 3, 24
#: { __u32 map_fd; __u64 key; __u64 value; __u64 flags; }, aligned.
_ELEMENT = struct.Struct("=IxxxxQQQ")
#: { __u64 in_batch, out_batch, keys, values; __u32 count, map_fd; __u64 elem_flags, flags; }
_BATCHED = struct.Struct("=QQQQIIQQ")
_BATCH = 1024
"""Entries per call: must not be fewer than one bucket of the kernel's hash table holds."""
_POSSIBLE_PROCESSORS = "/sys/devices/system/cpu/possible"

_BUSY = 1 << 31
_DISCARDED = 1 << 30
_HEADER_BYTES = 8
_WORD_BYTES = 8


def possible_processors() -> int:
    """Return how many values a per-CPU map keeps for a key."""
    with open(_POSSIBLE_PROCESSORS, encoding="ascii") as file:
        last = file.read().strip().replace(",", "-").split("-")[-1]
    return int(last) + 1


def create_per_cpu_array(*, value_bytes: int, entries: int) -> int:
    """Make an array of which each processor has its own.  Returns: its descriptor, the caller's.  Raises: OSError naming bpf."""
    attributes = _MADE.pack(_PER_CPU_ARRAY, 4, value_bytes, entries, 0)
    return libc.bpf(_CREATE, libc.address_of(attributes), len(attributes))


class Map:
    """One map.  The descriptor belongs to whoever loaded it.  Not for several threads at once."""

    __slots__ = ("_fd", "_key", "_key_bytes", "_lookup", "_value", "_value_bytes")

    def __init__(self, fd: int, *, key_bytes: int, value_bytes: int) -> None:
        self._fd = fd
        self._key_bytes = key_bytes
        self._value_bytes = value_bytes
        """Of all processors together, if each has its own."""
        self._key, self._value = bytearray(key_bytes), bytearray(value_bytes)
        self._lookup = bytearray(
            _ELEMENT.pack(fd, libc.address_of(self._key), libc.address_of(self._value), 0)
        )

    def get(self, key: bytes) -> bytes | None:
        """Return a key's value, None if it has none.  Raises: OSError naming bpf."""
        self._key[:] = key
        try:
            libc.bpf(_LOOKUP, libc.address_of(self._lookup), len(self._lookup))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return bytes(self._value)

    def put(self, key: bytes, value: bytes) -> None:
        """Write a key's value.  Raises: OSError naming bpf: E2BIG if the map is full."""
        self._call(_UPDATE, key, address=libc.address_of(value))

    def drop(self, key: bytes) -> None:
        """Remove a key; none there is no error.  Raises: OSError naming bpf."""
        try:
            self._call(_DELETE, key, address=0)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Walk through a hash map, many entries per call.  What is added or removed meanwhile may be met or not.

        Raises: OSError naming bpf.
        """
        wide_key, wide_value = self._key_bytes, self._value_bytes
        begin, place, is_last = 0, bytearray(8), False
        while not is_last:
            keys, values, is_last = self._batch(_BATCH, begin=begin, place=place)
            begin = libc.address_of(place)
            for at in range(len(keys) // wide_key):
                yield (
                    bytes(keys[at * wide_key : (at + 1) * wide_key]),
                    bytes(values[at * wide_value : (at + 1) * wide_value]),
                )

    def array(self, entries: int) -> bytes:
        """Return all values of an array, one after the other.  Raises: OSError naming bpf."""
        return bytes(self._batch(entries, begin=0, place=bytearray(8))[1])

    def _batch(self, most: int, *, begin: int, place: bytearray) -> tuple[memoryview, memoryview, bool]:
        """Return keys, values and whether these were the last; `place` then says where the next begin."""
        keys, values = bytearray(self._key_bytes * most), bytearray(self._value_bytes * most)
        attributes = bytearray(
            _BATCHED.pack(
                begin,
                libc.address_of(place),
                libc.address_of(keys),
                libc.address_of(values),
                most,
                self._fd,
                0,
                0,
            )
        )
        is_last = False
        try:
            libc.bpf(_LOOKUP_BATCH, libc.address_of(attributes), len(attributes))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            is_last = True
        count = _BATCHED.unpack_from(attributes)[4]
        return (
            memoryview(keys)[: count * self._key_bytes],
            memoryview(values)[: count * self._value_bytes],
            is_last,
        )

    def _call(self, command: int, key: bytes, *, address: int) -> None:
        attributes = _ELEMENT.pack(self._fd, libc.address_of(key), address, 0)
        libc.bpf(command, libc.address_of(attributes), len(attributes))


class Words:
    """An array of 64-bit words that both sides write where it lies (BPF_F_MMAPABLE)."""

    __slots__ = ("_memory", "_view", "at")

    def __init__(self, fd: int, *, entries: int) -> None:
        self._memory = mmap.mmap(fd, entries * 8, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._view = memoryview(self._memory)
        self.at = self._view.cast("Q")
        """By place."""

    def close(self) -> None:
        """Let go of the pages."""
        self.at.release()
        self._view.release()
        self._memory.close()


class Ring:
    """The reading end of a ring buffer.  One reader.

    Page 0 is ours: how far we have read.  Page 1 is the kernel's: how far it has written.  The data follow, twice in a
    row, so that no record is cut at the end.

    Positions and lengths are read and written whole, by views of words: `struct` goes byte by byte, and the kernel would
    see a position of which half is new; it then finds the ring full, or we find records that are none.
    """

    __slots__ = (
        "_consumed",
        "_consumer",
        "_data",
        "_lengths",
        "_mask",
        "_position",
        "_produced",
        "_reading",
        "fd",
    )

    def __init__(self, fd: int, *, ring_bytes: int) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        self.fd = fd
        """Becomes readable when there is something to read."""
        self._mask = ring_bytes - 1
        self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._reading = mmap.mmap(fd, page + 2 * ring_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumed = memoryview(self._consumer)[:_WORD_BYTES].cast("Q")
        self._produced = memoryview(self._reading)[:_WORD_BYTES].cast("Q")
        self._data = memoryview(self._reading)[page:]
        self._lengths = self._data.cast("I")
        self._position: int = self._consumed[0]

    @property
    def written(self) -> int:
        """How far the kernel has written, in bytes since it was made."""
        return self._produced[0]

    @property
    def position(self) -> int:
        """How far has been read, in the same."""
        return self._position

    def read(self, *, at_most: int) -> list[bytes]:
        """Take the records that are ready, in order, and give their room back."""
        records: list[bytes] = []
        data, lengths, mask, position = self._data, self._lengths, self._mask, self._position
        written = self._produced[0]
        while position < written and len(records) < at_most:
            start = position & mask
            length = lengths[start >> 2]
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            if size == length:
                records.append(bytes(data[start + _HEADER_BYTES : start + _HEADER_BYTES + size]))
            position += (_HEADER_BYTES + size + 7) & ~7
        if position != self._position:
            self._position = position
            self._consumed[0] = position
        return records

    def close(self) -> None:
        """Let go of the pages."""
        for view in (self._consumed, self._produced, self._lengths, self._data):
            view.release()
        self._reading.close()
        self._consumer.close()
