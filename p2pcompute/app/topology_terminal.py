"""The picture of the network as characters: marks and names at their places, a legend, and the links between communities.

Without colour everything is still told: communities differ by the shape of their marks, key nodes and this peer by brackets. Where the output
cannot hold those shapes, letters and signs stand for them. Refuses to know where the document came from, and when it is drawn again.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

from p2pcompute.app.render import number
from p2pcompute.app.topology_layout import Canvas, Mark, Spot, place
from p2pcompute.app.topology_scene import Scene, SceneLink, ScenePeer, shortened

#: Colours that the colour-blind can tell apart (Tol, "Colour schemes", 2021: bright), readable on black and on white.
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999")
#: One more or one fewer than colours, so that 56 communities differ in one of the two.
SHAPES = "●■▲◆▼★◉▣"
_PLAIN_SHAPES = "o#^%v*&="
#: What surrounds the mark of a key node, of this peer, of both.
_KEY_NODE, _OWN, _BOTH = "[]", "()", "{}"
#: Rows of the picture where nothing limits them, and the fewest that show anything.
ROWS_USUAL, ROWS_MIN = 24, 6
#: Rows of the table of links: the widest and the narrowest.
LINKS_MAX = 6
#: Narrower than this no legend can be read.
_WIDTH_MIN = 20
#: A column that would be cut to less says nothing.
_COLUMN_MIN = 14
#: Lines between communities are drawn where at least so many cells are there for each peer: among dense marks nobody could follow them.
_CELLS_PER_PEER_FOR_LINES = 8


@dataclass(frozen=True, slots=True)
class Screen:
    """`width`: columns; `height`: rows of the whole, None where nothing limits it; `encoding`: of the output."""

    width: int
    height: int | None
    encoding: str = "utf-8"

    @property
    def is_plain(self) -> bool:
        """Whether shapes of marks cannot be written."""
        return self.fitting(SHAPES) != SHAPES

    def fitting(self, text: str) -> str:
        """`text` as this output can hold it."""
        return text.encode(self.encoding, "replace").decode(self.encoding)


def drawn(scene: Scene, screen: Screen) -> list[Text]:
    """What to print, a line each, from top to bottom; it fits `screen` unless that is too small for anything."""
    legend_rows, link_rows = len(scene.communities), min(len(scene.between), LINKS_MAX)
    width = max(screen.width, _WIDTH_MIN)
    wrapped = [
        line for note in scene.notes for line in textwrap.wrap(f"note: {note}", width, subsequent_indent="      ")
    ]
    notes = [Text(screen.fitting(line), style="italic", no_wrap=True) for line in wrapped]
    rows = ROWS_USUAL
    if screen.height is not None:
        # One row for the summary, one for the key to the marks, one for the prompt that comes after.
        notes = notes[: max(screen.height - 3 - ROWS_MIN, 0)]
        room = screen.height - 3 - len(notes)
        rest = max(room - max(ROWS_MIN, room // 2), 0)
        legend_rows = min(legend_rows, max(rest - 1, 0))
        rest -= legend_rows + (legend_rows > 0)
        link_rows = min(link_rows, max(rest - 1, 0))
        rest -= link_rows + (link_rows > 0)
        rows = max(room - (legend_rows + (legend_rows > 0)) - (link_rows + (link_rows > 0)), ROWS_MIN)
    picture, shown = _picture(scene, screen, width, rows)
    summary = Text(screen.fitting(shortened(scene.summary, width, "")), style="bold", no_wrap=True, overflow="crop")
    lines = [summary, *picture, _key(scene, screen, shown)]
    if legend_rows:
        lines += _legend(scene, screen, legend_rows)
    if link_rows:
        lines += _links(scene, screen, link_rows)
    return [*lines, *notes]


def shape_of(community: int, screen: Screen) -> str:
    """The mark of a community."""
    shapes = _PLAIN_SHAPES if screen.is_plain else SHAPES
    return shapes[community % len(shapes)]


def colour_of(community: int) -> str:
    """The colour of a community, in terminals and in files."""
    return COLOURS[community % len(COLOURS)]


# --- the picture ------------------------------------------------------------------------------------------------------


def mark_of(peer: ScenePeer, screen: Screen) -> str:
    """The characters of a peer's mark: one, or three with brackets."""
    shape = shape_of(peer.community, screen)
    around = _BOTH if peer.is_own and peer.is_key_node else _OWN if peer.is_own else _KEY_NODE
    return f"{around[0]}{shape}{around[1]}" if peer.is_own or peer.is_key_node else shape


def spots_of(scene: Scene, screen: Screen, width: int, rows: int) -> list[Spot | None]:
    """Where the peers of `scene` stand in a picture of `width` by `rows` characters."""
    marks = [
        Mark(
            peer.x,
            peer.y,
            peer.community,
            3 if peer.is_own or peer.is_key_node else 1,
            cell_len(screen.fitting(peer.name)),
        )
        for peer in scene.peers
    ]
    return place(marks, Canvas(width, rows))


def _picture(scene: Scene, screen: Screen, width: int, rows: int) -> tuple[list[Text], int]:
    """The lines of the picture, and how many peers are in it."""
    spots = spots_of(scene, screen, width, rows)
    cells: list[list[tuple[str, Style]]] = [[(" ", Style.null())] * width for _ in range(rows)]
    for peer, spot in zip(scene.peers, spots, strict=True):
        if spot is None:
            continue
        is_special = peer.is_own or peer.is_key_node
        style = Style(color=colour_of(peer.community), bold=is_special)
        mark = mark_of(peer, screen)
        _write(cells[spot.row], spot.column - len(mark) // 2, mark, style)
        if spot.name_column is not None:
            _write(cells[spot.row], spot.name_column, screen.fitting(peer.name), Style(bold=is_special))
    if width * rows >= _CELLS_PER_PEER_FOR_LINES * len(scene.peers):
        for link in _bridges(scene):
            _draw_line(cells, spots[link.one], spots[link.other], "." if screen.is_plain else "·")
    lines = []
    for row in cells:
        line = Text(no_wrap=True, overflow="crop")
        for character, style in row:
            line.append(character, style)
        line.rstrip()
        lines.append(line)
    return lines, sum(spot is not None for spot in spots)


def _bridges(scene: Scene) -> Sequence[SceneLink]:
    """Links to draw as lines: between communities, as many as keep them connected and a few more; all of a very small network."""
    if len(scene.peers) <= 4:
        return scene.links
    degree: dict[int, int] = {}
    chosen = []
    for link in scene.between:
        one, other = scene.pair(link)
        if min(degree.get(one, 0), degree.get(other, 0)) < 2:
            chosen.append(link)
            degree[one], degree[other] = degree.get(one, 0) + 1, degree.get(other, 0) + 1
    return chosen


def _draw_line(cells: list[list[tuple[str, Style]]], start: Spot | None, end: Spot | None, dot: str) -> None:
    if start is None or end is None:
        return
    across, down = end.column - start.column, end.row - start.row
    # Every second column, so that a line looks like one and not like a wall of dots.
    steps = max(abs(across) // 2, abs(down), 1)
    for step in range(1, steps):
        column = start.column + round(across * step / steps)
        row = start.row + round(down * step / steps)
        # A cell away from marks and names, and not between the two.
        if all(each in (" ", dot) for each, _ in cells[row][max(column - 1, 0) : column + 2]):
            cells[row][column] = (dot, Style(dim=True))


def _write(row: list[tuple[str, Style]], column: int, text: str, style: Style) -> None:
    for character in text:
        cells = cell_len(character)
        if cells == 0:
            # A combining character belongs to the cell before it.
            before, its_style = row[column - 1]
            row[column - 1] = (before + character, its_style)
            continue
        row[column] = (character, style)
        for further in range(1, cells):
            row[column + further] = ("", style)
        column += cells


# --- what stands below ------------------------------------------------------------------------------------------------


def _key(scene: Scene, screen: Screen, shown: int) -> Text:
    shape = shape_of(0, screen)
    own_leads = scene.peers[0].is_own and scene.peers[0].is_key_node
    words = [
        f"{_BOTH[0]}{shape}{_BOTH[1]} this peer, a key node" if own_leads else f"{_OWN[0]}{shape}{_OWN[1]} this peer",
        f"{_KEY_NODE[0]}{shape}{_KEY_NODE[1]} key node",
    ]
    if shown < len(scene.peers):
        words.append(f"{shown} of {len(scene.peers)} peers fit")
    line = shortened("   ".join(words), max(screen.width, _WIDTH_MIN), "")
    return Text(screen.fitting(line), style="dim", no_wrap=True, overflow="crop")


def _legend(scene: Scene, screen: Screen, rows: int) -> list[Text]:
    names = scene.names
    shown = scene.communities if len(scene.communities) <= rows else scene.communities[: rows - 1]
    table = [["", "peers", "key node", "stand-ins", "lends"]]
    colours = []
    for community in shown:
        number_ = community["community"]
        stand_ins = ", ".join(names[peer] for peer in community["stand_ins"]) or "-"
        key_node = names[community["key_node"]]
        mark = f"{shape_of(number_, screen)} {community['name']}"
        table.append([mark, str(len(community["members"])), key_node, stand_ins, lends(community)])
        colours.append(colour_of(number_))
    left = scene.communities[len(shown) :]
    if left:
        peers = sum(len(community["members"]) for community in left)
        table.append(["", str(peers), f"in {len(left)} more", "", ""])
    lines = _table(table, screen, right=(1,), cut=3, dropped=4)
    for line, colour in zip(lines[1:], colours, strict=False):
        line.stylize(colour, 0, 1)
    return lines


def lends(community: Mapping[str, Any]) -> str:
    """What a community can do in sum: "24 slots, 32 cores, 128 GB, 2 GPUs"."""
    parts = [_counted(community["slots"], "slot"), _counted(community["cores"], "core")]
    parts.append(f"{community['memory_gb']:.0f} GB")
    if community["gpus"]:
        parts.append(_counted(community["gpus"], "GPU"))
    return ", ".join(parts)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _links(scene: Scene, screen: Screen, rows: int) -> list[Text]:
    heading = "widest links between communities" if len(scene.between) > 1 else "link between communities"
    table = [["", "round trip", "Mbit/s", "weight", heading]]
    narrow = rows // 2 if len(scene.between) > rows else 0
    table += [_link_row(scene, link, "") for link in scene.between[: rows - narrow]]
    for place_, link in enumerate(scene.between[len(scene.between) - narrow :] if narrow else ()):
        table.append(_link_row(scene, link, "" if place_ else "narrowest: "))
    return _table(table, screen, right=(1, 2, 3), cut=4)


def _link_row(scene: Scene, link: SceneLink, before: str) -> list[str]:
    one, other = sorted((scene.peers[link.one], scene.peers[link.other]), key=lambda peer: peer.community)
    names = [scene.communities[peer.community]["name"] for peer in (one, other)]
    return [
        " - ".join(names),
        number(link.rtt_ms, 1, " ms"),
        number(link.bandwidth_mbps),
        f"{link.weight:.3g}",
        f"{before}{one.name} - {other.name}{' (estimated)' if link.is_estimated else ''}",
    ]


def _over(widths: Sequence[int], screen: Screen) -> int:
    """By how many cells a table with columns of these `widths`, the first always there, is too wide."""
    return sum(widths) + 2 * sum(width > 0 for width in widths[1:]) - screen.width


def _table(
    rows: Sequence[Sequence[str]], screen: Screen, right: Sequence[int], cut: int, dropped: int | None = None
) -> list[Text]:
    """One line a row, the first are headings; columns `right` are flush right.

    Where not all fits, column `cut` is cut, and where too little of it would be left column `dropped` goes before it.

    Rich's own tables would cut all columns alike, the marks of communities among them.
    """
    texts = [[screen.fitting(text) for text in row] for row in rows]
    widths = [max(cell_len(row[column]) for row in texts) for column in range(len(texts[0]))]
    if screen.height is not None:
        if dropped is not None and _over(widths, screen) > widths[cut] - _COLUMN_MIN:
            widths[dropped] = 0
        widths[cut] = max(widths[cut] - max(_over(widths, screen), 0), 0)
    lines: list[Text] = []
    for row in texts:
        cells = []
        for column, (text, width) in enumerate(zip(row, widths, strict=True)):
            fitted = shortened(text, width, "~" if screen.is_plain else "…") if width else ""
            blank = " " * (width - cell_len(fitted))
            if width or not column:
                cells.append(blank + fitted if column in right else fitted + blank)
        lines.append(Text("  ".join(cells).rstrip(), style="" if lines else "dim", no_wrap=True, overflow="crop"))
    return lines
