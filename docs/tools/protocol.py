"""Writes the generated part of docs/protocol.md: frames, every message with its fields, and every limit."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from parts import ROOT, main

from p2pcompute.model import limits
from p2pcompute.wire import beacon, codec, datagram, framing, gossip, pointer, record, session, versions
from p2pcompute.wire.families import CONTROL_MESSAGES, LINK_MESSAGES
from p2pcompute.wire.messages import PAYLOAD, Message

TOOL = "docs/tools/protocol.py"
PAGE = ROOT / "docs" / "protocol.md"
_UNITS = {"BYTES": "bytes", "S": "s", "MS": "ms", "CHARS": "characters"}


def _number(value: float) -> str:
    if isinstance(value, int):
        for power in (63, 62):
            if value in (1 << power, (1 << power) - 1):
                return f"2^{power}" + ("-1" if value == (1 << power) - 1 else "")
        if value >= 1024 and value % (1 << 20) == 0:
            return f"{value >> 20} Mi"
        if value >= 1024 and value % 1024 == 0:
            return f"{value >> 10} Ki"
        return f"{value:,}"
    return f"{value:g}"


def described(check: codec.Check) -> str:
    """What may stand in a field, in words."""
    if check is PAYLOAD:
        return "bytes, or [blob id, size]"
    match check:
        case codec.Text(chars_max):
            return f"text, at most {_number(chars_max)} characters"
        case codec.Raw(bytes_max, bytes_min):
            return (
                f"{bytes_max} bytes"
                if bytes_max == bytes_min
                else f"{_number(bytes_min)} to {_number(bytes_max)} bytes"
            )
        case codec.Whole(low, high):
            return f"int, {_number(low)} to {_number(high)}"
        case codec.Real(low, high):
            return f"number, {_number(low)} to {_number(high)}"
        case codec.Truth():
            return "bool"
        case codec.Many(item, items_max):
            return f"list of at most {_number(items_max)}: {described(item)}"
        case codec.Row(places):
            return "[" + "; ".join(described(place) for place in places) + "]"
        case codec.Maybe(inner):
            return f"nil, or {described(inner)}"
        case codec.Inner(schema):
            return "map {" + "; ".join(f"{name}: {described(each)}" for name, each in schema.checks.items()) + "}"
        case codec.Converted(inner=inner, from_plain=kind):
            if isinstance(kind, type) and hasattr(kind, "__members__"):
                return "one of " + ", ".join(str(member.value) for member in kind)  # type: ignore[attr-defined]
            return described(inner)
        case codec.Plain():
            return "any"
    return type(check).__name__


def _fields(cls: type) -> list[str]:
    schema: codec.Schema[Any] = codec.Schema(cls)
    if not schema.checks:
        return ["No fields.", ""]
    lines = ["| field | what may stand there |", "|---|---|"]
    for name, check in schema.checks.items():
        lines.append(f"| `{name}`{'' if name in schema.required else ' (optional)'} | {described(check)} |")
    if schema.keeps_unknown:
        lines += ["", "Fields of later versions are kept."]
    return [*lines, ""]


def _paragraph(text: str | None) -> str:
    # Indented blocks (layouts, trees) stay indented, and so become code.
    return inspect.cleandoc(text or "")


def _messages(family: tuple[type[Message], ...]) -> list[str]:
    lines = []
    for cls in sorted(family, key=lambda cls: cls.kind):
        lines += [f"#### {cls.kind} {cls.__name__}", "", _paragraph(cls.__doc__), "", *_fields(cls)]
    return lines


def _verbatim(text: str | None) -> list[str]:
    """A docstring whose indented block is a table: kept as it stands."""
    return (text or "").strip().splitlines()


def _limits() -> list[str]:
    lines = ["| limit | value | why |", "|---|---|---|"]
    why = ""
    for line in Path(limits.__file__).read_text(encoding="utf-8").splitlines():
        if line.startswith("#:"):
            why = f"{why} {line[2:].strip()}".strip()
        elif line.startswith("# ---"):
            title = line.strip("#- ")
            lines.append(f"| **{title}** | | |")
            why = ""
        elif found := re.match(r"([A-Z][A-Z_0-9]+) =", line):
            name = found[1]
            unit = next((_UNITS[part] for part in reversed(name.split("_")) if part in _UNITS), "")
            value = getattr(limits, name)
            shown = str(value) if name.endswith("_PORT") else _number(value)
            lines.append(f"| `{name}` | {shown} {unit} | {why} |".replace("  |", " |"))
            why = ""
    return lines


def part() -> str:
    """The generated part."""
    lines = ["## Versions", "", _paragraph(versions.__doc__), ""]
    lines += ["| what | version |", "|---|---|"]
    lines += [
        f"| {name.lower().replace('_', ' ')} | {value} |"
        for name, value in sorted(vars(versions).items())
        if name.isupper() and isinstance(value, int | str)
    ]
    lines += ["", "## Frames", "", _paragraph(framing.__doc__), ""]
    lines += ["## Messages between peers", "", *_messages(LINK_MESSAGES)]
    lines += ["## Messages on the control socket", "", *_messages(CONTROL_MESSAGES)]
    lines += ["## Peer records", "", _paragraph(record.__doc__), ""]
    lines += _fields(record._Body)
    lines += ["## Sealed datagrams", "", *_verbatim(datagram.__doc__), "", _paragraph(session.__doc__), ""]
    lines += ["## Rumours", "", _paragraph(gossip.__doc__), ""]
    for rumour in (gossip.Announcement, gossip.Suspicion, gossip.LoadUpdate):
        lines += [f"#### {rumour.__name__}", "", _paragraph(rumour.__doc__), ""]
    lines += ["## The address book", "", _paragraph(pointer.__doc__), ""]
    lines += ["## LAN beacons", "", _paragraph(beacon.__doc__), ""]
    lines += ["## Limits", "", *_limits()]
    return "\n".join(lines)


if __name__ == "__main__":
    assert dataclasses.is_dataclass(record._Body)
    main(PAGE, TOOL, part())
