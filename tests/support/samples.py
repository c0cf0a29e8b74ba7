"""Valid examples of every message, made from the checks of its fields, so that a new field needs no new example."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from p2pcompute.model.engine import Engine
from p2pcompute.model.ids import BLOB_ID_BYTES
from p2pcompute.model.job import Outcome, Payload
from p2pcompute.model.peer import Address, Isolation
from p2pcompute.wire import address, codec
from p2pcompute.wire.families import CONTROL_MESSAGES, LINK_MESSAGES
from p2pcompute.wire.messages import PAYLOAD, Message
from p2pcompute.wire.record import isolation_of

#: Nobody needs samples at the upper end of a limit of megabytes.
SAMPLE_ITEMS_MAX = 4
SAMPLE_BYTES_MAX = 48


def sample(check: codec.Check, rng: random.Random) -> Any:
    """A value in its Python form that `check` lets pass."""
    if check is PAYLOAD:
        inline = rng.randbytes(rng.randrange(0, SAMPLE_BYTES_MAX))
        blob = Payload(blob=rng.randbytes(BLOB_ID_BYTES), size_bytes=rng.randrange(0, 1 << 20))  # type: ignore[arg-type]
        return rng.choice([Payload(inline=inline, size_bytes=len(inline)), blob])
    match check:
        case codec.Text(chars_max):
            return "".join(rng.choices("abcdefgh -:/ÄΩ🙂", k=rng.randrange(0, min(chars_max, 24) + 1)))
        case codec.Raw(bytes_max, bytes_min):
            return rng.randbytes(rng.randint(bytes_min, max(bytes_min, min(bytes_max, SAMPLE_BYTES_MAX))))
        case codec.Whole(low, high):
            return rng.choice([low, high, rng.randint(low, high)])
        case codec.Real(low, high):
            return float(rng.choice([low, high, rng.uniform(low, high)]))
        case codec.Truth():
            return rng.random() < 0.5
        case codec.Many(item, items_max):
            return tuple(sample(item, rng) for _ in range(rng.randint(0, min(items_max, SAMPLE_ITEMS_MAX))))
        case codec.Row(places):
            return tuple(sample(place, rng) for place in places)
        case codec.Maybe(inner):
            return None if rng.random() < 0.3 else sample(inner, rng)
        case codec.Inner(schema):
            return sample_of(schema, rng)
        case codec.Converted(from_plain=from_plain):
            if from_plain is Outcome:
                return rng.choice(list(Outcome))
            if from_plain in (Isolation, isolation_of):
                return rng.choice(list(Isolation))
            if from_plain is Engine:
                return rng.choice(list(Engine))
            if from_plain is address.told_address:
                return Address(rng.choice(["10.1.2.3", "8.8.8.8", "2a00:1450::1"]), rng.randrange(1, 65536))
            if isinstance(check.inner, (codec.Row, codec.Raw)):
                return _converted(check.inner, from_plain, rng)
        case codec.Plain():
            return rng.choice([1, 2.5, "text", b"bytes", True, [1, [2]], {"key": {"inner": b"x"}}, {}])
    raise NotImplementedError(f"say in tests/support/samples.py how a valid value for {check!r} looks")


def _converted(inner: codec.Check, from_plain: Callable[[Any], Any], rng: random.Random) -> Any:
    """What the first value that means something means."""
    while True:
        try:
            return from_plain(sample(inner, rng))
        except ValueError:
            continue


def sample_of(schema: codec.Schema[Any], rng: random.Random) -> Any:
    """An object of the schema's class."""
    values = {name: sample(check, rng) for name, check in schema.checks.items()}
    for name, check in schema.checks.items():
        if isinstance(check, codec.Plain) and name in ("arguments", "attributes"):
            values[name] = {"name": 1, "other": [b"x", "y", None]}
    return schema.cls(**values)


def messages(rng: random.Random, copies: int = 3) -> Iterator[Message]:
    """Some of every kind of message, link and control."""
    for cls in dict.fromkeys(LINK_MESSAGES + CONTROL_MESSAGES):
        schema = codec.Schema(cls)
        for _ in range(copies):
            yield sample_of(schema, rng)
