# SPDX-License-Identifier: Apache-2.0
"""How long CRIU's lazy dump has a program stand, by its memory: with all memory in its sight, and with ours hidden from it.

Frozen to `post-dump`; each dump is refused there, so that the program runs on.  Beside it: how long it takes to show CRIU what
it must see (within that time), and to list the pages that there are (beside it, in a migration).

    python bench/dump.py [TURNS [--timeline]]     --timeline: CRIU's own log of the last dump, the longest steps

Exit codes: 0 measured; 3 something is missing on this machine.
"""

import contextlib
import itertools
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import carried
from bench.figures import bench_line
from insula.kernel import criu
from insula.kernel.criu_find import find_criu
from insula.migrate.track import open_tracker
from insula.runtime import hidden, lazy
from insula.runtime.dump import memory_folder
from spawned import Spawned, Started, spawner

TURNS = 5
SIZES_MB = (16, 100, 1024, 2048)
EXIT_MISSING = 3
STEPS = 40
_LINE = re.compile(r"\((\d+\.\d+)\) (.*)")


@dataclass(frozen=True, kw_only=True)
class Dump:
    """Milliseconds of one dump."""

    frozen: float
    show: float
    list: float


def dump(host: Spawned, container: Started, *, is_hidden: bool, log_level: int = 2) -> tuple[Dump, str]:
    """Dump and refuse; returns CRIU's log, too."""
    pids = tuple(host.group(container).pids())
    times: dict[str, float] = {}
    with ExitStack() as held:
        images = held.enter_context(memory_folder())
        maps = held.enter_context(hidden.HiddenMemory(pids if is_hidden else ()))
        extra = lazy.dump_descriptors(held)
        flags = {"page_maps": True} if maps.descriptor >= 0 else {}
        connection, _ = carried.launch(
            host, images, extra=(*extra, maps.descriptor) if flags else extra, **flags
        )
        held.enter_context(connection)

        def handle(stage: criu.Notification) -> bool:
            if stage.stage == "network-lock":
                times["frozen"] = time.monotonic()
                maps.show()
                times["shown"] = time.monotonic()
            times[stage.stage] = time.monotonic()
            if stage.stage == "post-dump":
                open_tracker(lambda: pids).scan_last()
                times["listed"] = time.monotonic()
            return stage.stage != "post-dump"

        criu.request(connection, criu.DUMP, _options(container, log_level), handle=handle)
        log = carried.image(images, "dump.log").decode(errors="replace")
    done = Dump(
        frozen=(times["post-dump"] - times["frozen"]) * 1000,
        show=(times["shown"] - times["frozen"]) * 1000,
        list=(times["listed"] - times["post-dump"]) * 1000,
    )
    return done, log


def _options(container: Started, log_level: int) -> criu.Options:
    binds = enumerate(container.plan.mounts)
    return criu.Options(
        images_dir=carried.IMAGES,
        pid=container.pid,
        external=("mnt[/dev]:dev", *(f"mnt[{each.target}]:mount{number}" for number, each in binds)),
        log_file="dump.log",
        log_level=log_level,
        lazy_pages=True,
        config_file=lazy.CONFIG_FILE,
    )


def steps(log: str) -> list[tuple[float, str]]:
    """Return what took longest between two lines of CRIU's log.  Pure."""
    lines = [(float(found[1]), found[2]) for found in map(_LINE.match, log.splitlines()) if found]
    gaps = [
        ((after[0] - before[0]) * 1000, f"{before[0] * 1000:7.1f} {before[1]}")
        for before, after in itertools.pairwise(lines)
    ]
    return sorted(gaps, reverse=True)[:STEPS]


@contextlib.contextmanager
def _host() -> Iterator[Spawned]:
    folder = Path(tempfile.mkdtemp(prefix="insula-bench-"))
    folder.chmod(0o755)
    try:
        with spawner(folder) as host, host.connected():
            yield host
    finally:
        shutil.rmtree(folder)


def main() -> int:
    if find_criu() is None or os.geteuid() != 0:
        print("bench/dump.py needs root and a CRIU: run scripts/setup", file=sys.stderr)
        return EXIT_MISSING
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else TURNS
    facts: dict[str, object] = {}
    with _host() as host:
        for megabytes in SIZES_MB:
            container = carried.start(host, f"memory = anonymous({megabytes})\nsay('ready')\nwait('go')\n")
            for is_hidden in (False, True):
                done = [dump(host, container, is_hidden=is_hidden)[0] for _ in range(turns + 1)][1:]
                name = f"{'hidden' if is_hidden else 'seen'}_{megabytes}mb"
                facts[f"{name}_ms"] = round(statistics.median(each.frozen for each in done), 1)
                if is_hidden:
                    facts[f"show_{megabytes}mb_ms"] = round(statistics.median(each.show for each in done), 2)
                    facts[f"list_{megabytes}mb_ms"] = round(statistics.median(each.list for each in done), 2)
                print(
                    f"{name}: {facts[f'{name}_ms']} ms of {[round(each.frozen) for each in done]}", flush=True
                )
            if "--timeline" in sys.argv:
                for took, what in steps(dump(host, container, is_hidden=True, log_level=4)[1]):
                    print(f"{took:7.1f} ms after {what}")
            host.end(container)
    print(bench_line(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
