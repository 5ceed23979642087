"""The backbone of a run as a file: what evaluations load, and what other libraries can be given (`r2o export`)."""

from __future__ import annotations

import argparse
import io
import math
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.foundation.errors import InputError, exit_code_of
from pipeline.foundation.files import write_atomic
from pipeline.foundation.settings import load_settings
from train.config.pretrain import PretrainSettings
from train.engine.checkpoint import FOLDER, checkpoints, read_checkpoint
from train.models.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, image_size_of, make_backbone
from train.models.formats import FORMATS, check_suffix, to_format, write_weights
from train.run.folder import CONFIG_NAME, RECORD_NAME, read_record
from train.run.model_card import model_card

BACKBONE_NAME = "backbone.pt"
FORMAT = "r2o.backbone"
FORMAT_VERSION = 1
_MEMBERS = ("format", "format_version", "backbone", "mean", "std", "fingerprint", "state_dict")


@dataclass(frozen=True, kw_only=True)
class ExportedBackbone:
    """A backbone and what it expects: RGB in [0, 1], from which `mean` is taken and which `std` divides."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    state_dict: dict[str, Tensor]

    def build(self, *, dilate_c5: bool = False) -> Backbone:
        """A new module with these weights."""
        model = make_backbone(self.name, dilate_c5=dilate_c5, image_size=image_size_of(self.state_dict))
        model.load_state_dict(self.state_dict, strict=True)
        return model


def save_backbone(
    path: Path,
    backbone: nn.Module,
    *,
    name: str,
    fingerprint: str,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> None:
    """Write a backbone atomically, on CPU and contiguous; equal weights give equal bytes.

    Args:
        backbone: a `make_backbone(name)`.
        name: resnet18, 34, 50, 101 or 152, vit_s_16 or vit_b_16.
        fingerprint: of the run that made it.
        mean, std: of RGB in [0, 1], as it was trained.
    """
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in backbone.state_dict().items()}
    problem = _mismatch(name, weights)
    assert problem is None, problem
    values = (FORMAT, FORMAT_VERSION, name, [float(m) for m in mean], [float(s) for s in std], fingerprint, weights)
    buffer = io.BytesIO()
    torch.save(dict(zip(_MEMBERS, values, strict=True)), buffer)
    write_atomic(path, buffer.getvalue())


def load_backbone(path: Path) -> ExportedBackbone:
    """Read what `save_backbone` wrote. No code in the file is run (weights_only).

    Raises:
        InputError: not such a file, another format version, or weights that are not exactly the named backbone's.
    """
    try:
        data = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check the path") from None
    try:
        loaded = torch.load(data, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, pickle.UnpicklingError):
        raise InputError(f"{path} is not a file of weights; `make pretrain` writes one at the end of a run") from None
    problem = _problem(loaded)
    if problem:
        raise InputError(f"{path}: {problem}; `make pretrain` with this r2o writes one that fits")
    return ExportedBackbone(
        name=loaded["backbone"],
        mean=tuple(loaded["mean"]),
        std=tuple(loaded["std"]),
        fingerprint=loaded["fingerprint"],
        state_dict=loaded["state_dict"],
    )


def load_run_backbone(run: Path) -> ExportedBackbone:
    """The backbone of a finished run. Raises InputError where the folder or its backbone is missing."""
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder; `make pretrain SHARDS=… RUN={run}` makes it")
    if not (run / BACKBONE_NAME).is_file():
        raise InputError(f"{run}: no {BACKBONE_NAME}, so this is no finished run; `make pretrain SHARDS=… RUN={run}`")
    return load_backbone(run / BACKBONE_NAME)


def _problem(loaded: Any) -> str | None:
    if not isinstance(loaded, dict) or loaded.get("format") != FORMAT:
        return "not a backbone that r2o wrote"
    if loaded.get("format_version") != FORMAT_VERSION:
        return f"format version {loaded.get('format_version')!r}, but this r2o reads {FORMAT_VERSION}"
    if set(loaded) != set(_MEMBERS):
        return f"damaged: its members are {', '.join(map(str, loaded))}"
    if not isinstance(loaded["backbone"], str) or not isinstance(loaded["fingerprint"], str):
        return "damaged: backbone and fingerprint must be text"
    if not (_three_numbers(loaded["mean"]) and _three_numbers(loaded["std"]) and min(loaded["std"]) > 0):
        return "damaged: mean and std must be three finite numbers each, std above 0"
    if not isinstance(loaded["state_dict"], dict):
        return "damaged: state_dict is no dict"
    return _mismatch(loaded["backbone"], loaded["state_dict"])


def _three_numbers(values: object) -> bool:
    if not isinstance(values, list) or len(values) != 3:
        return False
    return all(isinstance(v, float) and math.isfinite(v) for v in values)


def _mismatch(name: str, weights: Mapping[str, Any]) -> str | None:
    """The first way in which `weights` are not those of backbone `name`, or None."""
    try:
        with torch.device("meta"):
            expected = make_backbone(name, image_size=image_size_of(weights)).state_dict()
    except KeyError:
        return f"unknown backbone {name!r}"
    if missing := sorted(expected.keys() - weights.keys()):
        return f"{len(missing)} weights of {name} are missing, the first is {missing[0]}"
    if extra := sorted(weights.keys() - expected.keys()):
        return f"{len(extra)} weights are not of {name}, the first is {extra[0]}"
    for key, value in expected.items():
        given = weights[key]
        if not isinstance(given, Tensor) or given.shape != value.shape or given.dtype != value.dtype:
            found = f"{tuple(given.shape)} {given.dtype}" if isinstance(given, Tensor) else type(given).__name__
            return f"{key} is {found}, but {name} has {tuple(value.shape)} {value.dtype}"
        if not bool(torch.isfinite(given).all()):
            return f"{key} holds values that are not finite"
    return None


HEADS = ("online.projector.", "predictor.", "target.")


def export(run: Path, out: Path, *, format: str, checkpoint: Path | None = None, heads: bool = False) -> list[Path]:
    """Write a run's backbone under a library's names, with a model card beside it.

    Args:
        out: a new or former `.pth`, `.pt` or `.safetensors`.
        format: of `FORMATS`.
        checkpoint: take the online backbone of this checkpoint, not that of the finished run.
        heads: also write projector, predictor and the target network, of `checkpoint` or the newest one.
    Returns:
        the files that were written.
    Raises:
        InputError: something is missing or damaged, the parts are not of one run, or the library has no such backbone.
    """
    _check_out(out, run)
    state = read_checkpoint(checkpoint) if checkpoint else None
    exported = load_run_backbone(run) if state is None else _of_checkpoint(run, state)
    record = read_record(run)
    if record is None or record["fingerprint"] != exported.fingerprint:
        raise InputError(f"{checkpoint or run / BACKBONE_NAME} is not of the run that {run / RECORD_NAME} records")
    written = to_format(exported.state_dict, exported.name, format)
    facts = {"backbone": exported.name, "names": format, "fingerprint": exported.fingerprint}
    normalization = {"mean": exported.mean, "std": exported.std}
    metadata = {**facts, **{name: " ".join(map(str, values)) for name, values in normalization.items()}}
    card = model_card(
        run,
        record,
        weights=out,
        name=exported.name,
        format=format,
        step=state["step"] if state else None,
        image_size=image_size_of(exported.state_dict),
        normalization=normalization,
    )
    paths = [out, out.with_suffix(".md")]
    out.parent.mkdir(parents=True, exist_ok=True)
    if heads:
        paths.append(out.with_name(f"{out.stem}-heads.safetensors"))
        write_weights(paths[-1], _heads_of(run, state, exported), "torchvision", metadata=facts)
    write_weights(out, written, format, metadata=metadata)
    write_atomic(paths[1], card)
    return paths


def _check_out(out: Path, run: Path) -> None:
    """Raises InputError where `out` is no name of weights, or one of the run's own files."""
    check_suffix(out)
    if out.is_dir():
        raise InputError(f"{out} is a folder; OUT must be a file")
    own = out.resolve() == (run / BACKBONE_NAME).resolve() or out.resolve().parent == (run / FOLDER).resolve()
    if own:
        raise InputError(f"{out} is the run's own; choose another OUT")


def _of_checkpoint(run: Path, state: Mapping[str, Any]) -> ExportedBackbone:
    """The online backbone of a checkpoint."""
    name = load_settings(PretrainSettings, "pretrain", run / CONFIG_NAME).model.backbone
    weights = _online_backbone(state)
    if problem := _mismatch(name, weights):
        raise InputError(f"the checkpoint is not of {run}: {problem}")
    return ExportedBackbone(
        name=name, mean=IMAGENET_MEAN, std=IMAGENET_STD, fingerprint=state["fingerprint"], state_dict=weights
    )


def _online_backbone(state: Mapping[str, Any]) -> dict[str, Tensor]:
    prefix = "online.backbone."
    return {key.removeprefix(prefix): value for key, value in state["model"].items() if key.startswith(prefix)}


def _heads_of(run: Path, state: Mapping[str, Any] | None, exported: ExportedBackbone) -> dict[str, Tensor]:
    """What of a checkpoint is not the exported backbone, by the checkpoint's own names."""
    if state is None:
        found = checkpoints(run)
        if not found:
            raise InputError(f"{run} has no checkpoint, which alone holds the heads")
        state = read_checkpoint(found[-1])
        online = _online_backbone(state)
        if not all(key in online and torch.equal(online[key], value) for key, value in exported.state_dict.items()):
            raise InputError(f"{found[-1]} has other weights than {run / BACKBONE_NAME}; name it with --checkpoint")
    return {key: value.contiguous().clone() for key, value in state["model"].items() if key.startswith(HEADS)}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m train.export", description=main.__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--format", choices=FORMATS, default="torchvision")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--heads", action="store_true")
    arguments = parser.parse_args(argv)
    paths = export(
        arguments.run, arguments.out, format=arguments.format, checkpoint=arguments.checkpoint, heads=arguments.heads
    )
    print(f"exported: {', '.join(map(str, paths))}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
