"""Pictures of any network on any canvas: nothing outside, nothing overlaps, names go before marks, the same again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.app.topology_layout import Canvas, Mark, Spot, place

PLACES = st.floats(-1.0, 1.0, width=32)
MARKS = st.lists(
    st.builds(
        Mark,
        x=st.one_of(st.just(0.5), PLACES),
        y=st.one_of(st.just(0.0), PLACES),
        community=st.integers(0, 4),
        width=st.sampled_from((1, 1, 3)),
        name_width=st.one_of(st.just(0), st.integers(1, 18)),
    ),
    max_size=60,
)
TERMINAL = st.builds(Canvas, width=st.integers(1, 90), height=st.integers(1, 30))
#: Cells of a file: names are higher than marks, and room is kept above and below.
FILE = st.builds(
    Canvas,
    width=st.integers(1, 90),
    height=st.integers(1, 60),
    aspect=st.just(1.0),
    mark_height=st.sampled_from((1, 3)),
    name_height=st.sampled_from((3, 5)),
    gap=st.integers(1, 2),
    margin_x=st.integers(0, 2),
    margin_y=st.integers(0, 2),
)


def cells_of(mark: Mark, spot: Spot, canvas: Canvas) -> set[tuple[int, int]]:
    """The cells of a mark and its name; the gap between belongs to nobody else either."""
    columns = set(range(spot.column - mark.width // 2, spot.column + mark.width // 2 + 1))
    height = canvas.mark_height
    if spot.name_column is not None:
        name = range(spot.name_column, spot.name_column + mark.name_width)
        columns |= set(name)
        columns = set(range(min(columns), max(columns) + 1))
        height = canvas.name_height
    rows = range(spot.row - height // 2, spot.row + height // 2 + 1)
    return {(column, row) for column in columns for row in rows}


@given(MARKS, st.one_of(TERMINAL, FILE))
@settings(deadline=None)
def test_nothing_is_outside_and_nothing_overlaps(marks: list[Mark], canvas: Canvas) -> None:
    spots = place(marks, canvas)
    assert len(spots) == len(marks)
    taken: set[tuple[int, int]] = set()
    for mark, spot in zip(marks, spots, strict=True):
        if spot is None:
            continue
        cells = cells_of(mark, spot, canvas)
        assert not cells & taken
        assert all(0 <= column < canvas.width and 0 <= row < canvas.height for column, row in cells)
        taken |= cells
        if spot.name_column is not None:
            assert mark.name_width > 0
            gap = max(spot.name_column - spot.column, spot.column - spot.name_column - mark.name_width + 1)
            assert gap == mark.width // 2 + 1 + canvas.gap


@given(MARKS, TERMINAL)
@settings(deadline=None)
def test_names_go_before_marks(marks: list[Mark], canvas: Canvas) -> None:
    spots = place(marks, canvas)
    if None in spots:
        assert all(spot is None or spot.name_column is None for spot in spots)


def test_a_name_goes_for_the_last_mark() -> None:
    """15 marks need 30 of 40 cells; with one name they would need 42."""
    marks = [Mark(0.0, 0.0, 0, 1, 10)] * 15
    spots = place(marks, Canvas(40, 1))
    assert None not in spots
    assert [spot.name_column for spot in spots if spot is not None] == [None] * 15
    fewer = place(marks[:14], Canvas(44, 1))
    assert None not in fewer
    assert fewer[0] is not None
    assert fewer[0].name_column is not None, "the most important one has the name that fits"


@given(MARKS, TERMINAL)
@settings(deadline=None)
def test_who_fits_is_there(marks: list[Mark], canvas: Canvas) -> None:
    """However badly the others lie, a mark takes away at most its own width, its margins, and what a mark beside it cannot use."""
    widest = max((mark.width for mark in marks), default=1)
    each = canvas.width // (2 * widest + 2 * canvas.margin_x)
    if len(marks) <= each * canvas.height:
        assert None not in place(marks, canvas)


@given(MARKS, TERMINAL)
@settings(deadline=None, max_examples=20)
def test_the_same_again(marks: list[Mark], canvas: Canvas) -> None:
    assert place(marks, canvas) == place(list(marks), canvas)
