"""Writes the diagram and the table of rooms in docs/ARCHITECTURE.md, from what the sources really import."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

import grimp

sys.path.insert(0, str(Path(__file__).resolve().parent))
from parts import ROOT, main

TOOL = "docs/tools/import_diagram.py"
PAGE = ROOT / "docs" / "ARCHITECTURE.md"


def room_imports() -> dict[str, dict[str, int]]:
    """Per room, which rooms it imports and by how many import statements between modules."""
    graph = grimp.build_graph("p2pcompute", cache_dir=None)
    rooms = sorted(name.partition(".")[2] for name in graph.find_children("p2pcompute"))
    found: dict[str, dict[str, int]] = {room: {} for room in rooms if room != "__main__"}
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            upper, lower = (f"{name}..".split(".")[1] for name in (importer, imported))
            if upper in found and lower in found and upper != lower:
                counts[upper, lower] += 1
    for (upper, lower), count in sorted(counts.items()):
        found[upper][lower] = count
    return found


def _sentence(room: str) -> str:
    text = ast.get_docstring(ast.parse((ROOT / "p2pcompute" / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def _height(room: str, imports: dict[str, dict[str, int]]) -> int:
    return 1 + max((_height(lower, imports) for lower in imports[room]), default=-1)


def part() -> str:
    """The generated part: a mermaid diagram and a table."""
    imports = room_imports()
    reached: dict[str, set[str]] = {}
    for room in sorted(imports, key=lambda room: _height(room, imports)):
        reached[room] = set(imports[room]).union(*(reached[lower] for lower in imports[room]))
    lines = ["An arrow means: imports. Arrows that follow from others are left out here; the table below has all.", ""]
    lines += ["```mermaid", "flowchart TD"]
    for room in sorted(imports, key=lambda room: (-_height(room, imports), room)):
        direct = [
            lower
            for lower in imports[room]
            if not any(lower in reached[other] for other in imports[room] if other != lower)
        ]
        lines += [f"    {room} --> {lower}" for lower in sorted(direct)] or [f"    {room}"]
    lines += ["```", "", "| room | what it owns | imports |", "|---|---|---|"]
    for room in sorted(imports, key=lambda room: (_height(room, imports), room)):
        lines.append(f"| `{room}` | {_sentence(room)} | {', '.join(imports[room]) or '-'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(PAGE, TOOL, part())
