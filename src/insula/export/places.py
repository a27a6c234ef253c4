# SPDX-License-Identifier: Apache-2.0
"""Which sinks are open: one for each place that is listed.

    listed before, and now, to the same place ──► stays, with its queue; what is meant for it may be another choice
    listed now only ──► opened                    listed before only ──► left out, its owner closes it

The place is where something goes, and how (endpoint, headers, certificates, path …); `Choice` is what goes there.  Out of
scope: who offers what, and when the list is read (`daemon/exporting.py`).
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeAlias

from msgspec.structs import replace

from insula.export.config import Choice, Exports, File, Otlp, Syslog
from insula.export.lines import EventFile, json_of
from insula.export.post import Post
from insula.export.sink import MAX_PER_S, Carrier, Item, Sink
from insula.export.syslog import Address, Facility, Line, Severity
from insula.export.syslog import Syslog as SyslogCarrier
from insula.model.errors import InvalidExport
from insula.model.export import Told
from insula.model.span import Span

OTLP_PER_S = 2_000
"""Log records for a collector: each costs 50 µs of the processor, a line of JSON 2."""

_Stamp: TypeAlias = tuple[tuple[int, int, int], ...]
"""Of files, by which a change of them is seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place(Generic[Item]):
    """An open sink, and what is meant for it."""

    choice: Choice
    stamp: _Stamp
    """Of the certificates that it was opened with."""
    sink: Sink[Item]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """All that are open."""

    events: tuple[Place[Told], ...] = ()
    spans: tuple[Place[Span], ...] = ()

    @property
    def sinks(self) -> tuple[Sink[Told] | Sink[Span], ...]:
        return (*(each.sink for each in self.events), *(each.sink for each in self.spans))

    def changed_to(self, exports: Exports, *, host: str) -> "Places":
        """Open what is listed and not open yet.

        Raises: InvalidExport for certificates that cannot be read; nothing was opened then.
        """
        events = _Plan(list(_event_wishes(exports, host=host)), self.events)
        spans = _Plan(list(_span_wishes(exports, host=host)), self.spans)
        return Places(events=events.carried_out(), spans=spans.carried_out())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish(Generic[Item]):
    """A sink that is listed."""

    choice: Choice
    name: str
    carrier: Callable[[], Carrier[Item]]
    max_per_s: float = MAX_PER_S


def _event_wishes(exports: Exports, *, host: str) -> Iterator[_Wish[Told]]:
    for otlp in exports.otlp:
        if otlp.changes or otlp.kinds:
            name = f"otlp {otlp.endpoint} logs"
            yield _Wish(choice=otlp, name=name, carrier=partial(_logs, otlp), max_per_s=OTLP_PER_S)
    for file in exports.file:
        yield _Wish(choice=file, name=f"file {file.path}", carrier=partial(_file, file))
    for syslog in exports.syslog:
        carrier = partial(_syslog, syslog, host=host)
        yield _Wish(choice=syslog, name=f"syslog {syslog.address}", carrier=carrier)


def _span_wishes(exports: Exports, *, host: str) -> Iterator[_Wish[Span]]:
    for otlp in exports.otlp:
        if otlp.traces:
            carrier = partial(_traces, otlp, host=host)
            yield _Wish(choice=otlp, name=f"otlp {otlp.endpoint} traces", carrier=carrier)


# Who configures no collector does not pay for the generated messages: 4 MiB, 20 ms (ADR 28).
def _logs(endpoint: Otlp) -> Carrier[Told]:
    from insula.export.otlp import Logs

    return Logs(_post(endpoint))


def _traces(endpoint: Otlp, *, host: str) -> Carrier[Span]:
    from insula.export.otlp import Traces

    return Traces(_post(endpoint), host=host)


def _post(endpoint: Otlp) -> Post:
    try:
        return Post(endpoint)
    except OSError as error:
        raise InvalidExport(
            f"cannot use the certificates for `{endpoint.endpoint}`: {error.strerror or error}"
        ) from error


def _file(file: File) -> Carrier[Told]:
    return EventFile(Path(file.path), max_bytes=file.max_bytes, kept=file.kept)


def _syslog(syslog: Syslog, *, host: str) -> Carrier[Told]:
    address = Address.parse(syslog.address)
    return SyslogCarrier(address, _line, host=host, facility=Facility.DAEMON, message_id="event")


def _line(told: Told) -> Line:
    severity = Severity.WARNING if told.is_alarming else Severity.INFO
    return Line(text=json_of(told).decode(), at=told.at, severity=severity)


class _Plan(Generic[Item]):
    """What stays, and what is to be opened."""

    def __init__(self, wishes: Sequence[_Wish[Item]], before: Sequence[Place[Item]]) -> None:
        """Raises: InvalidExport.  Nothing fails after this."""
        self._gone = list(before)
        stamped = [(wish, _stamp(wish.choice)) for wish in wishes]
        kept = [self._taken(wish.choice, stamp) for wish, stamp in stamped]
        self._names = {each.sink.name for each in kept if each is not None}
        self._steps = [
            (wish, stamp, place.sink if place is not None else wish.carrier())
            for (wish, stamp), place in zip(stamped, kept, strict=True)
        ]

    def _taken(self, choice: Choice, stamp: _Stamp) -> Place[Item] | None:
        """Return, once, what is open to the same place."""
        for place in self._gone:
            if (_way(place.choice), place.stamp) == (_way(choice), stamp):
                self._gone.remove(place)
                return place
        return None

    def carried_out(self) -> tuple[Place[Item], ...]:
        """Open what is to be opened."""
        return tuple(
            Place(choice=wish.choice, stamp=stamp, sink=with_what)
            if isinstance(with_what, Sink)
            else Place(choice=wish.choice, stamp=stamp, sink=self._opened(wish, with_what))
            for wish, stamp, with_what in self._steps
        )

    def _opened(self, wish: _Wish[Item], carrier: Carrier[Item]) -> Sink[Item]:
        # Two that append to one file at once could cut each other's lines off.
        before = [each.sink for each in self._gone if each.sink.name == wish.name]
        name = self._free_name(wish.name)
        self._names.add(name)
        return Sink(name, carrier, max_per_s=wish.max_per_s, after=before)

    def _free_name(self, wished: str) -> str:
        """Return what a sink is called: another one to the same place has a number."""
        others = (f"{wished} ({number})" for number in itertools.count(2))
        return next(each for each in itertools.chain((wished,), others) if each not in self._names)


def _way(choice: Choice) -> Choice:
    """Return a choice without all that tells what goes there."""
    plain = replace(choice, changes=True, kinds=(), tenants=(), containers=())
    return replace(plain, traces=True) if isinstance(plain, Otlp) else plain


def _stamp(choice: Choice) -> _Stamp:
    """Return by what new certificates in the old files are seen."""
    if not isinstance(choice, Otlp):
        return ()
    found = []
    for path in filter(None, (choice.ca_file, choice.certificate_file, choice.key_file)):
        try:
            seen = os.stat(path)
        except OSError:  # who opens the sink tells why
            continue
        found.append((seen.st_ino, seen.st_size, seen.st_mtime_ns))
    return tuple(found)
