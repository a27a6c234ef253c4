# SPDX-License-Identifier: Apache-2.0
"""What the rounds of a folder cost: 100,000 files, then the last round with ten of them changed.

    python bench/files.py [FILES]

Exit codes: 0 measured.
"""

import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.figures import bench_line
from insula.migrate.fileapply import FileTarget
from insula.migrate.files import FileSource
from insula.migrate.wire import Wire
from insula.model.migration import FileRound

FILES = 100_000
PER_FOLDER = 100
CHANGED = 10


def fill(root: Path, count: int) -> None:
    """Make so many small files."""
    for number in range(count):
        folder = root / str(number // PER_FOLDER)
        if number % PER_FOLDER == 0:
            folder.mkdir()
        (folder / str(number)).write_bytes(b"%d" % number)


def one_round(source: FileSource, out: Wire, *, target: FileTarget, taken: Wire) -> float:
    """Do a round; returns its milliseconds, until all is applied."""

    def take() -> None:
        target.receive(taken.expect(FileRound), taken)

    since = time.perf_counter()
    thread = threading.Thread(target=take)
    thread.start()
    source.send_round(out)
    thread.join()
    return round((time.perf_counter() - since) * 1000, 1)


def measure(root: Path, count: int, *, is_watched: bool) -> dict[str, float]:
    near, far = socket.socketpair()
    out, taken = Wire(near), Wire(far)
    with tempfile.TemporaryDirectory(dir=root.parent) as name:
        opened = [os.open(each, os.O_RDONLY | os.O_DIRECTORY) for each in (root, name)]
        source = FileSource(opened[0], name="", mount_root=opened[0] if is_watched else None)
        target = FileTarget(opened[1])
        way = "watched" if is_watched else "compared"
        found = {f"{way}, first round, ms": one_round(source, out, target=target, taken=taken)}
        for number in range(CHANGED):
            (root / str(number) / str(number * PER_FOLDER)).write_bytes(b"changed")
        found[f"{way}, round of {CHANGED}, ms"] = one_round(source, out, target=target, taken=taken)
        found[f"{way}, idle round, ms"] = one_round(source, out, target=target, taken=taken)
        source.close()
        target.close()
        for each in opened:
            os.close(each)
    out.close()
    taken.close()
    return found


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else FILES
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        root = Path(name) / "source"
        root.mkdir()
        fill(root, count)
        figures = measure(root, count, is_watched=True) | measure(root, count, is_watched=False)
    for words, value in figures.items():
        print(f"{words:>32} {value:>9}")
    print(bench_line({"files": count, **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
