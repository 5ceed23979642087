"""Ways in which a file may be other than it was written."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

OTHER_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 1e308, 2**70, "", "x", "../x", "/etc/passwd", [], [None], {}, {"": []}, [[[[]]]], "é\u2028",
)  # fmt: skip
OTHER_FILES = (b"", b"\0", b"null", b"[]", b"{}", b'"x"', b"1e999", b"[" * 5000, b"\xff\xfe", b"PK\x03\x04", b"\n\n\n")


class Mutation(NamedTuple):
    """Changed bytes, and what was done to them in words."""

    data: bytes
    what: str


def mutations(data: bytes, *, count: int, seed: int) -> Iterator[Mutation]:
    """`count` changes of a file, the same for the same seed; every kind comes in turn."""
    rng = random.Random(seed)
    kinds: list[Callable[[bytes, random.Random], Mutation]] = [
        _flip, _cut, _flip, _byte, _flip, _zeros, _double, _flip, _whole
    ]  # fmt: skip
    if _is_json(data):
        kinds += [_value, _member, _value]
    for number in range(count):
        yield kinds[number % len(kinds)](data, rng)


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def _flip(data: bytes, rng: random.Random) -> Mutation:
    place, bit = rng.randrange(len(data)), rng.randrange(8)
    changed = bytearray(data)
    changed[place] ^= 1 << bit
    return Mutation(bytes(changed), f"bit {bit} of byte {place} flipped")


def _byte(data: bytes, rng: random.Random) -> Mutation:
    place, value = rng.randrange(len(data)), rng.randrange(256)
    return Mutation(data[:place] + bytes([value]) + data[place + 1 :], f"byte {place} set to {value}")


def _cut(data: bytes, rng: random.Random) -> Mutation:
    length = rng.randrange(len(data))
    return Mutation(data[:length], f"cut to {length} bytes")


def _zeros(data: bytes, rng: random.Random) -> Mutation:
    place, length = rng.randrange(len(data)), rng.choice((1, 16, 512, 4096))
    changed = data[:place] + bytes(min(length, len(data) - place)) + data[place + length :]
    return Mutation(changed, f"{length} zeros from byte {place} on")


def _double(data: bytes, rng: random.Random) -> Mutation:
    place, length = rng.randrange(len(data)), rng.choice((1, 7, 64, 1024))
    return Mutation(data[:place] + data[place : place + length] + data[place:], f"{length} bytes at {place} doubled")


def _whole(data: bytes, rng: random.Random) -> Mutation:
    other = rng.choice(OTHER_FILES)
    return Mutation(other, f"the whole file {other[:20]!r}")


def _value(data: bytes, rng: random.Random) -> Mutation:
    """Another value, of another type as a rule, somewhere in a JSON document."""
    loaded, value = json.loads(data), rng.choice(OTHER_VALUES)
    place = rng.choice(list(_places(loaded)))
    return Mutation(_dumped(_replaced(loaded, place, value)), f"{'.'.join(map(str, place))} set to {value!r:.30}")


def _member(data: bytes, rng: random.Random) -> Mutation:
    """One member less, or one more, of the outermost JSON object."""
    loaded = json.loads(data)
    if not isinstance(loaded, dict) or rng.random() < 0.3:
        return Mutation(_dumped({**loaded, "more": 1} if isinstance(loaded, dict) else [loaded]), "a member more")
    name = rng.choice(list(loaded))
    return Mutation(_dumped({key: value for key, value in loaded.items() if key != name}), f"without {name}")


def _places(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield place
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield from _places(one, (*place, key))


def _replaced(value: Any, place: tuple[str | int, ...], new: Any) -> Any:
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = _replaced(value[place[0]], place[1:], new)
    return copy


def _dumped(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"
