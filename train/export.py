"""The command that writes a run's backbone as other libraries name it, with a model card (`r2o export`)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.artifacts.run_files import BACKBONE_NAME, CHECKPOINTS_FOLDER, RECORD_NAME
from pipeline.foundation.errors import InputError, exit_code_of, os_errors_named
from pipeline.foundation.files import write_atomic
from train.engine.checkpoint import checkpoints, read_checkpoint
from train.models.backbone import IMAGENET_MEAN, IMAGENET_STD, image_size_of
from train.models.backbone_file import ExportedBackbone, load_run_backbone, mismatch
from train.models.formats import (
    DIGEST,
    FORMATS,
    check_suffix,
    is_file_of_weights,
    metadata_of,
    to_format,
    write_weights,
)
from train.run.folder import read_record, run_settings
from train.run.model_card import is_model_card, model_card

FACTS = ("backbone", "names", "fingerprint")  # in the metadata
HEADS = ("online.projector.", "predictor.", "target.")


def export(run: Path, out: Path, *, format: str, checkpoint: Path | None = None, heads: bool = False) -> list[Path]:
    """Write a run's backbone under a library's names, with a model card beside it.

    Args:
        out: a new `.pth`, `.pt` or `.safetensors`, or one that is such a file already.
        format: of `FORMATS`.
        checkpoint: take the online backbone of this checkpoint, not that of the finished run.
        heads: also write projector, predictor and the target network, of `checkpoint` or the newest one.
    Returns:
        the files that were written.
    Raises:
        InputError: something is missing or damaged, the parts are not of one run, the library has no such backbone, or
            a file is in the way that no export wrote.
    """
    card_path, heads_path = out.with_suffix(".md"), out.with_name(f"{out.stem}-heads.safetensors")
    _check_out(out)
    _check_replaced(card_path, "model card", lambda path: is_model_card(path.read_bytes()))
    if heads:
        _check_replaced(heads_path, "file of heads", _are_heads)
    in_run = checkpoint is not None and checkpoint.absolute().is_relative_to(run.absolute())
    state = read_checkpoint(checkpoint, own=in_run) if checkpoint else None
    exported = load_run_backbone(run) if state is None else _of_checkpoint(run, state)
    record = read_record(run)
    if record is None or record["fingerprint"] != exported.fingerprint:
        raise InputError(f"{checkpoint or run / BACKBONE_NAME} is not of the run that {run / RECORD_NAME} records")
    written = to_format(exported.state_dict, exported.name, format)
    facts = dict(zip(FACTS, (exported.name, format, exported.fingerprint), strict=True))
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
    paths = [out, card_path]
    out.parent.mkdir(parents=True, exist_ok=True)
    if heads:
        paths.append(heads_path)
        write_weights(heads_path, _heads_of(run, state, exported), "torchvision", metadata=facts)
    write_weights(out, written, format, metadata=metadata)
    write_atomic(card_path, card)
    return paths


def _check_out(out: Path) -> None:
    """Raises InputError where `out` is no name of weights, a file of a run's own, or something else than weights."""
    check_suffix(out)
    if out.is_dir():
        raise InputError(f"{out} is a folder; OUT must be a file")
    target = out.resolve()
    is_checkpoint = target.parent.name == CHECKPOINTS_FOLDER
    home = target.parent.parent if is_checkpoint else target.parent
    if (is_checkpoint or target.name == BACKBONE_NAME) and (home / RECORD_NAME).exists():
        raise InputError(f"{out} is a run's own; choose another OUT")
    _check_replaced(out, "file of weights", is_file_of_weights)


def _check_replaced(path: Path, what: str, is_one: Callable[[Path], bool]) -> None:
    """Raises InputError where a file is there that an export does not replace."""
    if os.path.lexists(path) and not (path.is_file() and is_one(path)):
        raise InputError(f"{path} is there, and is no {what} as an export writes it; choose another OUT")


def _are_heads(path: Path) -> bool:
    return (metadata_of(path) or {}).keys() - {DIGEST} == {"format", *FACTS}


def _of_checkpoint(run: Path, state: Mapping[str, Any]) -> ExportedBackbone:
    """The online backbone of a checkpoint."""
    name = run_settings(run).model.backbone
    weights = _online_backbone(state)
    if problem := mismatch(name, weights):
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
    run, out, checkpoint = arguments.run, arguments.out, arguments.checkpoint
    with os_errors_named(out):
        paths = export(run, out, format=arguments.format, checkpoint=checkpoint, heads=arguments.heads)
    print(f"exported: {', '.join(map(str, paths))}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
