# SPDX-License-Identifier: Apache-2.0
"""Read a profile, strictly: a wrong one is refused with the line and the reason.  Pure.

For what somebody sends and for what lies in the state folder alike: either may have been altered.
"""

import json
import posixpath
from collections.abc import Callable, Collection
from typing import NamedTuple

import msgspec

from insula.model.errors import InvalidSpec
from insula.model.folders import merged_folders
from insula.model.peer import parse_peer
from insula.model.profile import VERSION, Profile
from insula.model.spec import AppliedProfile

MAX_BYTES = 1 << 20
MAX_ENTRIES = 10_000
"""Of each part: as many as a recording keeps."""
MAX_FOLDERS = 100
"""That stay writable, none within another: each is a mount of its own."""
MAX_PROGRAMS = 300
"""As for folders."""
MAX_COUNT = 1 << 63
_HINT = "what `insula profile export` printed; see docs/profiles.md"


class Words(NamedTuple):
    """What this insula knows by name."""

    calls: Collection[str]
    capabilities: Collection[str]


def read_profile(text: bytes, *, words: Words) -> Profile:
    """Read a profile from its JSON.  Raises: InvalidSpec naming line and reason."""
    if len(text) > MAX_BYTES:
        raise _wrong(0, f"it has {len(text)} bytes, and none has more than {MAX_BYTES}")
    raw = _parse(text)
    lines = text.decode(errors="replace").splitlines()
    unknown = sorted(set(raw) - set(Profile.__struct_fields__))
    if raw.get("version", 1) not in range(1, VERSION + 1):
        raise _wrong(
            _line(lines, "version"), f"this insula does not know version {json.dumps(raw['version'])[:40]}"
        )
    if unknown:
        raise _wrong(_line(lines, unknown[0]), f"there is no field `{unknown[0][:80]}`")
    try:
        profile = msgspec.convert(raw, Profile)
    except msgspec.ValidationError as error:
        raise _wrong(_line(lines, _field_of(str(error))), str(error)) from None
    for check in _checks(profile, words):
        check.run(lines)
    if len(profile.programs or ()) > MAX_PROGRAMS:
        reason = f"{len(profile.programs or ())} programs are more than {MAX_PROGRAMS}"
        raise _wrong(_line(lines, "programs"), reason)
    folders = merged_folders(profile.written)
    if len(folders) > MAX_FOLDERS:
        reason = f"{len(folders)} folders, none of which lies in another, are more than {MAX_FOLDERS}: name those above them"
        raise _wrong(_line(lines, "written"), reason)
    return profile


def check_applied(profile: AppliedProfile | None) -> None:
    """Check what somebody wishes a container to be held to, or says that one is.  Raises: InvalidSpec naming the entry."""
    if profile is None:
        return
    paths = (*(profile.written or ()), *(profile.programs or ()), *profile.refused_folders)
    reasons = [_judge_folder(each) for each in paths]
    reasons += [_judge_peer(each) for each in (*(profile.outgoing or ()), *profile.serving)]
    if len(merged_folders(profile.written or ())) > MAX_FOLDERS or len(profile.programs or ()) > MAX_PROGRAMS:
        reasons.append(f"more than {MAX_FOLDERS} folders or {MAX_PROGRAMS} programs")
    if wrong := next(filter(None, reasons), ""):
        raise InvalidSpec(f"cannot hold a container to profile `{profile.name}`: {wrong}", hint=_HINT)


def _parse(text: bytes) -> dict[str, object]:
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise _wrong(error.lineno, f"it is no JSON: {error.msg}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise _wrong(0, f"it is no JSON: {type(error).__name__}") from None
    if not isinstance(raw, dict):
        raise _wrong(1, "it is no JSON object")
    return raw


class _Check(NamedTuple):
    """One part of a profile, and what its entries must be."""

    part: str
    entries: dict[str, int]
    judge: Callable[[str], str]
    """Says what is wrong with an entry; empty: nothing."""

    def run(self, lines: list[str]) -> None:
        if len(self.entries) > MAX_ENTRIES:
            reason = f"`{self.part}` has {len(self.entries)} entries, and none has more than {MAX_ENTRIES}"
            raise _wrong(_line(lines, self.part), reason)
        for entry, count in self.entries.items():
            reason = self.judge(entry)
            if not reason and not 0 <= count <= MAX_COUNT:
                reason = f"`{entry[:80]}` was not seen {count} times"
            if reason:
                raise _wrong(_line(lines, entry, after=self.part), reason)


def _checks(profile: Profile, words: Words) -> tuple[_Check, ...]:
    def call(name: str) -> str:
        return "" if name in words.calls else f"there is no system call `{name[:80]}`"

    def capability(name: str) -> str:
        return "" if name in words.capabilities else f"there is no capability `{name[:80]}`"

    return (
        _Check("calls", profile.calls, call),
        _Check("refused_calls", profile.refused_calls, call),
        _Check("capabilities", profile.capabilities or {}, capability),
        _Check("refused_capabilities", profile.refused_capabilities, capability),
        _Check("programs", profile.programs or {}, _judge_folder),
        _Check("refused_programs", profile.refused_programs, _judge_folder),
        _Check("written", profile.written, _judge_folder),
        _Check("refused_folders", profile.refused_folders, _judge_folder),
        _Check("outgoing", profile.outgoing, _judge_peer),
        _Check("listening", profile.listening, _judge_peer),
    )


def _judge_folder(path: str) -> str:
    if path.startswith("/") and posixpath.normpath(path) == path and "\0" not in path and len(path) < 4096:
        return ""
    return f"`{path[:80]}` is no path: absolute, without `.`, `..` and `/` at its end"


def _judge_peer(text: str) -> str:
    try:
        parse_peer(text)
    except ValueError as error:
        return str(error)
    return ""


def _field_of(message: str) -> str:
    # As `Expected `int`, got `str` - at `$.calls[...]``, or `… missing required field `calls``.
    _, _, path = message.partition("`$.")
    return path.split("`")[0].split("[")[0].split(".")[0]


def _line(lines: list[str], word: str, *, after: str = "") -> int:
    """Return the line, from 1, in which a key stands first, after that of another; 0: in none."""
    quoted = json.dumps(word)
    also = json.dumps(word, ensure_ascii=False)
    start = max(0, _line(lines, after) - 1) if after else 0
    return next(
        (number for number, line in enumerate(lines[start:], start + 1) if quoted in line or also in line), 0
    )


def _wrong(line: int, reason: str) -> InvalidSpec:
    where = f", line {line}" if line else ""
    return InvalidSpec(f"cannot use the profile{where}: {reason}", hint=_HINT)
