"""`precision: auto`: what each kind of machine takes, that a run keeps it, and that it is the run's content."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.estimates.cost import cost_rows, device_memory
from pipeline.foundation.errors import exit_code_of
from tests.train.conftest import SMALL_RUN
from train import pretrain
from train.config.batches import plan_batches
from train.config.pretrain import PretrainSettings
from train.distributed.world import World
from train.engine.build import build_training
from train.engine.job import check_job, what_starts
from train.engine.precision import native_precision, settle_precision
from train.run.folder import run_settings

AUTO = PretrainSettings.model_validate({"run": {"precision": "auto"}})


def machine(
    monkeypatch: pytest.MonkeyPatch, *, gpus: Mapping[int, tuple[int, int]] = {}, avx: bool = False, amx: bool = False
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: gpus[gpu])
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


@pytest.mark.parametrize(
    ("there", "precision", "because"),
    [
        ({}, "fp32", "the processor has neither avx512_bf16 nor AMX, and bf16 would be slower"),
        ({"avx": True}, "bf16", "the processor has avx512_bf16"),
        ({"amx": True}, "bf16", "the processor has AMX"),
        ({"avx": True, "amx": True}, "bf16", "the processor has avx512_bf16 and AMX"),
        ({"gpus": {0: (8, 0)}}, "bf16", "CUDA capability 8.0; 8.0 and above have bf16"),
        ({"gpus": {0: (7, 5)}, "avx": True}, "fp32", "CUDA capability 7.5; 8.0 and above have bf16"),
        ({"gpus": {0: (12, 0), 1: (7, 5)}}, "fp32", "CUDA capability 7.5; 8.0 and above have bf16"),
        ({"gpus": {0: (12, 0), 1: (8, 9)}}, "bf16", "CUDA capability 8.9; 8.0 and above have bf16"),
    ],
)
def test_each_kind_of_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: dict[str, object], precision: str, because: str
) -> None:
    machine(monkeypatch, **there)
    settled, told = settle_precision(AUTO, tmp_path / "run")
    assert settled.run.precision == precision
    assert told == f"precision auto: {precision} ({because})"
    assert settled.model_copy(update={"run": AUTO.run}) == AUTO


@pytest.mark.parametrize("named", ["fp32", "tf32", "bf16", "fp16"])
def test_a_precision_that_is_named_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str) -> None:
    machine(monkeypatch, avx=named == "fp32")
    settings = PretrainSettings.model_validate({"run": {"precision": named}})
    assert settle_precision(settings, tmp_path) == (settings, "")


def test_this_processor_is_told_as_its_kernel_tells_it() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if torch.cuda.is_available() or not cpuinfo.exists():
        pytest.skip("asks Linux about the processor")
    flags = cpuinfo.read_text().split()
    assert native_precision().precision == ("bf16" if {"avx512_bf16", "amx_tile"} & {*flags} else "fp32")


def test_nothing_is_built_before_it_is_settled() -> None:
    plan = plan_batches(AUTO, num_samples=4096, num_ranks=1)
    with pytest.raises(AssertionError, match="settle_precision comes first"):
        build_training(AUTO, plan, World(0, 1, torch.device("cpu")), max_superpixels=100)


def test_a_dry_run_takes_it_for_the_accelerators_bf16() -> None:
    named = PretrainSettings.model_validate({"run": {"precision": "bf16"}})
    plan = plan_batches(AUTO, num_samples=4096, num_ranks=1)
    assert cost_rows(AUTO, plan) == cost_rows(named, plan)
    assert device_memory(AUTO, plan) == device_memory(named, plan)


SMALL = {
    **SMALL_RUN,
    "run": {"precision": "auto", "panel_images": 1, "probe_every_epochs": None, "checkpoint_every_steps": 2},
}


@pytest.mark.processes
@pytest.mark.usefixtures("shallow")
def test_a_run_keeps_what_it_began_with_on_every_machine(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump({"pretrain": SMALL}))

    def start(*options: str) -> int:
        arguments = [f"--shards={shards}", f"--run={run}", f"--config={config}", *options]
        return exit_code_of(lambda: pretrain.main(arguments))

    machine(monkeypatch, avx=True)
    assert start() == 0
    assert "precision auto: bf16 (the processor has avx512_bf16)" in capsys.readouterr().err
    assert run_settings(run).run.precision == "bf16"
    begun = json.loads((run / "run.json").read_text())
    assert [one["precision"] for one in begun["starts"]] == ["bf16"]

    machine(monkeypatch)
    assert start() == 0  # finished: the same run
    told = "precision auto: bf16 (as this run began; a new run would take fp32 here: the processor has neither"
    assert told in capsys.readouterr().err
    assert start("--set=pretrain.run.precision=bf16") == 0
    assert run_settings(run).run.precision == "bf16"
    assert json.loads((run / "run.json").read_text())["fingerprint"] == begun["fingerprint"]
    assert start("--set=pretrain.run.precision=fp32") == 2
    assert "pretrain.run.precision: bf16 → fp32" in capsys.readouterr().err

    settings = PretrainSettings.model_validate(SMALL)
    there = check_job(settings, shards=str(shards), run=run, num_ranks=1, node_ranks=range(1))
    new = check_job(settings, shards=str(shards), run=tmp_path / "new", num_ranks=1, node_ranks=range(1))
    assert (there.settings.run.precision, new.settings.run.precision) == ("bf16", "fp32")
    assert what_starts(new, None)[1] == new.precision
    assert there.folder.fingerprint == begun["fingerprint"] != new.folder.fingerprint
