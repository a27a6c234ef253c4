# SPDX-License-Identifier: Apache-2.0
"""Sets of pieces, held against a dictionary of bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.kernel.pieces import Piece, Pieces

SPAN = 64
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "cut", "sources", "last"]),
        st.integers(0, SPAN - 1),
        st.integers(1, 20),
        st.integers(0, 5),
    ),
    max_size=40,
)


@given(STEPS)
def test_pieces_are_what_a_dictionary_is(steps: list[tuple[str, int, int, int]]) -> None:
    pieces, model = Pieces(), dict[int, int]()
    for verb, start, length, shift in steps:
        places = range(start, start + length)
        match verb:
            case "add":
                new = sum(each not in model for each in places)
                assert pieces.add(start, start + length, source=start + 100 * shift) == new
                model |= {each: each + 100 * shift for each in places}
            case "cut":
                found = {
                    each: piece.source + each - piece.start
                    for piece in pieces.cut(start, start + length)
                    for each in range(piece.start, piece.end)
                }
                assert found == {each: model.pop(each) for each in places if each in model}
            case "sources":
                sources = range(start + 200, start + 200 + length)
                taken = pieces.cut_sources(sources.start, sources.stop)
                gone = {place for place, source in model.items() if source in sources}
                assert {each for piece in taken for each in range(piece.start, piece.end)} == gone
                for each in gone:
                    del model[each]
            case _:
                piece = pieces.cut_last(length)
                assert (piece is None) == (not model)
                if piece is not None:
                    assert piece.end == max(model) + 1 and piece.end - piece.start <= length
                    for each in range(piece.start, piece.end):
                        assert model.pop(each) == piece.source + each - piece.start
        assert pieces.total_bytes == len(model)
        inside = {each for piece in pieces.within(10, 40) for each in range(piece.start, piece.end)}
        assert inside == {each for each in model if 10 <= each < 40}
        first = pieces.first_from(start, limit=3)
        assert (first.start if first else None) == min(
            (each for each in model if each >= start), default=None
        )
        assert first is None or (first.end - first.start <= 3 and first.source == model[first.start])
        gaps = {each for low, high in pieces.gaps(0, 2 * SPAN) for each in range(low, high)}
        assert gaps == set(range(2 * SPAN)) - model.keys()


@given(st.permutations(range(10)))
def test_neighbours_become_one(order: list[int]) -> None:
    pieces = Pieces()
    for each in order:
        pieces.add(each, each + 1, source=50 + each)
    assert len(pieces) == 1 and pieces.cut(0, 10) == [(0, 10, 50)]


def test_a_copy_is_its_own() -> None:
    pieces = Pieces()
    pieces.add(0, 10, source=0)
    copy = pieces.copy()
    pieces.cut(0, 5)
    assert copy.total_bytes == 10 and copy.gaps(0, 10) == []


def test_many_at_once_are_as_one_by_one() -> None:
    ranges = [(10, 20), (20, 30), (40, 50)]
    made, added = Pieces.of(ranges, shift=100), Pieces()
    for start, end in ranges:
        added.add(start, end, source=start + 100)
    assert made.within(0, 100) == added.within(0, 100) == [Piece(10, 30, 110), Piece(40, 50, 140)]
    assert made.total_bytes == added.total_bytes == 30


def test_ranges_that_do_not_ascend_are_refused() -> None:
    with pytest.raises(ValueError, match="does not ascend"):
        Pieces.of([(10, 20), (15, 30)], shift=0)


def test_what_is_in_no_piece() -> None:
    pieces = Pieces.of([(10, 20), (40, 50)], shift=0)
    assert pieces.unknown([(10, 20), (15, 45), (50, 60)]) == [(20, 40), (50, 60)]
