# SPDX-License-Identifier: Apache-2.0
"""Ranges of addresses, each with where its content comes from: what of a memory is there, or is still to be filled.

Pure; sorted, disjoint, neighbours that belong together are one.  Standard library only.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple


class Piece(NamedTuple):
    """Addresses from start to end (excluded); source: where the byte at `start` is found."""

    start: int
    end: int
    source: int


class Pieces:
    """A set of pieces that do not overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._pieces: list[Piece] = []
        self.total_bytes = 0

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]], *, shift: int) -> "Pieces":
        """Return pieces from start to end each, by ascending addresses; each byte's source is its address plus `shift`.

        Faster than one by one.  Raises: ValueError if they do not ascend.
        """
        made = cls()
        last = -1
        for start, end in ranges:
            if start > last:
                made._pieces.append(Piece(start, end, start + shift))
            elif start == last and end > start:
                made._pieces[-1] = made._pieces[-1]._replace(end=end)
            else:
                raise ValueError(f"pieces: {start:#x} does not ascend")
            last = end
        made._starts = [each.start for each in made._pieces]
        made.total_bytes = sum(each.end - each.start for each in made._pieces)
        return made

    def unknown(self, ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return what of ranges, start and end each, is in no piece; fast for those that are a piece each."""
        whole = {each[:2] for each in self._pieces}
        return [gap for each in ranges if each not in whole for gap in self.gaps(*each)]

    def __len__(self) -> int:
        return len(self._pieces)

    def copy(self) -> "Pieces":
        made = Pieces()
        made._starts, made._pieces = list(self._starts), list(self._pieces)
        made.total_bytes = self.total_bytes
        return made

    def add(self, start: int, end: int, *, source: int) -> int:
        """Take a range in, instead of what was known of it.  Returns: how many of its bytes were not known."""
        known = self._remove(start, end)
        place = bisect_right(self._starts, start)
        low, high = place, place
        if place and self._joins(self._pieces[place - 1], Piece(start, end, source)):
            low -= 1
            before = self._pieces[low]
            start, source = before.start, before.source
        if place < len(self._pieces) and self._joins(Piece(start, end, source), self._pieces[place]):
            end = self._pieces[place].end
            high += 1
        self.total_bytes -= sum(each.end - each.start for each in self._pieces[low:high])
        self._starts[low:high] = [start]
        self._pieces[low:high] = [Piece(start, end, source)]
        self.total_bytes += end - start
        return known

    def _remove(self, start: int, end: int) -> int:
        before = self.total_bytes
        self.cut(start, end)
        return end - start - (before - self.total_bytes)

    @staticmethod
    def _joins(left: Piece, right: Piece) -> bool:
        return left.end == right.start and left.source + (left.end - left.start) == right.source

    def cut(self, start: int, end: int) -> list[Piece]:
        """Take a range out.  Returns: the pieces that were there."""
        low, high = self._span(start, end)
        if low == high:
            return []
        touched = self._pieces[low:high]
        found = [_clip(each, start, end) for each in touched]
        first, last = touched[0], touched[-1]
        rest = []
        if first.start < start:
            rest.append(_clip(first, first.start, start))
        if last.end > end:
            rest.append(_clip(last, end, last.end))
        self._pieces[low:high] = rest
        self._starts[low:high] = [each.start for each in rest]
        self.total_bytes -= sum(each.end - each.start for each in found)
        return found

    def all(self) -> list[Piece]:
        """Return every piece, in order."""
        return list(self._pieces)

    def within(self, start: int, end: int) -> list[Piece]:
        """Return the pieces of a range, as `cut` does, and leave them in."""
        low, high = self._span(start, end)
        return [_clip(each, start, end) for each in self._pieces[low:high]]

    def cut_sources(self, start: int, end: int) -> list[Piece]:
        """Take out what has its content from a range of sources.  Looks at every piece."""
        found = []
        for each in list(self._pieces):
            low = max(each.source, start)
            high = min(each.source + each.end - each.start, end)
            if low < high:
                shift = each.start - each.source
                found += self.cut(low + shift, high + shift)
        return found

    def first_from(self, start: int, *, limit: int) -> Piece | None:
        """Return up to `limit` bytes of the first piece at or after an address.  None: there is none."""
        low, _high = self._span(start, start + 1)
        if low == len(self._pieces):
            return None
        first = self._pieces[low]
        begin = max(first.start, start)
        return _clip(first, begin, min(first.end, begin + limit))

    def cut_last(self, limit: int) -> Piece | None:
        """Take out up to `limit` bytes at the upper end (from a list's end nothing must move up).  None: it is empty."""
        if not self._pieces:
            return None
        last = self._pieces[-1]
        return self.cut(max(last.start, last.end - limit), last.end)[0]

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return which ranges between two addresses are in no piece."""
        low, high = self._span(start, end)
        found = []
        for each in self._pieces[low:high]:
            if each.start > start:
                found.append((start, each.start))
            start = each.end
        if start < end:
            found.append((start, end))
        return found

    def _span(self, start: int, end: int) -> tuple[int, int]:
        low = bisect_right(self._starts, start)
        if low and self._pieces[low - 1].end > start:
            low -= 1
        high = low
        if low < len(self._starts):
            high = bisect_right(self._starts, end - 1, low)
        return low, high


def _clip(piece: Piece, start: int, end: int) -> Piece:
    start, end = max(piece.start, start), min(piece.end, end)
    return Piece(start, end, piece.source + start - piece.start)
