"""Can a sample of a finished shard be used, and is it what its json says? What is wrong, in a few words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import simplejpeg

from pipeline.artifacts.label_maps import MAIN_MAP, map_member
from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.sample import IMAGE_MEMBER, META_MEMBER, SampleMeta, decode_jpeg, decode_label_map

SHOWN_KEYS = 5


@dataclass(frozen=True, kw_only=True)
class MapForm:
    """What the manifest says of a map: its name, its side in pixels, the most ids that one has."""

    name: str
    size: int
    most: int

    @property
    def member(self) -> str:
        """The member that holds it."""
        return map_member(self.name)


def forms_of(manifest: Manifest) -> list[MapForm]:
    """The maps of every sample, the main one first."""
    stats = {name: manifest.map_stats(name) for name in (MAIN_MAP, *manifest.maps)}
    return [MapForm(name=name, size=one.size, most=one.max_superpixels) for name, one in stats.items()]


def fault_of(members: Mapping[str, bytes], forms: Sequence[MapForm], *, deep: bool, is_hashed: bool) -> str | None:
    """What is wrong with a sample; None for a whole one.

    Args:
        deep: decode the image, not its header alone.
        is_hashed: its json must name size and hash of the image that it was made from, as of format 2.
    """
    if missing := {IMAGE_MEMBER, META_MEMBER, *(form.member for form in forms)} - members.keys():
        return f"{min(missing)} is missing"
    try:
        meta = SampleMeta.decode(members[META_MEMBER])
    except ValueError:
        return "json cannot be read"
    for form in forms:
        if fault := _fault_of_map(members[form.member], form, meta.num_superpixels):
            return f"{form.member} {fault}"
    jpeg = members[IMAGE_MEMBER]
    try:
        height, width = simplejpeg.decode_jpeg_header(jpeg, strict=True)[:2]
        if deep:
            decode_jpeg(jpeg)
    except ValueError:
        return "jpg cannot be decoded"
    if (width, height) != (meta.width, meta.height):
        return "jpg has not the size that json says"
    if meta.source_bytes is None or meta.source_sha256 is None:
        return "json does not name the bytes of its source" if is_hashed else None
    # What storing left as it was is the source itself.
    return None if meta.changed or is_source(jpeg, meta) else "jpg is not the source that json names"


def is_source(data: bytes, meta: SampleMeta) -> bool:
    """Whether these are the bytes that a sample of format 2 was made from."""
    return len(data) == meta.source_bytes and hashlib.sha256(data).hexdigest() == meta.source_sha256


def by_fault(faults: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A line for each fault, from the keys of the samples that have it."""
    for fault, keys in faults.items():
        more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
        yield f"{fault}: sample {', '.join(keys[:SHOWN_KEYS])}{more}"


def _fault_of_map(data: bytes, form: MapForm, num_superpixels: int) -> str | None:
    try:
        label_map = decode_label_map(data)
    except ValueError:
        return "cannot be decoded"
    if label_map.shape != (form.size, form.size):
        return f"is not {form.size} × {form.size}"
    counts = np.bincount(label_map.ravel())
    if not counts.all():
        return "has gaps in its ids"
    if len(counts) > form.most:
        return f"has more than {form.most} ids"
    if form.name == MAIN_MAP and len(counts) != num_superpixels:
        return "has not the number of ids that json says"
    return None
