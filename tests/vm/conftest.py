# SPDX-License-Identifier: Apache-2.0
"""These tests take minutes and emulate whole machines: only `make test-vm` runs them."""

import os

collect_ignore_glob = [] if os.environ.get("INSULA_TESTS_VM") else ["test_*.py"]
