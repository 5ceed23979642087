"""The whole graph on a handful of tiny scenes: from nothing to a table, and then nothing more to do."""

import json
from pathlib import Path

import pytest

from pipeline.cli import main

pytestmark = pytest.mark.processes

TINY = """
scenes: {pretrain_images: 48, train_images: 8, val_images: 4, size: 48}
shards: {images_per_shard: 16, workers: 1, superpixels: {size: 48, segments: 16}}
pretrain:
  epochs: 2
  global_batch_size: 16
  data: {image_size: 64, view_size: 64, num_workers: 0}
  augment: {blur_kernel_size: 7}
  model: {backbone: resnet18, head_hidden_size: 32, projection_size: 16}
  refine: {clustering_group_size: 8}
  curriculum: {initial_num_clusters: 8, final_num_clusters: 2, hold_epochs: 0}
  optim: {warmup_epochs: 1}
  run: {panels_every_epochs: 1, panel_images: 2}
eval_frozen:
  protocols: [linear, abo]
  linear: {level: c4, size: 64, max_iterations: 20, num_c: 2}
  abo: {size: 64, seeds: [0], group_size: 4}
eval_voc:
  {inits: [run, random, random-bn], iterations: 4, batch_size: 4, crop_size: 48, head_channels: 8,
   auxiliary_channels: 8, num_workers: 0}
workflow: {nproc: 2, preview_images: 4}
"""


@pytest.mark.slow
def test_from_nothing_to_a_table_and_then_nothing_more_to_do(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    config, work = tmp_path / "tiny.yaml", tmp_path / "work"
    config.write_text(TINY)
    command = ["run", str(config), "--work", str(work)]
    assert main(command) == 0, capfd.readouterr().err
    first = capfd.readouterr().out
    assert "make shards" in first
    said = first[first.index("What the evaluations found") :]
    for row in ("the run ", "random ", "random-bn ", "SLIC prior ", "ceiling of the grid ", "the run − random-bn: "):
        assert f"\n{row}" in said
    assert "Fine-tuning trained every weight, 4 iterations of 4 crops from 8 images." in said
    assert json.loads((work / "shards" / "manifest.json").read_bytes())["stored"] == 48
    for made in ("scenes/scenes.json", "superpixels.png", "pretrain/backbone.pt", "pretrain/eval-voc/results.json",
                 "val-shards/manifest.json", "pretrain/eval-frozen/summary.json"):  # fmt: skip
        assert (work / made).stat().st_size > 0
    assert list((work / "pretrain" / "panels").glob("*.png"))

    assert main(command) == 0
    second = capfd.readouterr().out
    assert second.count("finished and unchanged, skipped") == 7
    assert second.endswith(said)
    before = (work / "shards" / "manifest.json").stat().st_mtime_ns
    assert main([*command, "--set", "eval_voc.seeds=[0, 1]"]) == 0
    more = capfd.readouterr()
    assert more.out.count("finished and unchanged, skipped") == 6
    assert "run seed 0: finished before and unchanged" in more.err
    assert (work / "shards" / "manifest.json").stat().st_mtime_ns == before
