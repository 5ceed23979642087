"""Superpixels of annotated images, from finished shards of the same images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

from pipeline.artifacts.label_maps import MAIN_MAP, map_member
from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.sample import META_MEMBER, SampleMeta, decode_label_map, source_name
from pipeline.foundation.errors import InputError
from train.config.data import DataSettings
from train.data.shards.open import open_shards
from train.data.shards.reader import RawSample, ShardReader

ABO_SUPERPIXELS = "eval_frozen.abo.superpixels"


class ShardSuperpixels:
    """The superpixels of named images, in the order of the names.

    An image is found by `source`, which the json of a sample holds: its path below what was given as IMAGES. The name
    must be that path or its end, with or without the suffix.

    Attributes:
        max_superpixels: ids are below this.
        size: height and width of every label map.
    """

    def __init__(self, place: str, names: Sequence[str], *, key: str) -> None:
        """Find every image; reads the json of every sample.

        Args:
            place: path or URL of the shards.
            key: the setting that names them, for messages.
        Raises:
            InputError: these are no finished shards, a shard is missing or damaged, or not every name fits exactly
                one sample.
        """
        manifest = Manifest.read(place)
        self._reader = open_shards(place, manifest, DataSettings())
        if problems := self._reader.files.problems():
            raise InputError(f"{key}: {next(iter(problems.values()))}")
        self.max_superpixels, self.size = manifest.max_superpixels, manifest.superpixel_size
        self._place, self._key, self._names = self._reader.files.place, key, tuple(names)
        wanted: dict[str, list[int]] = {source_name(os.fsencode(name)): [] for name in self._names}
        for sample_id, source in _sources(self._reader):
            for name in _names_of(source) & wanted.keys():
                wanted[name].append(sample_id)
        self._ids = self._one_each([*wanted.values()])

    def read(self, index: int, shape: tuple[int, int]) -> Integer[np.ndarray, "s s"]:
        """The superpixels of one image, int32.

        Args:
            shape: height and width of the image's annotation, by which another image of that name is told.
        Raises:
            InputError: the sample is damaged, or its image has other proportions.
        """
        meta, label_map = self._reader.decoded(self._ids[index], partial(_decoded, limit=self.max_superpixels))
        (height, width), name = shape, self._names[index]
        if abs(meta.width * height - meta.height * width) > max(meta.width, meta.height, width, height):
            raise InputError(
                f"{self._key}: {name} is {meta.width}×{meta.height} in {self._place}, but its annotation is "
                f"{width}×{height}; make the shards from the images of this data set"
            )
        if label_map.shape != (self.size, self.size):
            raise InputError(f"{self._key}: {self._place}: {name} has no map of {self.size}×{self.size}; {_AGAIN}")
        return label_map.astype(np.int32)

    def _one_each(self, found: list[list[int]]) -> list[int]:
        """The sample of every name, of those that fit it."""
        again = (
            "make shards of the images of the data set, and of them alone: `make shards IMAGES=… SHARDS=<new folder>`"
        )
        missing = [name for name, ids in zip(self._names, found, strict=True) if not ids]
        if missing:
            lacks = f"{len(missing)} of {len(found)} images, such as {missing[0]}"
            raise InputError(f"{self._key}: {self._place} lacks {lacks}; {again}")
        for name, ids in zip(self._names, found, strict=True):
            if len(ids) > 1:
                raise InputError(f"{self._key}: {self._place} has {len(ids)} images that may be {name}; {again}")
        return [ids[0] for ids in found]


_AGAIN = "run `make shards` again"


class _Decoded(NamedTuple):
    meta: SampleMeta
    label_map: np.ndarray


def _decoded(raw: RawSample, *, limit: int) -> _Decoded:
    try:
        found = _Decoded(
            SampleMeta.decode(raw.members[META_MEMBER]), decode_label_map(raw.members[map_member(MAIN_MAP)])
        )
    except ValueError as error:
        raise InputError(f"sample {raw.key} is damaged ({error}); {_AGAIN}") from None
    if int(found.label_map.max()) >= limit:
        raise InputError(f"sample {raw.key}: its label map has more ids than the manifest says; {_AGAIN}")
    return found


def _sources(reader: ShardReader) -> Iterator[tuple[int, str]]:
    """Every sample's id and source, by its json alone."""
    for sample_id in range(reader.manifest.stored):
        shard, row = reader.place_of(sample_id)
        entry = reader.files.entry(shard, row)
        span = entry.members.get(META_MEMBER)
        if span is None:
            raise InputError(f"{reader.name_of(shard)}: sample {entry.key} has no {META_MEMBER}; {_AGAIN}")
        data = reader.files.read(shard, *span)
        try:
            source = SampleMeta.decode(data).source
        except ValueError as error:
            raise InputError(f"sample {entry.key} is damaged ({error}); {_AGAIN}") from None
        yield sample_id, source


def _names_of(source: str) -> set[str]:
    """What an image may be called: every end of its path, with and without the suffix."""
    parts = source.split("/")
    ends = {"/".join(parts[first:]) for first in range(len(parts))}
    return ends | {end.rpartition(".")[0] for end in ends if "." in end.rpartition("/")[2]}
