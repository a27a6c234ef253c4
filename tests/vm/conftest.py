# SPDX-License-Identifier: Apache-2.0
"""These tests take minutes and emulate whole machines: only `make test-vm` runs them."""

import os

import pytest

collect_ignore_glob = [] if os.environ.get("INSULA_TESTS_VM") else ["test_*.py"]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Tell of a failure at once: it is minutes until the end."""
    if report.failed:
        print(f"\n{report.nodeid}: {report.when} failed\n{report.longreprtext[-6000:]}", flush=True)
