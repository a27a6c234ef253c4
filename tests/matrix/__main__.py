# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.matrix [--moves N] [PROGRAM …]`: carry the programs (all by default), write the table.  Needs root.

Exit codes: 0 no client lost anything (programs that could not be carried are rows with a reason); 1 one did, or something
was left behind; 3 something is missing on this machine; 130 after ctrl-c.
"""

import argparse
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from demo import check, cleanup, hosts  # noqa: E402
from demo.hosts import CommandFailed, Lan, World  # noqa: E402
from tests.matrix import results  # noqa: E402
from tests.matrix.image import ImageFailed, get_image  # noqa: E402
from tests.matrix.journey import IMAGE, Journey  # noqa: E402
from tests.matrix.program import Program  # noqa: E402
from tests.matrix.programs import PROGRAMS  # noqa: E402

from insula.kernel.criu_find import find_criu  # noqa: E402
from insula.model.errors import InsulaError  # noqa: E402

EXIT_MISSING, INTERRUPTED = 3, 130
LAN = Lan(name="lan1", tenant="root", prefix="10.99.1")
FIRST_ADDRESS = 10
IMPORT_S = 900.0
MOVES = 6
LOG_LINES = 4


def main() -> int:
    """Run what was asked for and clean up, whatever happens."""
    parser = argparse.ArgumentParser(prog="make matrix", description="carry programs between two hosts")
    parser.add_argument("--moves", type=int, default=MOVES, metavar="N", help=f"of each (default {MOVES})")
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help="names")
    options = parser.parse_args()
    if unknown := [name for name in options.programs if name not in PROGRAMS]:
        parser.error(f"no program `{unknown[0]}`; there are: {' '.join(PROGRAMS)}")
    if check.refuse("matrix"):
        return EXIT_MISSING
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    chosen = [PROGRAMS[name] for name in options.programs or PROGRAMS]
    run = Run(chosen, moves=options.moves)
    try:
        run.go()
    except KeyboardInterrupt:
        print("matrix: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (CommandFailed, ImageFailed, InsulaError, OSError, subprocess.SubprocessError) as error:
        print(f"matrix: {error}", file=sys.stderr)
        return 1
    finally:
        for line in run.stayed:
            print(f"matrix: left behind: {line}", file=sys.stderr)
    print(run.line(), flush=True)
    return 1 if run.failed or run.stayed else 0


class Run:
    """Two hosts, one program after the other; each result is written down at once."""

    def __init__(self, chosen: list[Program], *, moves: int) -> None:
        self._chosen, self._moves = chosen, moves
        self._rows: list[results.Row] = []
        self.stayed: list[str] = []

    @property
    def failed(self) -> list[str]:
        return [row.name for row in self._rows if row.problem]

    def line(self) -> str:
        """Return the last line."""
        moves, carried = sum(row.moves for row in self._rows), sum(row.carried for row in self._rows)
        words = (
            f"MATRIX {len(self._rows)} programs, {moves} moves, {carried} carried, {len(self.failed)} failed"
        )
        return words + (f": {' '.join(self.failed)}" if self.failed else "")

    def go(self) -> None:
        """Raises: ImageFailed, CommandFailed, InsulaError, OSError."""
        tar = get_image(PROGRAMS.values())
        hosts.GROUP = "root"
        world = World(lans=(LAN,))
        with ExitStack() as stack:
            before = cleanup.look()
            stack.callback(self._count, world, before)
            stack.enter_context(world)
            world.start()
            world.pair("alpha", "beta")
            world.create_networks()
            print("matrix: both hosts import the image", flush=True)
            import_image(world, tar)
            keys = make_key(world.folder)
            for number, program in enumerate(self._chosen, start=FIRST_ADDRESS):
                self._one(program, world=world, number=number, keys=keys)

    def _one(self, program: Program, *, world: World, number: int, keys: tuple[str, str]) -> None:
        journey = Journey(program, world=world, lan=LAN, number=number, moves=self._moves)
        row = journey.travel(words=keys)
        self._rows.append(row)
        why = row.problem or row.refused
        print(
            f"{row.name:18} {row.carried}/{row.moves} carried, {row.answers:6} answers, at rest {row.rest_ms:6.1f} ms,"
            f" gap {row.gap_ms:7.1f} ms, frozen {row.frozen_ms:6.1f} ms{'  FAILED: ' if row.problem else '  '}{why}",
            flush=True,
        )
        if row.problem:
            for host in world.hosts.values():
                print("\n".join(hosts.tail(host).splitlines()[-LOG_LINES:]), file=sys.stderr, flush=True)
        now = results.load()
        rows = {name: each for name, each in now.rows.items() if name in PROGRAMS}
        results.save(
            replace(now, kernel=os.uname().release, criu=criu_version(), rows={**rows, row.name: row})
        )

    def _count(self, world: World, before: cleanup.Machine) -> None:
        if hasattr(world, "folder"):
            self.stayed += world.find_leftovers(before)


def import_image(world: World, tar: Path) -> None:
    """Give both hosts the image.  Raises: CommandFailed."""
    running = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "insula.cli",
                "-H",
                f"unix://{host.socket}",
                "image",
                "import",
                tar,
                IMAGE,
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            stdout=subprocess.DEVNULL,
        )
        for host in world.hosts.values()
    ]
    codes = [each.wait(timeout=IMPORT_S) for each in running]
    if any(codes):
        raise CommandFailed("the image cannot be imported")


def make_key(folder: Path) -> tuple[str, str]:
    """Return the file of a new ssh key, and its public half."""
    path = folder / "key"
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "matrix", "-f", str(path)]
    subprocess.run(words, check=True, timeout=60)
    return str(path), path.with_suffix(".pub").read_text(encoding="ascii").strip()


def criu_version() -> str:
    """Return the version of the CRIU that both hosts use."""
    found = find_criu()
    return found.version if found else ""


if __name__ == "__main__":
    sys.exit(main())
