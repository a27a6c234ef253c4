# SPDX-License-Identifier: Apache-2.0
"""What of a container's arguments and paths is told to whom: the one place that all of it passes on its way to a reader.

    hide_arguments = ["password=*", "--token=*", "--key *"]      hide_paths = ["/srv/secret"]
      mysql password=x --token=y --key z  → mysql password=[hidden] --token=[hidden] --key [hidden]
      /srv/secret/a/b                     → /srv/secret/[hidden]

What stands before a pattern's first wildcard is told, the rest of the argument is not; of a pattern of two words the
first is about one argument, and the next argument is hidden.  A relative path may lie anywhere: where any folder is
hidden it is, too, like an argument in which a hidden folder is named.  Filters look at what is told, so that nobody can
guess the rest by asking for it.  A container's environment is hidden like arguments, each NAME=value by itself.  Messages
(errors, the log) are told without such paths and arguments, too; of the latter only those whose pattern begins with a
word, since any would hide every message.  The name of a process is told: 15 bytes that it chooses itself.  Pure.
"""

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

from msgspec.structs import replace

from insula.model.change import Alarm, Change, ProfileDrift, alarm_of, drift_of
from insula.model.folders import normal_path
from insula.model.monitor import Event
from insula.model.profile import Drift, Profile
from insula.model.record import ContainerRecord, ErrorBody, ImageConfig, ImageRecord, OperationRecord
from insula.model.spec import AppliedProfile, MountKind, MountWish

HIDDEN = "[hidden]"
_Paths = TypeVar("_Paths", tuple[str, ...], tuple[str, ...] | None)
_UNIX = "unix:"
_WILDCARD = re.compile(r"[*?\[]")
_REPEATED = re.compile(r"/(\./|/)+")
_ABSOLUTE = re.compile(r"/[^\s:;,=\"']*")
_OBJECT = re.compile(r"`([^`]*)`(?![^\s:;,.)'])")
"""What an error is about stands in backticks; one within a name ends none."""
_BETWEEN_WORDS = re.compile(r"([\s`]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Redaction:
    """What is hidden."""

    arguments: tuple[str, ...] = ()
    """Shell patterns of one argument, or `PATTERN *` for the one after it."""
    paths: tuple[str, ...] = ()
    """Folders and files: they themselves can be told, what is below cannot."""

    @property
    def is_empty(self) -> bool:
        return not self.arguments and not self.paths

    def event(self, event: Event) -> Event:
        """Return what may be told of an event."""
        if self.is_empty:
            return event
        return replace(
            event,
            arguments=self._arguments(event.arguments),
            path=self.path(event.path),
            other_path=self.path(event.other_path),
            address=self._address(event.address),
        )

    def change(self, change: Change) -> Change:
        """Return what may be told of a change."""
        if self.is_empty:
            return change
        if isinstance(change, ProfileDrift):
            return drift_of(change, profile=change.profile, seen=self.event(change.seen))
        if isinstance(change, Alarm):
            return alarm_of(change, rule=change.rule, seen=self.event(change.seen))
        return replace(change, detail=self.text(change.detail))

    def profile(self, profile: Profile) -> Profile:
        """Return what may be told of a profile."""
        if self.is_empty:
            return profile
        told = replace(
            profile,
            programs=None if profile.programs is None else self._counted(profile.programs),
            written=self._counted(profile.written),
            refused_programs=self._counted(profile.refused_programs),
            refused_folders=self._counted(profile.refused_folders),
        )
        return replace(told, is_redacted=profile.is_redacted or told != profile)

    def drift(self, drift: Drift) -> Drift:
        """Return what may be told of something that a profile lacks."""
        match drift.part:
            case "written" | "programs":
                return replace(drift, thing=self.path(drift.thing))
            case "outgoing":
                return replace(drift, thing=self._address(drift.thing))
            case _:
                return drift

    def record(self, record: ContainerRecord) -> ContainerRecord:
        """Return what may be told of a container: its command, environment, folders, and the paths of its profile."""
        if self.is_empty:
            return record
        spec, config = record.spec, record.config
        head = config.entrypoint if spec.entrypoint is None else spec.entrypoint
        return replace(
            record,
            spec=replace(
                spec,
                entrypoint=None if spec.entrypoint is None else self._arguments(spec.entrypoint),
                command=self._arguments_after(head, spec.command),
                environment=tuple(map(self._argument, spec.environment)),
                working_directory=self.path(spec.working_directory),
                mounts=tuple(map(self._mount, spec.mounts)),
                profile=self.applied(spec.profile),
            ),
            config=self._config(config, head=head),
            error=self.text(record.error),
            profile=self.applied(record.profile),
        )

    def image(self, image: ImageRecord) -> ImageRecord:
        """Return what may be told of an image: of its command, environment and folders."""
        if self.is_empty:
            return image
        return replace(image, config=self._config(image.config, head=image.config.entrypoint))

    def _config(self, config: ImageConfig, *, head: tuple[str, ...]) -> ImageConfig:
        """head: what the command is appended to."""
        return replace(
            config,
            entrypoint=self._arguments(config.entrypoint),
            command=self._arguments_after(head, config.command),
            environment=tuple(map(self._argument, config.environment)),
            working_directory=self.path(config.working_directory),
            volumes=tuple(map(self.path, config.volumes)),
        )

    def operation(self, operation: OperationRecord) -> OperationRecord:
        """Return what may be told of an operation: of its messages and of what came of it."""
        if self.is_empty:
            return operation
        progress = operation.progress
        return replace(
            operation,
            progress=replace(progress, message=self.text(progress.message)),
            result={
                name: self.text(value) if isinstance(value, str) else value
                for name, value in operation.result.items()
            },
            error=operation.error and self.error(operation.error),
        )

    def error(self, error: ErrorBody) -> ErrorBody:
        """Return what may be told of an error."""
        return replace(error, message=self.text(error.message), hint=self.text(error.hint))

    def applied(self, profile: AppliedProfile | None) -> AppliedProfile | None:
        """Return what may be told of what a container is held to."""
        if profile is None:
            return None
        return replace(
            profile,
            programs=self._paths(profile.programs),
            written=self._paths(profile.written),
            outgoing=profile.outgoing and _once(map(self._address, profile.outgoing)),
            refused_programs=self._paths(profile.refused_programs),
            refused_folders=self._paths(profile.refused_folders),
        )

    def text(self, text: str) -> str:
        """Return what may be told of a message: nothing of one that names what is hidden elsewhere than in backticks."""
        if self.is_empty:
            return text
        told = _OBJECT.sub(lambda found: f"`{self._object(found[1])}`", text)
        return HIDDEN if self._is_named(told) else self._without_arguments(told)

    def _object(self, name: str) -> str:
        told = self.path(name) if name.startswith("/") else name
        return HIDDEN if self._is_named(told) else told

    def _is_named(self, text: str) -> bool:
        told_before = text.replace(f"/{HIDDEN}", "")
        return any(_names(told_before, folder) for folder in self.paths)

    def _without_arguments(self, text: str) -> str:
        """Hide words of a message that are arguments for sure: whose pattern begins with a word."""
        patterns = tuple(each for each in self.arguments if _before_wildcard(each))
        if not patterns:
            return text
        parts = _BETWEEN_WORDS.split(text)
        parts[::2] = Redaction(arguments=patterns).words(parts[::2])
        return "".join(parts)

    def words(self, arguments: Iterable[str]) -> tuple[str, ...]:
        """Return what may be told of a command line."""
        return self._arguments(tuple(arguments))

    def path(self, path: str) -> str:
        """Return what may be told of a path as a program gave it."""
        if not self.paths or not path:
            return path
        if not path.startswith("/"):
            return HIDDEN
        plain = normal_path(path)
        above = [each for each in self.paths if _is_below(plain, each)]
        return posixpath.join(min(above, key=len), HIDDEN) if above else path

    def _address(self, address: str) -> str:
        name = address.removeprefix(_UNIX)
        if name == address or not name or name.startswith("@"):
            return address
        return _UNIX + self.path(name)

    def _mount(self, mount: MountWish) -> MountWish:
        source = self.path(mount.source) if mount.kind is MountKind.BIND else mount.source
        return replace(mount, source=source, target=self.path(mount.target))

    def _paths(self, paths: _Paths) -> _Paths:
        return paths and _once(map(self.path, paths))

    def _arguments_after(self, head: tuple[str, ...], tail: tuple[str, ...]) -> tuple[str, ...]:
        return self._arguments((*head, *tail))[len(head) :]

    def _arguments(self, arguments: tuple[str, ...]) -> tuple[str, ...]:
        told: list[str] = []
        is_next = False
        for argument in arguments:
            told.append(HIDDEN if is_next else self._argument(argument))
            is_next = any(
                fnmatchcase(argument, option)
                for pattern in self.arguments
                for option, space, _ in (pattern.partition(" "),)
                if space
            )
        return tuple(told)

    def _argument(self, argument: str) -> str:
        if any(_names(argument, folder) for folder in self.paths):
            return HIDDEN
        shown = [
            _before_wildcard(pattern)
            for pattern in self.arguments
            if " " not in pattern and fnmatchcase(argument, pattern)
        ]
        return min(shown, key=len) + HIDDEN if shown else argument

    def _counted(self, paths: Mapping[str, int]) -> dict[str, int]:
        found: dict[str, int] = {}
        for path, count in paths.items():
            told = self.path(path)
            found[told] = found.get(told, 0) + count
        return found


NOTHING_HIDDEN = Redaction()


def _once(told: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(told))


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def _names(argument: str, folder: str) -> bool:
    """Tell whether an argument names something below a folder, however it is written."""
    if "/" not in argument:
        return False
    plain = _REPEATED.sub("/", argument)
    if folder.rstrip("/") + "/" in plain:
        return True
    return "/.." in plain and any(
        _is_below(posixpath.normpath(word), folder) for word in _ABSOLUTE.findall(plain)
    )


def _before_wildcard(pattern: str) -> str:
    found = _WILDCARD.search(pattern)
    return pattern[: found.start()] if found else ""
