# SPDX-License-Identifier: Apache-2.0
"""What compression of a move's streams gains, by the rate of the link: a program's memory through two namespaces and tbf(8).

Run as root: `python bench/compression.py`.  The memory is that of this interpreter, the heap, with 200,000 strings in it.
"""

import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from netns import world  # noqa: E402
from slow_link import carry, link  # noqa: E402

RATES = ("100mbit", "1gbit", "4gbit", "")
MEGABYTE = 1_000_000
LEAST_BYTES = 64 << 20
PIECE = 1 << 20


def own_memory() -> list[bytes]:
    """Return what is in this process's heap, as often as it takes to be LEAST_BYTES."""
    kept = {str(number): os.urandom(8) for number in range(200_000)}
    with open("/proc/self/maps", encoding="ascii") as maps:
        (heap,) = [line.split()[0] for line in maps if line.rstrip().endswith("[heap]")]
    start, end = (int(word, 16) for word in heap.split("-"))
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        memory.seek(start)
        data = memory.read(end - start)
    del kept
    data *= -(-LEAST_BYTES // len(data))
    return [data[at : at + PIECE] for at in range(0, LEAST_BYTES, PIECE)]


def main() -> None:
    pieces = own_memory()
    loads = {"memory": pieces, "random": [os.urandom(PIECE) for _ in pieces]}
    print(f"{'link':>10} {'data':>8} {'plain MB':>9} {'s':>6} {'packed MB':>10} {'s':>6}")
    for rate in RATES:
        for name, load in loads.items():
            figures = []
            for is_packed in (False, True):
                with world() as made, link(made, rate=rate) as (sender, receiver):
                    if is_packed:
                        sender.compress()
                    began = time.monotonic()
                    assert carry(sender, receiver, pieces=load)
                    figures += [sender.sent_bytes / MEGABYTE, time.monotonic() - began]
            plain, plain_s, packed, packed_s = figures
            print(
                f"{rate or 'none':>10} {name:>8} {plain:9.1f} {plain_s:6.2f} {packed:10.1f} {packed_s:6.2f}"
            )


if __name__ == "__main__":
    main()
