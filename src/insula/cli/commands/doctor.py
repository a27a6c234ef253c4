# SPDX-License-Identifier: Apache-2.0
"""`insula doctor`: what this host lacks, what that costs and how to cure it.

Works without a daemon.  Exit codes: 0 containers run here; 1 they do not; 2 the command line is wrong.
"""

import os
import sys
import textwrap
from collections.abc import Sequence

from insula.kernel.probe import Finding, State, probe_all, to_json

COLUMNS = 80
EXIT_CANNOT_RUN = 1
EXIT_USAGE = 2
USAGE = """\
usage: insula doctor [--format table|json]

Try every kernel feature and tool that insula uses and show what is missing,
what that costs and how to cure it.
"""
_NAME_WIDTH = 27
_STATE_WIDTH = 9
_INDENT = " " * 4


def run(arguments: list[str]) -> int:
    """Probe this host and show the findings."""
    if arguments in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    form = _format_of(arguments)
    if form is None:
        print(f"insula doctor: cannot read `{' '.join(arguments)}`\n\n{USAGE}", end="", file=sys.stderr)
        return EXIT_USAGE
    findings = probe_all()
    print(to_json(findings) if form == "json" else render(findings))
    return EXIT_CANNOT_RUN if any(finding.is_fatal for finding in findings) else 0


def _format_of(arguments: list[str]) -> str | None:
    words = [word for argument in arguments for word in argument.split("=", 1)] or ["--format", "table"]
    if len(words) == 2 and words[0] in ("--format", "-f") and words[1] in ("table", "json"):
        return words[1]
    return None


def render(findings: Sequence[Finding]) -> str:
    """Write the findings as a table of at most 80 columns, closed by one sentence."""
    lines = [f"{'FEATURE':{_NAME_WIDTH}}{'STATE':{_STATE_WIDTH}}NEEDED FOR, DETAIL"]
    for finding in findings:
        lines += _rows(finding)
    return "\n".join((*lines, "", _verdict(findings)))


def _rows(finding: Finding) -> list[str]:
    feature = finding.feature
    is_found = finding.state is State.FOUND
    text = f"{feature.needed_for} ({finding.detail})" if is_found and finding.detail else feature.needed_for
    state = finding.state.value if is_found else finding.state.value.upper()
    head = f"{feature.name:{_NAME_WIDTH}}{state:{_STATE_WIDTH}}"
    rows = textwrap.wrap(text, COLUMNS, initial_indent=head, subsequent_indent=" " * len(head))
    if is_found:
        return rows
    for title, words in (("reason", finding.detail), ("costs", feature.consequence), ("cure", feature.cure)):
        start = f"{_INDENT}{title}: "
        rows += textwrap.wrap(words, COLUMNS, initial_indent=start, subsequent_indent=" " * len(start))
    return rows


def _verdict(findings: Sequence[Finding]) -> str:
    missing = [finding for finding in findings if finding.state is State.MISSING]
    fatal = [finding.feature.name for finding in missing if finding.is_fatal]
    if fatal:
        words = f"containers cannot run here: {', '.join(fatal)} missing"
        if os.geteuid() != 0:
            words += "; but this user is not root, who may find them: sudo insula doctor"
        return textwrap.fill(words, COLUMNS, break_on_hyphens=False)
    return f"containers run here; {len(findings) - len(missing)} of {len(findings)} features found"


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
