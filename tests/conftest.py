# SPDX-License-Identifier: Apache-2.0
"""For all tests: what is left behind is a failure, and so is a skip that nobody allowed.

`nothing_left_behind` runs around every test of tests/kernel and tests/system; the same count runs around each module and
the session, for what longer fixtures start.  A thing may take a moment to vanish (a killed process's namespaces do), so the
count is repeated until a deadline.  Source of the counts: /proc, /sys/fs/cgroup, `ip`, `nft`.
"""

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

try:
    from hypothesis import settings
except ImportError:  # tests that run within a guest do without
    settings = None  # type: ignore[assignment,misc]

sys.path.insert(0, str(Path(__file__).parent))

from leftovers import BY_MODULE, MARKER, Snapshot, take_snapshot, wait_until_gone

_COUNTED_FOLDERS = ("kernel", "system")
_ALLOWED_SKIPS = Path(__file__).parent / "allowed_skips.txt"
_refused_skips: list[str] = []
#: Hosts that live for a whole module make some things when a test first needs them (a bridge, the mask of the host image,
#: the parent of all cgroups).  Their fixtures judge what a test leaves in them; the whole is counted around the module.
_HOSTS_OF_A_MODULE = {"module_host", "module_pair", "module_world"}

# No test judges a time: the machine may be busy with something else.
if settings is not None:
    settings.register_profile("insula", deadline=None)
    settings.load_profile("insula")

# Every process that a test starts inherits it, so that one which left our process tree is still known as ours.
os.environ.setdefault(MARKER, uuid.uuid4().hex)


def _is_counted(path: Path) -> bool:
    relative = (
        path.relative_to(Path(__file__).parent).parts if path.is_relative_to(Path(__file__).parent) else ()
    )
    return bool(relative) and relative[0] in _COUNTED_FOLDERS


def _judge(before: Snapshot) -> None:
    left = wait_until_gone(before)
    if left:
        pytest.fail("left behind:\n" + "\n".join(f"  {line}" for line in left), pytrace=False)


@pytest.fixture(autouse=True, scope="session")
def _session_leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    if not any(_is_counted(item.path) for item in request.session.items):
        yield
        return
    before = take_snapshot(has_descriptors=False)
    yield
    _judge(before)


@pytest.fixture(autouse=True, scope="module")
def _module_leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    if not _is_counted(request.path):
        yield
        return
    before = take_snapshot(has_descriptors=False)
    yield
    _judge(before)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a kernel or system test that leaves a process, descriptor, mount, namespace, link, rule or cgroup."""
    if not _is_counted(request.path):
        yield
        return
    if _HOSTS_OF_A_MODULE & set(request.fixturenames) or os.environ.get(BY_MODULE):
        yield
        return
    before = take_snapshot()
    yield
    _judge(before)


def _allowed_skips() -> tuple[str, ...]:
    lines = _ALLOWED_SKIPS.read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        line = f"{report.nodeid}: {reason}"
        if not any(allowed in line for allowed in _allowed_skips()):
            _refused_skips.append(line)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note every skip that is not in tests/allowed_skips.txt."""
    _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note a whole module that skips itself."""
    _note_skip(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With CI=true a skip that nobody allowed fails the run.  Notes for scripts/judged.sh whether all were run, and only tests failed."""
    is_refused = os.environ.get("CI") == "true" and bool(_refused_skips)
    cache = getattr(session.config, "cache", None)  # not even None with `-p no:cacheprovider`, as in tests/vm
    if cache is not None:
        cache.set("insula/ended", -1 if is_refused else int(session.exitstatus))
    if is_refused and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the skips that fail the run."""
    if os.environ.get("CI") == "true" and _refused_skips:
        terminalreporter.section("skips that are not in tests/allowed_skips.txt")
        for line in _refused_skips:
            terminalreporter.write_line(line)
