# SPDX-License-Identifier: Apache-2.0
"""For the checks of the checklist: one host for all of them, the count of what held, and its last line.

A check is one test; its number is the first word of its name (`test_a16_…`).  The line `SECURITY {"checks", "held"}` counts
them; a number of the checklist without a check, when all files were chosen, is a failure.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import hosted
from accounts import AccountsHost
from leftovers import take_snapshot, wait_until_gone

FOLDER = Path(__file__).parent
NUMBER = re.compile(r"test_([atif]\d+|2[ab])_")
#: A1–A30, T1–T13, I1–I8, F1–F10, and the two sections of the checklist that have no numbers of their own.
NUMBERS = frozenset(
    [f"{letter}{number}" for letter, last in (("a", 30), ("t", 13), ("i", 8), ("f", 10)) for number in range(1, last + 1)]
    + ["2a", "2b"]
)  # fmt: skip
_results: dict[str, bool] = {}


def number_of(name: str) -> str:
    """Return the number that a test's name begins with, "" for none."""
    found = NUMBER.match(name)
    return found[1] if found else ""


def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Refuse a check without a number, and a number without a check.  Two hosts first: their end is everybody's who runs."""
    items.sort(key=lambda item: "pair" not in getattr(item, "fixturenames", ()))
    ours = [item for item in items if item.path.is_relative_to(FOLDER)]
    if nameless := [item.nodeid for item in ours if not number_of(item.name)]:
        raise pytest.UsageError(f"without a number of the checklist: {nameless}")
    every = {path.name for path in FOLDER.glob("test_*.py")}
    is_whole = {item.path.name for item in ours} == every and not session.config.option.keyword
    if is_whole and (missing := NUMBERS - {number_of(item.name) for item in ours}):
        raise pytest.UsageError(f"numbers of the checklist without a check: {sorted(missing)}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count each check once: it held if none of its parts failed."""
    if number_of(report.nodeid.rpartition("::")[2]) and not report.skipped:
        _results[report.nodeid] = _results.get(report.nodeid, True) and report.passed


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Note for scripts/test-security what it says if the checks that failed hold five times more."""
    cache = getattr(session.config, "cache", None)
    if cache is not None:
        counts = _counts()
        cache.set("insula/security", counts | {"unsteady": counts["checks"] - counts["held"]})


def _counts() -> dict[str, int]:
    return {"checks": len(_results), "held": sum(_results.values())}


def pytest_unconfigure() -> None:
    """Print the count."""
    if _results:
        print("SECURITY " + json.dumps(_counts()))


@pytest.fixture(scope="session")
def program() -> Iterator[Path]:
    """The CLI where every user may run it."""
    with hosted.installed_program() as made:
        yield made


@pytest.fixture(scope="session")
def image() -> bytes:
    """A tar with a static busybox."""
    return hosted.busybox_tar()


@pytest.fixture(scope="session")
def the_host(program: Path, image: bytes) -> Iterator[hosted.Host]:
    """The host of all checks; nothing of it is left at the end."""
    before = take_snapshot(has_descriptors=False)
    with hosted.host(program, image) as made:
        yield made
    assert wait_until_gone(before) == []


@pytest.fixture(scope="session")
def the_ruled(program: Path, image: bytes) -> Iterator[AccountsHost]:
    """A host with accounts: alice and bob have homes there, and a policy says what they may ask for."""
    with hosted.host(program, image, kind=AccountsHost) as made:
        assert isinstance(made, AccountsHost)
        yield made


@pytest.fixture
def ruled(the_ruled: AccountsHost) -> Iterator[AccountsHost]:
    """The host with accounts, without containers, and with the usual policy afterwards."""
    for _ in hosted.emptied_after(the_ruled):
        yield the_ruled
        if the_ruled.policy.exists():
            the_ruled.policy.unlink()
            the_ruled.root("policy", "reload")


@pytest.fixture
def host(the_host: hosted.Host) -> Iterator[hosted.Host]:
    """A host without containers."""
    yield from hosted.emptied_after(the_host)


@pytest.fixture
def root(host: hosted.Host) -> hosted.Person:
    return host.root


@pytest.fixture
def alice(host: hosted.Host) -> hosted.Person:
    return host.alice


@pytest.fixture
def bob(host: hosted.Host) -> hosted.Person:
    return host.bob
