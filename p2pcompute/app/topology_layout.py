"""Where marks and names go in a picture of the network: at their spectral coordinates, moved apart until nothing covers anything.

Spectral coordinates put all peers of a good community at almost one point, which is true and unreadable. So communities become discs as large as
what they hold and are pushed apart first; then each mark, with its name beside it where it has one, takes the free place that is nearest
to where it belongs. The same for the terminal, whose cells are characters, and for files, whose cells are fractions of a millimetre.

Rules: nothing is outside and nothing overlaps; where room is short, names go before marks, and the least important first; the same input
gives the same picture. Refuses to know: characters, colours, files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

#: Of all cells, what names may fill: first this share, and less where marks then find no place.
NAME_SHARES = (0.35, 0.2, 0.1, 0.03, 0.0)
#: Rounds in which discs are pushed apart: four communities need ten, fifty need a hundred.
ROUNDS = 200
#: A disc is so many times as wide as what it holds would need without gaps.
DISC_SLACK = 1.25


@dataclass(frozen=True, slots=True)
class Mark:
    """One peer. `x`, `y`: spectral coordinates; `width`: cells of its mark, odd; `name_width`: cells of its name, 0 for none."""

    x: float
    y: float
    community: int
    width: int
    name_width: int


@dataclass(frozen=True, slots=True)
class Canvas:
    """`width`, `height`: in cells. `aspect`: height of a cell in widths. `mark_height`, `name_height`: cells, odd, of a mark without and with a name.

    `gap`: cells between a mark and its name; `margin_x`, `margin_y`: cells that stay free around.
    """

    width: int
    height: int
    aspect: float = 2.0
    mark_height: int = 1
    name_height: int = 1
    gap: int = 1
    margin_x: int = 1
    margin_y: int = 0


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a mark is: the cell in its middle; `name_column`: the leftmost cell of its name, None where it is left out."""

    column: int
    row: int
    name_column: int | None


def place(marks: Sequence[Mark], canvas: Canvas) -> list[Spot | None]:
    """A spot for each of `marks`, the most important first; None for those for which no cell is left at all."""
    if not marks or canvas.width < 1 or canvas.height < canvas.mark_height:
        return [None] * len(marks)
    spots: list[Spot | None] = []
    for share in NAME_SHARES:
        spots = _placed(marks, canvas, _named(marks, canvas, share))
        if None not in spots:
            break
    return spots


def _named(marks: Sequence[Mark], canvas: Canvas, share: float) -> list[bool]:
    """Which marks keep their names, the first ones, so that names fill at most `share` of all cells."""
    room = share * canvas.width * canvas.height
    kept = []
    for mark in marks:
        fits = 0 < mark.name_width <= canvas.width - mark.width - canvas.gap
        size = (mark.name_width + canvas.gap + canvas.margin_x) * (canvas.name_height + canvas.margin_y)
        kept.append(fits and size <= room)
        # The first that does not fit is the last that is tried: a long name gives way to no less important short one.
        room = room - size if kept[-1] else (room if not mark.name_width else 0.0)
    return kept


def _placed(marks: Sequence[Mark], canvas: Canvas, named: Sequence[bool]) -> list[Spot | None]:
    targets = _targets(marks, canvas, named)
    taken = np.zeros((canvas.height, canvas.width), dtype=np.bool_)
    spots: list[Spot | None] = [None] * len(marks)
    # Names need the room around them, so they come first; then the rest of each community, from its middle outwards.
    order = sorted(range(len(marks)), key=lambda number: (not named[number], number))
    for number in order:
        mark, name_width = marks[number], marks[number].name_width if named[number] else 0
        spot = _nearest(taken, targets[number], mark.width, name_width, canvas)
        if spot is None and name_width:
            spot = _nearest(taken, targets[number], mark.width, 0, canvas)
        spots[number] = spot
        if spot is not None:
            _take(taken, spot, mark.width, name_width, canvas)
    return spots


# --- where things belong ----------------------------------------------------------------------------------------------


def _targets(marks: Sequence[Mark], canvas: Canvas, named: Sequence[bool]) -> Floats:
    """(n, 2) column and row of each mark, fractions of cells: spectral coordinates stretched to the canvas, communities pushed apart."""
    places = np.array([(mark.x, mark.y) for mark in marks], dtype=np.float64)
    low, high = places.min(axis=0), places.max(axis=0)
    spans = np.where(high - low > 1e-9, high - low, 1.0)
    unit = np.where(high - low > 1e-9, (places - low) / spans, 0.5)
    # A fifth of the width stays free at each side for names, a tenth of the height for rows.
    size = np.array([canvas.width - 1.0, (canvas.height - 1.0) * canvas.aspect])
    inset = np.array([0.15, 0.1])
    # Rows grow downwards.
    unit[:, 1] = 1.0 - unit[:, 1]
    at = size * (inset + (1.0 - 2.0 * inset) * unit)
    numbers = sorted({mark.community for mark in marks})
    of = np.array([numbers.index(mark.community) for mark in marks])
    middles = np.array([np.median(at[of == number], axis=0) for number in range(len(numbers))])
    moved = _apart(middles, _radii(marks, canvas, named, of), size)
    at += (moved - middles)[of]
    at[:, 1] /= canvas.aspect
    return at


def _radii(marks: Sequence[Mark], canvas: Canvas, named: Sequence[bool], of: npt.NDArray[np.int64]) -> Floats:
    """(k,) radius of the disc of each community, in widths of a cell."""
    areas = []
    for mark, is_named in zip(marks, named, strict=True):
        width = mark.width + (canvas.gap + mark.name_width if is_named else 0) + canvas.margin_x
        height = (canvas.name_height if is_named else canvas.mark_height) + canvas.margin_y
        areas.append(width * height * canvas.aspect)
    return np.asarray(DISC_SLACK * np.sqrt(np.bincount(of, np.array(areas)) / np.pi), dtype=np.float64)


def _apart(middles: Floats, radii: Floats, size: Floats) -> Floats:
    """The middles of discs that no longer overlap, or as little as `ROUNDS` could do, and that stay inside where they are smaller than `size`."""
    found = middles.copy()
    if len(found) < 2:
        return found
    inside = np.minimum(radii[:, None], size[None] / 2)
    for round_number in range(ROUNDS):
        away = found[:, None] - found[None]
        lengths = np.sqrt((away**2).sum(axis=2))
        # Two in one place part in a direction of their own, the same on every machine.
        same = lengths < 1e-9
        angles = 2.399963 * np.arange(len(found))
        away[same] = (np.stack((np.cos(angles), np.sin(angles)), axis=1)[:, None] * np.ones((1, len(found), 1)))[same]
        lengths[same] = 1.0
        overlap = np.where(same, radii[:, None] + radii[None], radii[:, None] + radii[None] - lengths)
        np.fill_diagonal(overlap, 0.0)
        overlap = np.maximum(overlap, 0.0)
        if round_number and float(overlap.max()) < 0.5:
            break
        found += 0.3 * (away / lengths[:, :, None] * overlap[:, :, None]).sum(axis=1)
        found = np.clip(found, inside, size[None] - inside)
    return found


# --- free places ------------------------------------------------------------------------------------------------------


def _nearest(taken: Bools, target: Floats, width: int, name_width: int, canvas: Canvas) -> Spot | None:
    """The free spot nearest to `target` (column, row), with the name to the right or, where that is nearer, to the left."""
    height, half = canvas.name_height if name_width else canvas.mark_height, width // 2
    whole = width + (canvas.gap + name_width if name_width else 0)
    free = _free(taken, whole, height)
    if free is None or not free.any():
        return None
    rows = np.arange(free.shape[0])[:, None] + height // 2
    lefts = np.arange(free.shape[1])[None]
    best: tuple[float, Spot] | None = None
    for is_left in (False, True) if name_width else (False,):
        columns = lefts + (whole - 1 - half if is_left else half)
        far = (columns - target[0]) ** 2 + (canvas.aspect * (rows - target[1])) ** 2
        # Rounded, so that no last digit of another machine's arithmetic chooses among equals.
        far = np.where(free, np.round(far, 3), np.inf)
        row, left = np.unravel_index(int(np.argmin(far)), far.shape)
        # A name to the right of its mark is easier to read.
        cost = float(far[row, left]) + (4.0 if is_left else 0.0)
        if best is None or cost < best[0]:
            column = int(left) + (whole - 1 - half if is_left else half)
            name_column = None if not name_width else int(left) if is_left else int(left) + width + canvas.gap
            best = (cost, Spot(column, int(row) + height // 2, name_column))
    return None if best is None else best[1]


def _free(taken: Bools, width: int, height: int) -> Bools | None:
    """Whether the box of `width` by `height` cells with its upper left corner at each cell is free; None where it is larger than all."""
    rows, columns = taken.shape
    if width > columns or height > rows:
        return None
    sums = np.zeros((rows + 1, columns + 1), dtype=np.int64)
    np.cumsum(np.cumsum(taken, axis=0), axis=1, out=sums[1:, 1:])
    filled = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    return np.asarray(filled == 0, dtype=np.bool_)


def _take(taken: Bools, spot: Spot, width: int, name_width: int, canvas: Canvas) -> None:
    left, right = spot.column - width // 2, spot.column + width // 2
    if spot.name_column is not None:
        left, right = min(left, spot.name_column), max(right, spot.name_column + name_width - 1)
    height = canvas.mark_height if spot.name_column is None else canvas.name_height
    top = spot.row - height // 2
    bottom = top + height - 1
    taken[
        max(top - canvas.margin_y, 0) : bottom + canvas.margin_y + 1,
        max(left - canvas.margin_x, 0) : right + canvas.margin_x + 1,
    ] = True
