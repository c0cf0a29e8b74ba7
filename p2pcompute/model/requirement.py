"""What a job demands of a peer: names, comparisons and values with units, read strictly.

    gpu_memory >= 16GB        python >= 3.12        label zone=lab        cost_per_hour <= 2.5

A name that is not known is an error with the nearest valid one; a value that cannot be read is an error that says how to write
it. As elsewhere in the product GB and GiB are both 2**30 bytes, as the tables of peers show them. Refuses to know
whether a peer meets anything: `jobs/requirements.py` does.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from p2pcompute.model import limits
from p2pcompute.model.errors import UnknownNameError, UsageError


class Kind(enum.Enum):
    """How values of a requirement are written and compared."""

    BYTES = "a size"
    COUNT = "a whole number"
    FREQUENCY = "a frequency"
    DURATION = "a time"
    RATE = "a rate"
    NUMBER = "a number"
    VERSION = "a version"
    #: One of an ordered list of names.
    RANK = "a rank"
    #: Compared without case; the peer's text need only contain it.
    PART = "a part of a text"
    #: Compared without case, as a whole.
    TEXT = "a text"
    #: One of the things that a peer has several of, by its whole name.
    MEMBER = "a name"
    #: A label of the peer: "zone=lab", or "zone" for any value of it.
    LABEL = "a label"


#: Peers that promise more compare greater; what a peer's owner sets as `performance_tier`.
TIERS = ("basic", "standard", "premium")
#: The tier of a peer whose owner says nothing.
TIER_DEFAULT = "standard"
#: How a peer holds other people's code, weakest first, as in `model.peer.Isolation`.
ISOLATIONS = ("process", "restricted", "sandbox", "wasm")

#: What may be demanded, with an example of a right value.
NAMES: Mapping[str, tuple[Kind, str]] = {
    "cpu_cores": (Kind.COUNT, ">=8"),
    "cpu_frequency": (Kind.FREQUENCY, ">=3GHz"),
    "memory": (Kind.BYTES, ">=32GB"),
    "available_memory": (Kind.BYTES, ">=8GB"),
    "gpu_count": (Kind.COUNT, ">=1"),
    "gpu_memory": (Kind.BYTES, ">=16GB"),
    "gpu_name": (Kind.PART, "H100"),
    "score": (Kind.NUMBER, ">=50"),
    "cpu_score": (Kind.NUMBER, ">=50"),
    "gpu_score": (Kind.NUMBER, ">=50"),
    "memory_score": (Kind.NUMBER, ">=50"),
    "slots": (Kind.COUNT, ">=4"),
    "load": (Kind.NUMBER, "<0.5"),
    "latency": (Kind.DURATION, "<=50ms"),
    "bandwidth": (Kind.RATE, ">=100Mbps"),
    "cost_per_hour": (Kind.NUMBER, "<=2.5"),
    "performance_tier": (Kind.RANK, ">=standard"),
    "python": (Kind.VERSION, ">=3.12"),
    "platform": (Kind.PART, "linux"),
    "isolation": (Kind.RANK, ">=sandbox"),
    "engine": (Kind.MEMBER, "wasm"),
    "grant": (Kind.MEMBER, "folder:data"),
    "name": (Kind.TEXT, "kitchen"),
    "label": (Kind.LABEL, "zone=lab"),
}
#: Other names for the same, with the unit that a bare number has then.
ALIASES: Mapping[str, tuple[str, str]] = {
    "cores": ("cpu_cores", ""),
    "labels": ("label", ""),
    "location": ("label", ""),
    "memory_gb": ("memory", "GB"),
    "gpu_memory_gb": ("gpu_memory", "GB"),
    "required_gpu_count": ("gpu_count", ""),
    "tier": ("performance_tier", ""),
}
_RANKS = {"performance_tier": TIERS, "isolation": ISOLATIONS}

#: Units by kind: how many of the kind's base unit (bytes, MHz, seconds, Mbit/s) one of each is.
_UNITS: Mapping[Kind, Mapping[str, float]] = {
    Kind.BYTES: {
        unit: 1024.0**power
        for power, units in enumerate((("B",), ("KB", "KiB"), ("MB", "MiB"), ("GB", "GiB"), ("TB", "TiB")))
        for unit in units
    },
    Kind.FREQUENCY: {"MHz": 1.0, "GHz": 1000.0},
    Kind.DURATION: {"us": 1e-6, "ms": 1e-3, "s": 1.0},
    Kind.RATE: {"kbps": 1e-3, "Mbps": 1.0, "Gbps": 1e3},
}
_NUMERIC = frozenset({Kind.BYTES, Kind.COUNT, Kind.FREQUENCY, Kind.DURATION, Kind.RATE, Kind.NUMBER})
_EQUAL_ONLY = frozenset({Kind.PART, Kind.TEXT, Kind.MEMBER, Kind.LABEL})
#: What is better smaller: a value alone means at most so much.
_AT_MOST = frozenset({"load", "latency", "cost_per_hour"})
_OPERATORS = (">=", "<=", "==", "!=", ">", "<", "=")
_QUANTITY = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)")
_VERSION = re.compile(r"\d{1,4}(?:\.\d{1,4}){0,3}")
_WHOLE_TEXT = re.compile(r"\s*([A-Za-z_]+)\s*(.*)", re.DOTALL)

Value = float | str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition. `value`: in base units (bytes, MHz, s, Mbit/s), a rank's place, a version's parts, or a text in lower case.

    `text` is the value as it was written; `str()` gives a form that `requirements_of` reads again.
    """

    name: str
    operator: str
    value: Value
    text: str

    @property
    def kind(self) -> Kind:
        """How it is compared."""
        return NAMES[self.name][0]

    def __str__(self) -> str:
        if self.kind is Kind.LABEL:
            return f"label {'' if self.operator == '==' else self.operator + ' '}{self.text}"
        return f"{self.name} {self.operator} {self.text}"


def requirements_of(given: object) -> tuple[Requirement, ...]:
    """Requirements from a mapping of names to expressions, or from texts such as "gpu_memory >= 16GB"; sorted.

    An expression is a comparison and a value, a value alone (at least so much; at most for load, latency and cost; for names
    and labels exactly that), several with commas between them, or for labels a mapping or a list. Raises UnknownNameError, UsageError.
    """
    found: list[Requirement] = []
    if isinstance(given, Mapping):
        for name, expression in given.items():
            found += _named(str(name), expression)
    elif isinstance(given, str):
        found += _whole(given)
    elif isinstance(given, Iterable):
        for member in given:
            if isinstance(member, Requirement):
                found.append(member)
            elif isinstance(member, str):
                found += _whole(member)
            else:
                raise UsageError(f"a requirement is {member!r}: write a text such as 'gpu_memory >= 16GB'")
    else:
        raise UsageError(f"requirements are {given!r}: give a mapping such as {{'gpu_memory': '>=16GB'}}")
    if len(found) > limits.REQUIREMENTS_MAX:
        raise UsageError(f"{len(found)} requirements: one job may have {limits.REQUIREMENTS_MAX}")
    return tuple(sorted(set(found), key=lambda each: (each.name, each.operator, each.text)))


def quantity(text: str, kind: Kind, example: str) -> float:
    """The number that `text` writes, in base units of `kind`. Raises UsageError, which says how to write it."""
    shown = _UNITS.get(kind, {})
    units = {unit.lower(): factor for unit, factor in shown.items()}
    match = _QUANTITY.fullmatch(text.strip())
    unit = match[2].lower() if match is not None else ""
    if match is None or (unit and unit not in units):
        valid = f" and a unit ({', '.join(shown)})" if shown else ""
        raise UsageError(f"{text!r} is not {kind.value}: write a number{valid}, for example {example!r}")
    if units and not unit and float(match[1]) != 0:
        raise UsageError(f"{text!r} has no unit: write one of {', '.join(shown)}, for example {example!r}")
    number = float(match[1]) * units.get(unit, 1.0)
    if kind is Kind.COUNT and number != int(number):
        raise UsageError(f"{text!r} is not a whole number: write for example {example!r}")
    return number


def _whole(text: str) -> list[Requirement]:
    match = _WHOLE_TEXT.fullmatch(text)
    if match is None or not match[2].strip():
        raise UsageError(
            f"{text!r} is no requirement: write a name, a comparison and a value, as in 'gpu_memory>=16GB'"
        )
    rest = match[2]
    _known(match[1])
    if not rest.startswith(_OPERATORS) and not text[match.end(1) :].startswith(" "):
        raise UsageError(f"{text!r} has no comparison: write one of {' '.join(_OPERATORS)}, as in 'gpu_memory>=16GB'")
    return _named(match[1], rest)


def _known(name: str) -> tuple[str, str]:
    alias = ALIASES.get(name.lower())
    if alias is not None:
        return alias
    if name.lower() not in NAMES:
        raise UnknownNameError("requirement", name, (*NAMES, *ALIASES))
    return name.lower(), ""


def _named(name: str, expression: object) -> list[Requirement]:
    canonical, unit = _known(name)
    kind, example = NAMES[canonical]
    if kind is Kind.LABEL:
        return _labels(name, expression)
    if isinstance(expression, list | tuple | set | frozenset):
        return [each for part in sorted(expression, key=repr) for each in _named(name, part)]
    if isinstance(expression, bool) or not isinstance(expression, str | int | float):
        raise UsageError(f"{name} is {expression!r}: write a comparison and a value, for example {example!r}")
    text = expression if isinstance(expression, str) else f"{expression:g}" if expression < 1e15 else str(expression)
    return [_condition(name, canonical, unit, part) for part in text.split(",")]


def _condition(given: str, name: str, unit: str, text: str) -> Requirement:
    kind, example = NAMES[name]
    operator, value = _split(text)
    if not operator:
        operator = "==" if kind in _EQUAL_ONLY else "<=" if name in _AT_MOST else ">="
    if kind in _EQUAL_ONLY and operator not in ("==", "!="):
        raise UsageError(f"{given} {operator} {value}: a {kind.value} has only == and !=, for example {example!r}")
    if not value or len(value) > limits.TEXT_CHARS_MAX or not value.isprintable():
        raise UsageError(f"{given} is {text!r}: write a comparison and a value, for example {example!r}")
    try:
        if kind in _NUMERIC:
            value = value + unit if unit and value.replace(".", "", 1).isdigit() else value
            return Requirement(name, operator, quantity(value, kind, example), value)
        if kind is Kind.VERSION:
            return Requirement(name, operator, _version(value, example), value)
    except UsageError as error:
        raise UsageError(f"{given} is {text.strip()!r}: {error}") from error
    if kind is Kind.RANK:
        ranks = _RANKS[name]
        if value.lower() not in ranks:
            raise UnknownNameError(f"value of {given}", value, ranks)
        return Requirement(name, operator, float(ranks.index(value.lower())), value.lower())
    return Requirement(name, operator, value if kind is Kind.MEMBER else value.lower(), value)


def _split(text: str) -> tuple[str, str]:
    stripped = text.strip()
    for operator in _OPERATORS:
        if stripped.startswith(operator):
            return ("==" if operator == "=" else operator), stripped[len(operator) :].strip()
    return "", stripped


def _version(text: str, example: str) -> tuple[int, ...]:
    if _VERSION.fullmatch(text) is None:
        raise UsageError(f"{text!r} is not a version: write for example {example!r}")
    return tuple(int(part) for part in text.split("."))


def _labels(name: str, expression: object) -> list[Requirement]:
    if isinstance(expression, Mapping):
        return [each for key, value in sorted(expression.items()) for each in _labels(name, f"{key}={value}")]
    if isinstance(expression, list | tuple | set | frozenset):
        return [each for part in sorted(expression, key=repr) for each in _labels(name, part)]
    operator, text = _split(expression) if isinstance(expression, str) else ("", "")
    if operator not in ("", "==", "!=") or not text or len(text) > limits.TEXT_CHARS_MAX or not text.isprintable():
        raise UsageError(f"{name} is {expression!r}: write a label such as 'zone=lab', or {{'zone': 'lab'}}")
    if name.lower() == "location" and "=" not in text:
        text = f"location={text}"
    return [Requirement("label", operator or "==", text, text)]
