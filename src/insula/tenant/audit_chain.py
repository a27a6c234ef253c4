# SPDX-License-Identifier: Apache-2.0
"""Whether the audit log is as it was written, and where the next line of it goes on."""

from typing import NamedTuple

from insula.tenant.audit_files import FIRST_PREV, NEW, Head, Line, Log, Mark, lines_backwards, lines_of, parse

HEAD_LOST = "head_lost"
"""Result of the line that says that insulad began without a head: what had been cut off before, nobody can tell."""


class Verdict(NamedTuple):
    """What `verify` found."""

    lines: int
    files: int
    problem: str
    """Empty: every line is as it was written.  Else the first that is not: file, line, what is wrong."""


def verify(log: Log) -> Verdict:
    """Look whether each line follows the one before it, the first is the first that is kept, and the last is the head."""
    before: Mark | None = None
    count = 0
    for part in log.parts:
        for number, text in enumerate(lines_of(part), 1):
            this = parse(text[:-1]) if text.endswith(b"\n") else None
            problem = _judge(text, this, before=before, head=log.head)
            if this is None or problem:
                return Verdict(count, len(log.parts), f"{part.name}, line {number}: {problem}")
            before = this.mark
            count += 1
    return Verdict(count, len(log.parts), _judge_end(before, log.head))


def _judge(text: bytes, this: Line | None, *, before: Mark | None, head: Head | None) -> str:
    if this is None:
        return "it is no line of this log" if text.endswith(b"\n") else "it is cut off"
    if before is None:
        return _judge_first(this, head)
    if this.mark.number != before.number + 1:
        return f"number {this.mark.number} follows {before.number}"
    if this.prev != before.digest:
        return f"line number {before.number} before it was changed"
    if this.result == HEAD_LOST:
        return "insulad began here without its head: lines before it may have been cut off"
    return ""


def _judge_first(this: Line, head: Head | None) -> str:
    """The oldest file that is kept begins with whatever was before it."""
    number = this.mark.number
    if number == 1 and this.prev != FIRST_PREV:
        return "the first line names one before it"
    # A rotation that a crash has interrupted leaves more than the head tells.
    if head is not None and number > head.first:
        return f"{number - head.first} lines are missing before it"
    return ""


def _judge_end(end: Mark | None, head: Head | None) -> str:
    if head is None:
        return "audit.head: it cannot be read, so nobody can tell whether lines are missing" if end else ""
    number = end.number if end is not None else 0
    if head.last.number > number:
        return f"audit.log: {head.last.number - number} lines are missing at the end"
    if head.last != (end or NEW.last):
        return "audit.log: the last line is not the one that was written last"
    return ""


def taken_up(log: Log) -> Head:
    """Return the head to go on from.

    A crash may have come after a line and before its head: lines that follow the head, each the one before it, are taken up.
    Otherwise the head stays what it is: then lines are missing, and `verify` tells.
    """
    lines = map(parse, lines_backwards(log))
    newest = next(lines, None)
    if log.head is None:
        return _from_lines(newest, log) if newest is not None else NEW
    line = newest
    while line is not None and line.mark != log.head.last and line.mark.number > log.head.last.number:
        older = next(lines, None)
        if line.prev == log.head.last.digest and line.mark.number == log.head.last.number + 1:
            break
        if older is None or older.mark.digest != line.prev:
            return log.head
        line = older
    else:
        return log.head
    return log.head._replace(last=newest.mark) if newest is not None else log.head


def _from_lines(newest: Line, log: Log) -> Head:
    first = parse(next(lines_of(log.parts[0])).rstrip(b"\n"))
    return Head(newest.mark, first=first.mark.number if first is not None else 1)
