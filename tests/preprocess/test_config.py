from __future__ import annotations

import pytest

from pipeline.foundation.errors import InputError
from pipeline.foundation.settings import load_settings
from preprocess.config import FastSlicSettings, FelzenszwalbSettings, GridSettings, SceneSettings, ShardSettings


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("shards.superpixels.segments=256", "shards.superpixels.segments: .*255.*256"),
        ("shards.superpixels.segments=0", "shards.superpixels.segments"),
        ("shards.superpixels.compactness=0", "shards.superpixels.compactness"),
        (
            "shards.superpixels.backend=skimag",
            "shards.superpixels.backend: unknown value 'skimag'; did you mean 'skimage'",
        ),
        ("shards.superpixels={backend: grid, row: 3}", "unknown key 'shards.superpixels.row'; did you mean 'rows'"),
        ("shards.superpixels={backend: grid, rows: 0}", "shards.superpixels.rows: .*greater than or equal to 1"),
        ("shards.superpixels={backend: grid, rows: 300}", "300 × 10 boxes do not fit into 224 × 224 pixels"),
        ("shards.maps={fine: {segment: 3}}", "unknown key 'shards.maps.fine.segment'; did you mean 'segments'"),
        ("shards.maps={Fine: {}}", "shards.maps.Fine"),
        ("shards.source.fromat=tar", "unknown key 'shards.source.fromat'; did you mean 'format'"),
        ("shards.superpixels.sise=3", "unknown key 'shards.superpixels.sise'; did you mean 'size'"),
        ("shards.prefix=a.b", "shards.prefix"),
        (f"shards.prefix={'p' * 201}", "shards.prefix"),  # what a manifest may name
        (f"shards.maps={{{'m' * 71}: {{}}}}", "shards.maps"),  # what a tar may
        ("shards.images_per_shard=0", "shards.images_per_shard"),
        ("shards.max_bad_fraction=2", "shards.max_bad_fraction"),
        (f"shards.seed={10**80}", r"shards\.seed"),
        (f"shards.seed={2**63}", r"shards\.seed"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(override, complaint):
    with pytest.raises(InputError, match=complaint):
        load_settings(ShardSettings, "shards", None, [override])


def test_fewer_pixels_than_segments_are_refused():
    """fast_slic would divide by zero."""
    with pytest.raises(InputError, match="size 9 gives 81 pixels, fewer than 100 segments"):
        load_settings(ShardSettings, "shards", None, ["shards.superpixels.size=9"])


def test_content_leaves_out_how_it_runs():
    content = ShardSettings(workers=4).content()
    assert set(ShardSettings.model_fields) - set(content) == {"workers", "max_bad_fraction", "read_ahead", "retries"}


def test_backends_are_chosen_by_name_and_recorded_whole():
    settings = load_settings(
        ShardSettings, "shards", None, ["shards.superpixels.backend=grid", "shards.maps.a.segments=7"]
    )
    assert settings.superpixels == GridSettings(rows=10, columns=10)
    assert settings.content()["superpixels"] == {
        "backend": "grid",
        "rows": 10,
        "columns": 10,
        "size": 224,
        "resample": "bilinear",
    }
    assert settings.content()["maps"] == {"a": FastSlicSettings(segments=7).model_dump()}
    assert ShardSettings.model_validate(settings.content()).content() == settings.content()


def test_a_felzenszwalb_map_of_the_stored_size_is_recorded_as_it_was_before_there_was_another():
    maps = {"small": FelzenszwalbSettings(), "whole": FelzenszwalbSettings(segmented_at="native")}
    recorded = ShardSettings(maps=maps).content()["maps"]
    both = {
        "backend": "felzenszwalb",
        "scale": 1000,
        "min_size": 1000,
        "sigma": 0.8,
        "size": 224,
        "resample": "bilinear",
    }
    assert recorded == {"small": both, "whole": both | {"segmented_at": "native"}}
    assert ShardSettings.model_validate({"maps": recorded}).maps == maps


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("scenes.shapes=[]", "at least one shape"),
        ("scenes.shapes=[disc, disc]", "each once"),
        ("scenes.objects=[3, 2]", r"objects must be .* not \[3, 2\]"),
        ("scenes.size=8", "scenes.size"),
        ("scenes.seed=-1", r"scenes\.seed"),
    ],
)
def test_scene_settings_that_cannot_work_are_refused(override, complaint):
    with pytest.raises(InputError, match=complaint):
        load_settings(SceneSettings, "scenes", None, [override])
