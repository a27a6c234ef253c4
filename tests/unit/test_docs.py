# SPDX-License-Identifier: Apache-2.0
"""The pages that are drawn from tables in the code, and the links between all pages."""

import re
import subprocess
import sys
from pathlib import Path

from insula.cli.table import SUMMARIES
from insula.model.errors import InsulaError, _all_below
from insula.model.lifecycle import TRANSITIONS

ROOT = Path(__file__).parent.parent.parent
_LINK = re.compile(r"\]\((?!https?://)([^)#]+)")


def _pages() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def test_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/gen-docs"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_error_of_the_tree_stands_on_the_page() -> None:
    text = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    tree = [each for each in _all_below(InsulaError) if each.__module__ == InsulaError.__module__]
    missing = [each.code for each in tree if f"| `{each.code}` |" not in text]
    assert not missing


def test_every_transition_stands_on_the_page() -> None:
    text = (ROOT / "docs/lifecycle.md").read_text(encoding="utf-8")
    missing = [
        key
        for key, now in TRANSITIONS.items()
        if f"| {key[0].value} | {key[1].value} | {now.value} |" not in text
    ]
    assert not missing


def test_every_command_stands_in_the_list_of_commands() -> None:
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    missing = [name for name in SUMMARIES if f"`insula {name}" not in text]
    assert not missing


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in _pages()
        for target in _LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not broken
