# SPDX-License-Identifier: Apache-2.0
"""What a container's first process must not inherit."""

import os
import subprocess
import sys

#: Ignores all that can be ignored, those of the C library (32, 33) too, as a careless parent of insulad may have done.
ALL_IGNORED = """
from insula.boot import child
from insula.kernel import libc

def ignored():
    line = next(each for each in open("/proc/self/status") if each.startswith("SigIgn"))
    return int(line.split()[1], 16)

ignore = bytearray((1).to_bytes(8, "little") + bytes(24))
for number in set(range(1, 65)) - {9, 19}:
    libc.rt_sigaction(number, libc.address_of(ignore), 0, 8)
before = ignored()
child.reset_signals()
print(before.bit_count(), ignored())
"""


def test_no_signal_stays_ignored() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = (sys.executable, "-c", ALL_IGNORED)
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["62", "0"]
