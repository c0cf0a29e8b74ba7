"""The picture as a file: one mark a peer, names that stay text and do nothing, the same bytes again, no network and no display."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from p2pcompute.app.topology_figure import LINKS_MAX, MARKERS, PNG_DPI, WIDTH_INCHES, picture
from p2pcompute.app.topology_scene import Scene, scene_of
from p2pcompute.app.topology_terminal import COLOURS
from p2pcompute.model.errors import ResourceError
from tests.support.pictures import HOSTILE, NETWORKS, document_of, hostile_document

ROOT = Path(__file__).resolve().parents[3]
SVG = "{http://www.w3.org/2000/svg}"
# The continuous checks install the extra `test`, which has it: there it may not be missing.
needs_matplotlib = pytest.mark.skipif(
    find_spec("matplotlib") is None and not os.environ.get("CI"),
    reason="matplotlib is missing: pip install -e '.[test]'",
)


def groups(root: ET.Element, prefix: str) -> Iterator[ET.Element]:
    return (each for each in root.iter(f"{SVG}g") if each.get("id", "").startswith(prefix))


def marks(group: ET.Element) -> list[tuple[float, float]]:
    """The middle of each mark: matplotlib refers to a shape where all are alike, and writes each as a path where they are not."""
    within = {path for definitions in group.iter(f"{SVG}defs") for path in definitions.iter()}
    found = [(float(use.get("x", "nan")), float(use.get("y", "nan"))) for use in group.iter(f"{SVG}use")]
    for path in group.iter(f"{SVG}path"):
        if path not in within:
            numbers = [float(each) for each in re.findall(r"-?\d+(?:\.\d+)?", path.get("d", ""))]
            found.append((sum(numbers[::2]) / len(numbers[::2]), sum(numbers[1::2]) / len(numbers[1::2])))
    return found


def texts(root: ET.Element) -> list[str]:
    return ["".join(each.itertext()).strip() for each in root.iter(f"{SVG}text")]


def svg_of(scene: Scene) -> ET.Element:
    return ET.fromstring(picture(scene, "svg").decode())


@needs_matplotlib
@pytest.mark.parametrize("network", NETWORKS)
def test_there_is_one_mark_a_peer_and_every_key_node_has_its_name(network: str) -> None:
    scene = scene_of(document_of(**NETWORKS[network]))
    root = svg_of(scene)
    for community in scene.communities:
        (group,) = (each for each in groups(root, "community-") if each.get("id") == f"community-{community['name']}")
        assert len(set(marks(group))) == len(community["members"])
    assert len(list(groups(root, "this-peer"))) == 1
    shown = texts(root)
    for peer in scene.peers:
        if peer.is_key_node or peer.is_own:
            assert peer.name in shown
    assert scene.summary in shown
    for community in scene.communities:
        assert any(line.startswith(f"{community['name']}: ") for line in shown)


@needs_matplotlib
@pytest.mark.parametrize("network", NETWORKS)
def test_nothing_is_outside(network: str) -> None:
    root = svg_of(scene_of(document_of(**NETWORKS[network])))
    _, _, width, height = map(float, root.get("viewBox", "").split())
    for group in groups(root, "community-"):
        for x, y in marks(group):
            assert 0 < x < width
            assert 0 < y < height


@needs_matplotlib
def test_links_are_drawn_and_estimates_are_dashed() -> None:
    document = document_of(2, 3)
    document["links"][0]["estimated"] = True
    scene = scene_of(document)
    root = svg_of(scene)
    (measured,), (estimated,) = (
        [each for each in root.iter(f"{SVG}g") if each.get("id") == name] for name in ("links", "links-estimated")
    )
    paths = list(measured.iter(f"{SVG}path"))
    assert len(paths) == len(document["links"]) - 1
    (dashed,) = estimated.iter(f"{SVG}path")
    assert "stroke-dasharray" in dashed.get("style", "")
    assert not any("stroke-dasharray" in path.get("style", "") for path in paths)
    widths = {float(path.get("style", "").split("stroke-width: ")[1].split(";")[0]) for path in paths}
    assert max(widths) > 2 * min(widths), "near links are wider"
    assert "estimated, not measured" in texts(root)


@needs_matplotlib
def test_the_same_network_is_the_same_file() -> None:
    document = document_of(2, 5)
    svg = picture(scene_of(document), "svg")
    assert svg == picture(scene_of(document), "svg")
    assert b"<dc:date>" not in svg
    assert picture(scene_of(document), "png") == picture(scene_of(document), "png")


@needs_matplotlib
def test_names_of_strangers_stay_text() -> None:
    document = hostile_document()
    document["network"] = "<svg onload=x>\x1b$x$"
    scene = scene_of(document)
    assert picture(scene, "png")
    data = picture(scene, "svg").decode()
    assert "<script" not in data
    assert "onload=x>" not in data.replace("&lt;svg onload=x&gt;", "")
    root = ET.fromstring(data)
    assert not list(root.iter(f"{SVG}script"))
    assert not list(root.iter(f"{SVG}a"))
    shown = texts(root)
    for peer in scene.peers:
        assert peer.name in shown
    assert HOSTILE[11] in shown, "a formula stays as it was typed"
    # Nothing is fetched when somebody opens it: references lead into the file itself.
    for element in root.iter():
        for name, value in element.attrib.items():
            if name.endswith("href"):
                assert value.startswith("#")


@needs_matplotlib
def test_a_png_is_one() -> None:
    data = picture(scene_of(document_of(1, 2)), "png")
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(data[16:20], "big") == round(WIDTH_INCHES * PNG_DPI)


@needs_matplotlib
def test_thousands_of_links_are_left_out_the_lightest_within_communities_first() -> None:
    document = document_of(2, 100)
    ids = [row["peer"] for row in document["peers"]]
    row = {"rtt_ms": 1.0, "bandwidth_mbps": None, "estimated": False}
    document["links"] = [
        {"a": one, "b": other, "weight": 0.5, **row}
        for place, one in enumerate(ids)
        for other in ids[place + 1 : place + 60]
    ]
    root = svg_of(scene_of(document))
    assert (
        sum(len(list(group.iter(f"{SVG}path"))) for group in groups(root, "links"))
        == LINKS_MAX
        < len(document["links"])
    )


def test_colour_and_shape_tell_communities_apart() -> None:
    pairs = {(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]) for number in range(56)}
    assert len(pairs) == 56


@needs_matplotlib
def test_no_display_is_needed_and_the_users_settings_do_not_matter(tmp_path: Path) -> None:
    document = document_of(1, 2)
    (tmp_path / "matplotlibrc").write_text("backend: TkAgg\ntext.color: red\nlegend.fontsize: 30\nsvg.fonttype: path\n")
    code = (
        "import json, sys\n"
        "from p2pcompute.app.topology_figure import picture\n"
        "from p2pcompute.app.topology_scene import scene_of\n"
        "sys.stdout.buffer.write(picture(scene_of(json.load(sys.stdin)), 'svg'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(document).encode(),
        capture_output=True,
        check=False,
        env={
            **{key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")},
            "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == picture(scene_of(document), "svg")


def test_without_matplotlib_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ResourceError, match=r"-m pip install 'matplotlib>=3\.8'"):
        picture(scene_of(document_of(1, 2)), "svg")
