from __future__ import annotations

import io
import json
import struct
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pipeline.artifacts.sample import (
    SampleMeta,
    decode_jpeg,
    decode_label_map,
    encode_label_map,
    source_name,
)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(("highest", "bits"), [(0, 8), (255, 8), (256, 16), (65535, 16)])
def test_label_map_comes_back_in_the_fewest_bits(highest, bits):
    label_map = np.random.default_rng(0).integers(0, highest + 1, (13, 7))
    label_map[0, 0] = highest
    data = encode_label_map(label_map)
    assert struct.unpack(">IIBB", data[16:26]) == (7, 13, bits, 0)  # IHDR: width, height, depth, grey
    decoded = decode_label_map(data)
    assert decoded.dtype == (np.uint8 if bits == 8 else np.uint16)
    np.testing.assert_array_equal(decoded, label_map)


@pytest.mark.parametrize(
    "label_map",
    [np.zeros((2, 2, 3), int), np.zeros((2, 2)), np.zeros((0, 2), int), np.array([[-1]]), np.array([[65536]])],
)
def test_no_label_map_is_refused(label_map):
    with pytest.raises(ValueError, match="label map"):
        encode_label_map(label_map)


def test_label_map_that_is_no_grey_png_is_refused():
    whole = encode_label_map(np.arange(12).reshape(3, 4))
    for data in (b"", b"text", whole[:40], png(np.zeros((3, 4, 3), np.uint8))):
        with pytest.raises(ValueError, match="label map"):
            decode_label_map(data)


def test_jpeg_is_rgb_and_strict():
    pixels = np.full((20, 30, 3), (200, 30, 90), np.uint8)
    data = simplejpeg.encode_jpeg(pixels, quality=98, colorsubsampling="444")
    decoded = decode_jpeg(data)
    assert (decoded.shape, decoded.dtype) == ((20, 30, 3), np.uint8)
    np.testing.assert_allclose(decoded, pixels, atol=3)
    grey = simplejpeg.encode_jpeg(pixels[..., :1].copy(), colorspace="GRAY", colorsubsampling="Gray")
    assert decode_jpeg(grey).shape == (20, 30, 3)
    for broken in (b"", data[:-30], png(pixels)):
        with pytest.raises(ValueError):  # noqa: PT011  # the text is libjpeg-turbo's
            decode_jpeg(broken)


def test_meta_comes_back_and_leaves_out_what_is_empty():
    bare = SampleMeta(source="a.jpg", width=3, height=2, num_superpixels=100)
    assert bare.encode() == b'{"height":2,"num_superpixels":100,"source":"a.jpg","width":3}'
    full = SampleMeta(
        source="é/b\n.png",
        width=3,
        height=2,
        num_superpixels=4,
        class_name="é",
        changed=("format PNG", "mode L"),
        source_bytes=2**40,
        source_sha256="0123456789abcdef" * 4,
    )
    assert "é".encode() in full.encode()
    for meta in (bare, full):
        assert SampleMeta.decode(meta.encode()) == meta


@pytest.mark.parametrize("data", [b"", b"[]", b'{"source":"a"}', b'{"sauce":1}', b"\xff", b"[" * 10**6])
def test_no_meta_is_refused(data):
    with pytest.raises(ValueError):  # noqa: PT011  # JSON's own, or ours
        SampleMeta.decode(data)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("width", "height", "num_superpixels", "source_bytes") for value in ("3", 3.0, -1)),
        *((name, value) for name in ("width", "source_bytes") for value in (True, None, [3])),
        *((name, value) for name in ("source", "class_name", "source_sha256") for value in (3, None, ["a"])),
        ("changed", "format PNG"),
        ("changed", [1]),
        ("changed", {"a": 1}),
        ("source_sha256", "A" * 64),
        ("source_sha256", "a" * 63),
        ("source_sha256", "a" * 64 + "\n"),
    ],
)
def test_meta_of_another_type_is_refused(name, value):
    members = {"source": "a.jpg", "width": 3, "height": 2, "num_superpixels": 9}
    assert SampleMeta.decode(json.dumps(members).encode()).width == 3
    with pytest.raises(ValueError, match=f"json member of a sample: {name} cannot be "):
        SampleMeta.decode(json.dumps(members | {name: value}).encode())


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"cat/a b.jpg", "cat/a b.jpg"),
        ("café.jpg".encode(), "café.jpg"),
        (b"100%.jpg", "100%25.jpg"),
        (b"caf\xe9.jpg", "caf%E9.jpg"),
        ("é".encode() + b"\xff%41", "é%FF%2541"),
        (b"-x\n.jpg", "-x\n.jpg"),
    ],
)
def test_source_names_are_text_and_reverse(path, name):
    assert source_name(path) == name
    assert unquote_to_bytes(name) == path


def test_any_bytes_have_their_own_name():
    rng = np.random.default_rng(0)
    paths = {bytes(rng.integers(1, 256, rng.integers(1, 12), dtype=np.uint8)) for _ in range(2000)}
    names = {source_name(path) for path in paths}
    assert len(names) == len(paths)
    assert all(name.encode().decode() == name for name in names)
    assert {unquote_to_bytes(name) for name in names} == paths
