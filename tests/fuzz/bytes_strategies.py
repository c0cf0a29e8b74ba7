"""Hostile bytes: noise, valid samples with damage, and well-formed msgpack that means nothing."""

from __future__ import annotations

from collections.abc import Sequence

import msgpack
from hypothesis import strategies as st

_PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def _damaged(draw: st.DrawFn, samples: Sequence[bytes]) -> bytes:
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 6)):
            case 0 if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case 1:
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case 2:
                del data[at : at + draw(st.integers(1, 16))]
            case 3:
                del data[at:]
            case 4:
                data[at:at] = data[max(0, at - 8) : at] * draw(st.integers(1, 4))
            case 5:
                other = draw(st.sampled_from(samples))
                data[at:] = other[min(at, len(other)) :]
            case _:
                # Lengths that promise more than is there, in msgpack and in our own frames.
                data[at : at + 4] = draw(
                    st.sampled_from(
                        [
                            b"\xdd\xff\xff\xff",
                            b"\xdf\x7f\xff\xff",
                            b"\xc6\xff\xff\xff",
                            b"\xff\xff\xff\xff",
                            b"\0\0\0\0",
                        ]
                    )
                )
    return bytes(data)


@st.composite
def _meaningless(draw: st.DrawFn, samples: Sequence[bytes]) -> bytes:
    """A valid sample, where it is msgpack, with one of its values replaced by another one of any type."""
    try:
        value = msgpack.unpackb(draw(st.sampled_from(samples)), raw=False, strict_map_key=False)
    except (ValueError, msgpack.UnpackException):
        value = draw(_PLAIN)
    holder: list[object] = [value]
    where: object = holder
    key: object = 0
    for _ in range(draw(st.integers(0, 4))):
        inner = where[key]  # type: ignore[index]
        if isinstance(inner, list) and inner:
            where, key = inner, draw(st.integers(0, len(inner) - 1))
        elif isinstance(inner, dict) and inner:
            where, key = inner, draw(st.sampled_from(sorted(inner, key=repr)))
        else:
            break
    where[key] = draw(_PLAIN)  # type: ignore[index]
    packed: bytes = msgpack.packb(holder[0], use_bin_type=True)
    return packed


def _deep(depth: int) -> bytes:
    return b"\x91" * depth + b"\x90"


def hostile(samples: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Bytes that a peer of bad will might send where `samples` are expected."""
    return (
        st.binary(max_size=400)
        | _damaged(samples)
        | _meaningless(samples)
        | _PLAIN.map(lambda value: msgpack.packb(value, use_bin_type=True))
        | st.sampled_from([10, 100, 600, 2_000, 100_000]).map(_deep)
    )
