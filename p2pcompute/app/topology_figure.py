"""The picture of the network as SVG or PNG, drawn by matplotlib, an optional package.

Same document, same bytes: no dates, fixed ids. Text in an SVG stays text; names come from strangers, are never read as formulas, and matplotlib
escapes them. Nothing is fetched: fonts are those that come with matplotlib. Refuses to know: files, terminals.
"""

from __future__ import annotations

import io
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from p2pcompute.app.topology_layout import Canvas, Mark, Spot, place
from p2pcompute.app.topology_scene import Scene, SceneLink, ScenePeer
from p2pcompute.app.topology_terminal import colour_of, lends
from p2pcompute.model.errors import ResourceError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["svg", "png"]

#: Size of a picture, inches, and pixels an inch of a PNG.
WIDTH_INCHES, HEIGHT_INCHES = 11.0, 7.0
PNG_DPI = 150
#: Shapes of marks, one more than colours; those that matplotlib fills.
MARKERS = "osD^vP*X"
#: Links in one picture, the heaviest and all between communities first: more make it black, and a file that no viewer opens.
LINKS_MAX = 4_000
#: Points of the widest and of the narrowest line.
_LINE_WIDEST, _LINE_NARROWEST = 2.6, 0.25
#: Links up to which lines have these widths.
_LINKS_USUAL = 600
_FONT_POINTS = 7.5
#: Cells of the picture an inch; a mark is at most so many cells wide and at least so many.
_CELLS_PER_INCH = 36
_MARK_CELLS, _MARK_CELLS_MIN = 5, 1
#: Cells of the height of a name, odd.
_NAME_CELLS = 5
#: Marks fill at most this share of the picture.
_FILLED_SHARE = 0.4
#: Between a mark and its name, cells.
_GAP = 2
#: The most important peers have names, and key nodes; room decides further.
_NAMES_MAX = 120
#: What matplotlib's shapes need to look equally large.
_SIZES = {"D": 0.82, "*": 1.3, "P": 1.1, "X": 1.1, "s": 0.92}
#: Above the picture: a line, and notes.
_HEAD_INCHES = 0.85
#: Share of the width that the picture has; the legend has the rest.
_PICTURE_SHARE = 0.74
#: Communities in the legend: what fits beside the picture.
_LEGEND_MAX = 16
# matplotlib types its keys one by one; where it is missing there is nothing to type them with.
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "p2pcompute",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.usetex": False,
    "font.family": "DejaVu Sans",
    "font.size": _FONT_POINTS,
    "path.simplify": False,
}


def picture(scene: Scene, kind: Format) -> bytes:
    """The file. Blocks: half a second at 100 peers. Raises ResourceError where matplotlib is missing."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ResourceError(
            "drawing a file needs matplotlib, which is not installed here: "
            f"{sys.executable} -m pip install 'matplotlib>=3.8' (without it, `p2pcompute topology` draws in the terminal)"
        ) from error
    # The user's own matplotlibrc must not change the picture, nor choose a backend with windows.
    with matplotlib.rc_context(), _quiet():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), facecolor="white")
        FigureCanvasAgg(figure)
        _draw(figure, scene)
        sink = io.BytesIO()
        metadata = {"Date": None, "Creator": "p2pcompute"} if kind == "svg" else {"Software": "p2pcompute"}
        figure.savefig(sink, format=kind, dpi=PNG_DPI, metadata=metadata)
        return sink.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """A script that the font lacks is no matter for the user: an SVG holds the text all the same, a PNG shows boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support .* natively")
        yield


def _draw(figure: Figure, scene: Scene) -> None:
    columns = round(WIDTH_INCHES * _PICTURE_SHARE * _CELLS_PER_INCH)
    rows = round((HEIGHT_INCHES - _HEAD_INCHES) * _CELLS_PER_INCH)
    axes = figure.add_axes((0.0, 0.0, _PICTURE_SHARE, 1.0 - _HEAD_INCHES / HEIGHT_INCHES))
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_axis_off()
    figure.text(0.02, 0.955, scene.summary, fontsize=12, fontweight="bold", color="black", va="center")
    notes = [line for note in scene.notes for line in textwrap.wrap(note, 120)][:3]
    figure.text(0.02, 0.935, "\n".join(notes), color="black", va="top")
    cells = _mark_cells(len(scene.peers), columns * rows)
    spots = _spots(scene, columns, rows, cells)
    _draw_links(axes, scene, spots)
    _draw_marks(axes, scene, spots, cells)
    _draw_names(axes, scene, spots, cells)
    _draw_legend(figure, scene)


def _mark_cells(peers: int, cells: int) -> int:
    """Width of a mark, odd: as large as leaves most of the picture empty."""
    size = _MARK_CELLS
    while size > _MARK_CELLS_MIN and peers * (size + 1) ** 2 > _FILLED_SHARE * cells:
        size -= 2
    return size


def _width_of(peer: ScenePeer, cells: int) -> int:
    """Cells of a peer's mark with what is around it."""
    return cells + (4 if peer.is_own else 2 if peer.is_key_node else 0)


def _spots(scene: Scene, columns: int, rows: int, cells: int) -> list[Spot | None]:
    from matplotlib.textpath import TextPath

    marks = []
    for number, peer in enumerate(scene.peers):
        is_named = number < _NAMES_MAX or peer.is_key_node
        points = TextPath((0, 0), peer.name, size=_FONT_POINTS).get_extents().width if is_named else 0.0
        # A fifth more than the outline, for bold type and what fonts of viewers differ.
        name_cells = round(1.2 * points / 72 * _CELLS_PER_INCH) + 1 if is_named else 0
        marks.append(Mark(peer.x, peer.y, peer.community, _width_of(peer, cells), name_cells))
    return place(
        marks,
        Canvas(
            columns,
            rows,
            aspect=1.0,
            mark_height=cells,
            name_height=max(cells, _NAME_CELLS),
            gap=_GAP,
            margin_x=1,
            margin_y=2 if cells > 1 else 1,
        ),
    )


def _draw_links(axes: Axes, scene: Scene, spots: Sequence[Spot | None]) -> None:
    from matplotlib.collections import LineCollection

    between = [link for link in scene.links if link.is_estimated or _joins(scene, link)]
    within = [link for link in scene.links if not (link.is_estimated or _joins(scene, link))]
    widest = max((link.weight for link in scene.links), default=1.0)
    shown = [*between, *within][:LINKS_MAX]
    # Thousands of links are thin, or they would hide each other.
    thinner = min(1.0, (_LINKS_USUAL / max(len(shown), 1)) ** 0.5)
    for is_estimated, name in ((False, "links"), (True, "links-estimated")):
        lines, widths, colours = [], [], []
        for link in shown:
            one, other = spots[link.one], spots[link.other]
            if link.is_estimated is is_estimated and one is not None and other is not None:
                lines.append([(one.column, one.row), (other.column, other.row)])
                widths.append(thinner * max(_LINE_WIDEST * (link.weight / widest) ** 0.5, _LINE_NARROWEST))
                colours.append("#555555" if _joins(scene, link) else "#bbbbbb")
        if lines:
            style = (0, (4, 3)) if is_estimated else "solid"
            drawn = LineCollection(lines, linewidths=widths, colors=colours, linestyles=style, alpha=0.5, zorder=1)
            drawn.set_gid(name)
            axes.add_collection(drawn)


def _joins(scene: Scene, link: SceneLink) -> bool:
    """Whether `link` joins two communities."""
    one, other = scene.pair(link)
    return one != other


def _draw_marks(axes: Axes, scene: Scene, spots: Sequence[Spot | None], cells: int) -> None:
    thinner = min(1.0, cells / _MARK_CELLS)
    across = cells / _CELLS_PER_INCH * 72
    for community in scene.communities:
        number = community["community"]
        places = [
            (spot, peer)
            for spot, peer in zip(spots, scene.peers, strict=True)
            if peer.community == number and spot is not None
        ]
        marker = MARKERS[number % len(MARKERS)]
        points = _SIZES.get(marker, 1.0) * across
        drawn = axes.scatter(
            [spot.column for spot, _ in places],
            [spot.row for spot, _ in places],
            s=[(1.35 * points if peer.is_key_node else points) ** 2 for _, peer in places],
            c=colour_of(number),
            marker=marker,
            edgecolors=["black" if peer.is_key_node else "#444444" if peer.stand_in else "white" for _, peer in places],
            linewidths=[thinner * (1.6 if peer.is_key_node else 0.8 if peer.stand_in else 0.3) for _, peer in places],
            zorder=3,
        )
        drawn.set_gid(f"community-{community['name']}")
    own = next((spot for spot, peer in zip(spots, scene.peers, strict=True) if peer.is_own), None)
    if own is not None:
        ring = axes.scatter([own.column], [own.row], s=(1.8 * max(across, 4.0)) ** 2, facecolors="none", edgecolors="black", linewidths=1.0, zorder=4)  # fmt: skip
        ring.set_gid("this-peer")


def _draw_names(axes: Axes, scene: Scene, spots: Sequence[Spot | None], cells: int) -> None:
    for spot, peer in zip(spots, scene.peers, strict=True):
        if spot is None or spot.name_column is None:
            continue
        is_right = spot.name_column > spot.column
        # Beside the mark, whatever the viewer's font makes of the width that was kept free.
        beside = _width_of(peer, cells) / 2 + _GAP - 0.5
        axes.text(
            spot.column + (beside if is_right else -beside),
            spot.row,
            peer.name,
            ha="left" if is_right else "right",
            va="center_baseline",
            color="black",
            fontweight="bold" if peer.is_own or peer.is_key_node else "normal",
            zorder=5,
        )


def _draw_legend(figure: Figure, scene: Scene) -> None:
    from matplotlib.lines import Line2D

    names = scene.names
    handles, labels = [], []
    shown = scene.communities if len(scene.communities) <= _LEGEND_MAX else scene.communities[: _LEGEND_MAX - 1]
    for community in shown:
        number, count = community["community"], len(community["members"])
        marker = MARKERS[number % len(MARKERS)]
        handles.append(Line2D([], [], linestyle="none", marker=marker, color=colour_of(number), markersize=8))
        peers = f"{count} {'peer' if count == 1 else 'peers'}"
        labels.append(f"{community['name']}: {peers}, key node {names[community['key_node']]}\n{lends(community)}")
    if len(shown) < len(scene.communities):
        handles.append(Line2D([], [], linestyle="none"))
        labels.append(f"and {len(scene.communities) - len(shown)} more communities")
    corner = (_PICTURE_SHARE + 0.005, 0.98)
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=corner, frameon=False, labelspacing=0.8)

    def dot(size: float, edge: str, edge_width: float) -> Line2D:
        return Line2D([], [], color="#999999", marker="o", linestyle="none", markersize=size, markeredgecolor=edge, markeredgewidth=edge_width)  # fmt: skip

    signs = [
        (dot(9, "black", 1.6), "key node"),
        (dot(7, "#444444", 0.8), "stand-in"),
        (Line2D([], [], marker="o", linestyle="none", fillstyle="none", color="black", markersize=12), "this peer"),
        (Line2D([], [], color="#555555", linewidth=1.2), "link between communities"),
        (Line2D([], [], color="#bbbbbb", linewidth=_LINE_WIDEST), "link within one (wider: nearer, faster)"),
    ]
    if any(link.is_estimated for link in scene.links):
        signs.append((Line2D([], [], color="#555555", linewidth=1.2, linestyle=(0, (4, 3))), "estimated, not measured"))
    corner = (_PICTURE_SHARE + 0.005, 0.02)
    figure.legend(*zip(*signs, strict=True), loc="lower left", bbox_to_anchor=corner, frameon=False, labelspacing=0.8)
