"""Which image goes to which shard: a pure function of the list of images and the settings."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from pipeline.artifacts.fingerprint import fingerprint
from pipeline.artifacts.manifest import MANIFEST_FORMAT_VERSION, ShardStats
from pipeline.foundation.errors import InputError
from preprocess.config import ShardSettings
from preprocess.sources.listing import Kind, Listing, Source

LIBRARIES = ("fast-slic", "numpy", "pillow", "simplejpeg")
ROUNDS = 6


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """What one worker needs to make one shard: `sources` under `root`, with keys from `first_key` on.

    `kind` and `column` say how they are read, `versions` what the worker must have installed, `fingerprint` whose
    shard it is, `format_version` of which format. Where `expected` is given, no other shard may take its place.
    """

    name: str
    first_key: int
    root: str
    kind: Kind
    column: str | None
    sources: tuple[Source, ...]
    settings: ShardSettings
    versions: dict[str, str]
    fingerprint: str
    format_version: int = MANIFEST_FORMAT_VERSION
    expected: ShardStats | None = None


@dataclass(frozen=True)
class Plan:
    """A list of images cut into shards, in a seeded order. `format_version` is of the shards."""

    listing: Listing
    settings: ShardSettings
    format_version: int = MANIFEST_FORMAT_VERSION

    def __len__(self) -> int:
        return math.ceil(self.total / self.settings.images_per_shard)

    @property
    def total(self) -> int:
        """Images in the plan: all that are listed, or as many as the settings count."""
        return min(len(self.listing), self.settings.count or len(self.listing))

    def name(self, number: int) -> str:
        """File name of a shard."""
        return f"{self.settings.prefix}-{number:06d}.tar"

    def number(self, name: str) -> int:
        """The reverse of `name`."""
        return int(name.removeprefix(f"{self.settings.prefix}-").removesuffix(".tar"))

    def positions(self, number: int) -> range:
        """Places in the seeded order, and with them the keys, of a shard's images."""
        per_shard = self.settings.images_per_shard
        return range(number * per_shard, min((number + 1) * per_shard, self.total))

    def sources(self, positions: Sequence[int]) -> list[Source]:
        """The images at these places of the seeded order."""
        found = permuted(np.asarray(positions, np.int64), total=len(self.listing), seed=self.settings.seed)
        return [self.listing[int(number)] for number in found]

    def task(self, number: int) -> ShardTask:
        """The task that makes shard `number`."""
        positions = self.positions(number)
        return ShardTask(
            name=self.name(number),
            first_key=positions.start,
            root=self.listing.root,
            kind=self.listing.kind,
            column=self.listing.column,
            sources=tuple(self.sources(positions)),
            settings=self.settings,
            versions=self.versions,
            fingerprint=self.fingerprint,
            format_version=self.format_version,
        )

    def tasks(self) -> Iterator[ShardTask]:
        """Every task, in order."""
        return map(self.task, range(len(self)))

    @cached_property
    def versions(self) -> dict[str, str]:
        """The libraries whose version may change a byte of a shard."""
        return versions_for(self.settings)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides the content: settings, list of images, library versions, format."""
        return fingerprint(
            format_version=self.format_version,
            settings=self.settings.content(),
            versions=self.versions,
            images=self.listing.sha256,
        )


def versions_for(settings: ShardSettings) -> dict[str, str]:
    """Versions of what is installed here, as far as the settings use it. Raises InputError where it is not."""
    backends = {made.backend for made in (settings.superpixels, *settings.maps.values())}
    names = LIBRARIES + (("scikit-image",) if backends & {"skimage", "felzenszwalb"} else ())
    try:
        return {name: version(name) for name in names} | {"zlib": zlib.ZLIB_RUNTIME_VERSION}
    except PackageNotFoundError as error:
        raise InputError(f"{error.name} is not installed here; pip install -e '.[skimage]'") from None


def permuted(positions: np.ndarray, *, total: int, seed: int) -> np.ndarray:
    """Where a seeded bijection of [0, total) takes each of `positions` (N,): int64 (N,), without a list of `total`.

    A Feistel network over the next power of four, walked along its cycle until it falls below `total` (Black and
    Rogaway, "Ciphers with arbitrary finite domains", 2002, §3).
    """
    assert total < 2**62
    if positions.size and not 0 <= positions.min() <= positions.max() < total:
        raise ValueError(f"positions must lie in 0 … {total - 1}")
    half_bits = max(1, math.ceil(math.ceil(math.log2(max(total, 2))) / 2))
    keys = np.frombuffer(hashlib.blake2b(seed.to_bytes(32, "little"), digest_size=8 * ROUNDS).digest(), dtype="<u8")
    values = _feistel(positions.astype(np.uint64), half_bits=half_bits, keys=keys)
    while (outside := values >= total).any():
        values[outside] = _feistel(values[outside], half_bits=half_bits, keys=keys)
    return values.astype(np.int64)


def _feistel(values: np.ndarray, *, half_bits: int, keys: np.ndarray) -> np.ndarray:
    shift, mask = np.uint64(half_bits), np.uint64(2**half_bits - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return left << shift | right


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele et al. 2014) over uint64 (N,)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
