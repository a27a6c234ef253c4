# SPDX-License-Identifier: Apache-2.0
"""The limit of descriptors is raised for us and set for others, in a process of its own."""

import subprocess
import sys

from waiting import DEADLINE_S

PROGRAM = """
import os, resource
from insula.kernel import descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))
print(descriptors.raise_limit(), resource.getrlimit(resource.RLIMIT_NOFILE))
print(descriptors.raise_limit(), resource.getrlimit(resource.RLIMIT_NOFILE))
descriptors.limit(os.getpid(), soft=32)
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_soft_limit_is_raised_and_told() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=DEADLINE_S
    )
    assert done.stdout.splitlines() == ["64 (128, 128)", "128 (128, 128)", "(32, 128)"]
