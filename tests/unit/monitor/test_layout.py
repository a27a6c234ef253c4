# SPDX-License-Identifier: Apache-2.0
"""`monitor/layout.py` says the same as `programs/watch.h`."""

import re
import subprocess
from pathlib import Path

from insula.monitor import layout
from insula.monitor.layout import Kind
from insula.monitor.probes import OBJECT
from insula.monitor.shapes import SHAPES
from waiting import DEADLINE_S

HEADER = OBJECT.parent / "watch.h"
SIZES = {
    "struct watch": layout.WATCH.size,
    "struct count": layout.COUNT.size,
    "struct call_key": layout.CALL_KEY.size,
    "struct durations": layout.DURATIONS.size,
    "struct detail_key": layout.DETAIL_KEY.size,
    "struct shape": layout.SHAPE.size,
    "struct event": layout.HEAD_BYTES + layout.PLACES_BYTES + layout.TEXT_BYTES,
}


def test_sizes_are_those_of_the_header(tmp_path: Path) -> None:
    lines = "".join(f'printf("%zu\\n", sizeof({name}));' for name in SIZES)
    source = tmp_path / "sizes.c"
    source.write_text(
        f'#include <stdio.h>\n#include <linux/types.h>\n#include "{HEADER}"\nint main(void) {{ {lines} }}\n'
    )
    subprocess.run(["cc", "-o", tmp_path / "sizes", source], check=True, timeout=60)
    told = subprocess.run(
        [tmp_path / "sizes"], check=True, capture_output=True, text=True, timeout=DEADLINE_S
    ).stdout
    assert dict(zip(SIZES, map(int, told.split()), strict=True)) == SIZES


def test_flags_are_those_of_the_header() -> None:
    flags = {name: int(value) for name, value in re.findall(r"define WATCH_(\w+) (\d+)", HEADER.read_text())}
    assert flags == {name: getattr(layout, name) for name in flags}
    assert len(flags) == len(set(flags.values())) > 0


def test_every_call_that_is_an_event_has_a_program_of_its_own() -> None:
    """And `umount2` that of the kernel's function `umount`."""
    text = (OBJECT.parent / "calls.bpf.c").read_text()
    programs = re.findall(r"CALL(?:_AS)?\((\w+)(?:, \w+)?\)", text.split("As in `monitor/shapes.py`")[1])
    assert programs == list(SHAPES)


def test_kinds_are_those_of_the_header() -> None:
    (body,) = re.findall(r"enum kind \{(.*?)\};", HEADER.read_text(), re.DOTALL)
    names = re.findall(r"KIND_(\w+),", body)
    assert names[0] == "NONE"
    short = {"CAP": "CAPABILITY"}
    assert [short.get(name, name) for name in names[1:]] == [kind.name for kind in sorted(Kind)]


def test_what_all_processors_counted_is_added() -> None:
    assert layout.sum_counts(layout.COUNT.pack(2, 1) + layout.COUNT.pack(3, 0)) == (5, 1)
    one = layout.DURATIONS.pack(2, 500, *([0, 2] + [0] * 22))
    other = layout.DURATIONS.pack(3, 100, *([1] + [0] * 23))
    total = layout.sum_durations(one + other)
    assert (total.calls, total.nanoseconds) == (5, 600)
    assert total.steps[:3] == (1, 2, 0)
