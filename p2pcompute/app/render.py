"""How data looks: tables for people, JSON for programs.

Owns every conversion of a value to text on stdout. Rich is loaded only when a table is drawn; without a terminal tables
have no colours and their full width, so that they can be searched and piped.

Refuses to know where the data came from.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

Row = Mapping[str, Any]
#: Width of a table that no terminal limits.
_WIDE = 4_000


def console(*, stderr: bool = False) -> Console:
    """Where tables and progress go."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, soft_wrap=False, width=None if stream.isatty() else _WIDE)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))


def print_json_line(value: Any) -> None:
    """One JSON document on one line of stdout, at once."""
    click.echo(json.dumps(plain(value), ensure_ascii=False))
    sys.stdout.flush()


def result_text(value: Any) -> str:
    """A result as people and other programs can read it: JSON where it has that form, else its repr."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        return repr(value)


def plain(value: Any) -> Any:
    """`value` in JSON's own types; what has no such form becomes its repr, bytes their base64."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else repr(value)  # JSON has no infinities and no NaN
    if isinstance(value, (bytes, bytearray)):
        import base64

        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else result_text(key): plain(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(member) for member in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(member) for member in value), key=repr)
    return repr(value)


Column = tuple[str, Callable[[Row], str], str]


def print_table(title: str, columns: Sequence[Column], rows: Iterable[Row], *, empty: str) -> None:
    """A table on stdout; `empty` where there is no row."""
    drawn = table_of(title, columns, rows)
    if drawn.row_count == 0:
        click.echo(empty, err=True)
    else:
        console().print(drawn)


def table_of(title: str, columns: Sequence[Column], rows: Iterable[Row]) -> Any:
    """The table, not printed yet. Columns are (heading, text of a row, "left" or "right")."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, _, justify in columns:
        table.add_column(heading, justify="right" if justify == "right" else "left", no_wrap=True)
    for row in rows:
        # Texts of other peers are shown as they are: nothing in them is read as markup.
        table.add_row(*[Text(printable(text_of(row))) for _, text_of, _ in columns])
    return table


def printable(text: str) -> str:
    """`text` without what a terminal would obey: a peer chooses its own name."""
    return "".join(character if character.isprintable() else "�" for character in text)


def number(value: Any, digits: int = 0, unit: str = "") -> str:
    """A number for a table, a dash where it is unknown."""
    return "-" if value is None else f"{value:.{digits}f}{unit}"


def size_text(size_bytes: float | None) -> str:
    """Bytes for a table: "12 MiB"; a dash for none, or where they are unknown."""
    if not size_bytes:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024 or unit == "GiB":
            break
        size_bytes /= 1024
    return f"{size_bytes:.0f} {unit}"


def duration(seconds: float | None) -> str:
    """A duration for a table: "0.42 s", "3 min 05 s", "2 h 10 min"."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} days"


def moment(wall_s: float | None) -> str:
    """A date for a table."""
    if wall_s is None:
        return "-"
    return datetime.datetime.fromtimestamp(wall_s, datetime.UTC).strftime("%Y-%m-%d")


def peer_columns(*, wide: bool = False) -> list[Column]:
    """The columns of `p2pcompute peers`."""
    columns: list[Column] = [
        ("peer", lambda row: str(row["name"]), "left"),
        ("id", lambda row: str(row["short"]), "left"),
        ("state", _state, "left"),
        ("cores", lambda row: number(row["cores"]), "right"),
        ("memory", lambda row: number(row["memory_gb"], 1, " GB"), "right"),
        ("GPU", lambda row: gpu_text(row["gpus"]), "left"),
        ("score", lambda row: number(row["score"], 0), "right"),
        ("slots", lambda row: number(row["slots"]), "right"),
        ("load", lambda row: number(row["load"], 2), "right"),
        ("round trip", lambda row: number(row["rtt_ms"], 2, " ms"), "right"),
        ("Mbit/s", lambda row: number(row["bandwidth_mbps"], 0), "right"),
        ("path", _path, "left"),
        ("Python", lambda row: str(row["python"]), "left"),
        ("isolation", lambda row: str(row["isolation"]), "left"),
    ]
    if wide:
        columns += [
            ("why this path", lambda row: str(row.get("path_why") or "-"), "left"),
            ("reach", _reach, "left"),
            ("tasks/hour", lambda row: number(row.get("tasks")), "right"),
            ("success", lambda row: _percent(row.get("success_rate")), "right"),
            ("mean time", lambda row: _time(row.get("mean_s")), "right"),
            ("per function", _functions, "left"),
            ("engines", lambda row: ", ".join(row.get("engines") or []) or "-", "left"),
            ("grants", lambda row: ", ".join(row.get("grants") or []) or "-", "left"),
            ("labels", lambda row: ", ".join(row.get("labels") or []) or "-", "left"),
            ("cost/h", lambda row: number(row.get("cost_per_hour"), 2), "right"),
            ("tier", lambda row: str(row.get("performance_tier") or "-"), "left"),
            ("roles", lambda row: ", ".join(row["roles"]) or "-", "left"),
            ("platform", lambda row: str(row["platform"]), "left"),
            ("version", lambda row: str(row["version"]), "left"),
            ("addresses", lambda row: ", ".join(row["addresses"]) or "-", "left"),
            ("last error", lambda row: str(row["last_error"] or "-"), "left"),
            ("whole id", lambda row: str(row["peer"]), "left"),
        ]
    return columns


def gpu_text(gpus: Sequence[str]) -> str:
    """Names of accelerators, counted."""
    counts: dict[str, int] = {}
    for name in gpus:
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in counts.items()) or "-"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}" if share in (0.0, 1.0) else f"{share:.1%}"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.3g} ms" if seconds < 1 else duration(seconds)


def _functions(row: Row) -> str:
    each = row.get("functions") or []
    texts = [
        f"{one['function']}: {_percent(one['success_rate'])} of {one['tasks']}, {_time(one['mean_s'])}"
        for one in each[:3]
    ]
    more = [f"and {len(each) - 3} more (--json)"] if len(each) > 3 else []
    return "; ".join(texts + more) or "-"


def _path(row: Row) -> str:
    path, via = row["path"], row.get("path_via")
    return f"{path} via {via}" if path and via else str(path or "-")


def _reach(row: Row) -> str:
    reach, relays = row.get("reach"), row.get("relays") or []
    through = f", relays {', '.join(str(relay['name']) for relay in relays)}" if relays else ""
    refuses = ", no relay of others" if row.get("may_relay") is False else ""
    return f"{reach or '-'}{through}{refuses}"


def _state(row: Row) -> str:
    yields = row.get("yields") or []
    lends = f", {'lends less' if row['slots'] else 'paused'} ({', '.join(yields)})" if yields else ""
    if row["status"] == "self":
        return f"this peer{lends}"
    return f"{row['status']}, {'linked' if row['linked'] else 'not linked'}{lends}"
