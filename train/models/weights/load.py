"""A backbone of anybody's, from a file: safe, strict, and never silently random.

from train.models.frozen import FrozenModel
from train.models.weights.load import load_backbone

loaded = load_backbone("moco_v2_800ep_pretrain.pth.tar")
print(loaded.name, loaded.format, loaded.loaded, *loaded.notes, sep="\\n")
model = FrozenModel(loaded.build(), mean=loaded.mean, std=loaded.std)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.foundation.errors import InputError
from pipeline.foundation.files import sha256_of
from train.models.backbone_file import BACKBONE_FORMAT, read_backbone
from train.models.weights.detect import COUNTER, Candidate, Held, candidates_in, held_in, left_out, rules_for
from train.models.weights.form import BACKBONES, POSITIONS, AnyBackbone, Form, form_of
from train.models.weights.input import Pixels, pixels_of
from train.models.weights.names import CAFFE2
from train.models.weights.read import read_weights_file, weights_file
from train.models.weights.refusal import refusal
from train.models.weights.rules import FORMATS_OF_WEIGHTS, Rule

PARTS = ("online", "target")


@dataclass(frozen=True, kw_only=True)
class LoadedBackbone:
    """Weights of a backbone and what they expect: RGB in [0, 1], from which `mean` is taken and which `std` divides.

    Attributes:
        name: resnet18 … resnet152, or vit_<s, b or l>_<side of a patch>.
        weights: by our keys, float32 (counters int64).
        format: the row of the table of rules that they were read by.
        sha256: of the file, in hex.
        loaded: the share of the backbone's weights that came from the file; 1.0, else the file is refused.
        left_out: what of the file was not used: group of keys → how many.
        notes: what is worth saying, one line each: which of several networks, what was changed.
        fingerprint: of the run of ours that they come from; None where they come from none.
        form: how the backbone is built.
    """

    name: str
    weights: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    format: str
    sha256: str
    loaded: float
    left_out: dict[str, int]
    notes: tuple[str, ...]
    fingerprint: str | None
    form: Form

    @property
    def own_layers(self) -> bool:
        """Whether it is a ViT with R2O's layers of C4 and C5."""
        return self.form.own_layers

    def build(self, *, dilate_c5: bool = False, image_size: int = 224) -> AnyBackbone:
        """A new module with these weights; a ViT's position embedding is interpolated to `image_size`."""
        return self.form.filled(self.weights, dilate_c5=dilate_c5, image_size=image_size)

    @property
    def told(self) -> str:
        """The share that was loaded, what was left out, and the notes."""
        left = ", ".join(f"{group} ({count})" for group, count in self.left_out.items())
        return "; ".join((
            f"{100 * self.loaded:.0f} % of its weights loaded", f"left out: {left}" if left else "nothing left out",
            *self.notes,
        ))  # fmt: skip

    def __str__(self) -> str:
        """One line that says what was loaded."""
        return f"{self.name} as {self.format}, {self.told}"


class _Choice(NamedTuple):
    candidate: Candidate
    rule: Rule
    left_out: dict[str, int]
    notes: tuple[str, ...]


def load_backbone(
    path: Path | str, *, format: str = "auto", backbone: str | None = None, part: str = "online"
) -> LoadedBackbone:
    """Read a backbone from a file of any project's, or from a run of ours. No code in the file is run.

    Args:
        path: a file, or the folder of a finished run.
        format: a row of `train.models.weights.rules`; "auto": the one whose rules load a whole backbone.
        backbone: its name where the caller expects one; another is refused.
        part: "online", or "target" for the network that follows it (momentum encoder, teacher).
    Raises:
        DamagedError: the file was changed or cut short.
        InputError: it holds no whole backbone; the line says what it holds, and which format came nearest.
    """
    if format not in ("auto", *FORMATS_OF_WEIGHTS):
        raise InputError(f"no format {format!r} of weights; there are auto, {', '.join(FORMATS_OF_WEIGHTS)}")
    if part not in PARTS:
        raise InputError(f"part={part!r} of {path}: there are {' and '.join(PARTS)}")
    if backbone is not None and backbone not in BACKBONES:
        raise InputError(f"no backbone {backbone!r}; there are {', '.join(BACKBONES)}")
    path = weights_file(Path(path))
    content = read_weights_file(path)
    if isinstance(content, dict) and content.get("format") == BACKBONE_FORMAT:
        return _own(path, format=format, backbone=backbone, part=part)
    try:
        held = held_in(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a file of weights ({error})") from None
    choice = _choose(path, content, held, format=format, backbone=backbone, part=part)
    return _finished(path, content, held, choice)


def _own(path: Path, *, format: str, backbone: str | None, part: str) -> LoadedBackbone:
    """Our backbone.pt, by its own reader, which holds it to be exactly what was written."""
    own = read_backbone(path)
    if format not in ("auto", "r2o"):
        raise InputError(f"{path} is a backbone.pt of r2o, not {format}; leave the format out")
    if part != "online":
        raise InputError(f"{path} holds the online network alone; the run's checkpoints/step-….pt hold both")
    if backbone not in (None, own.name):
        raise InputError(f"{path} is a whole {own.name}, not {backbone} as asked for")
    form = form_of(own.state_dict, asked=own.name)
    assert form is not None
    return LoadedBackbone(
        name=own.name,
        weights=own.state_dict,
        mean=own.mean,
        std=own.std,
        format="r2o",
        sha256=sha256_of(path),
        loaded=1.0,
        left_out={},
        notes=(),
        fingerprint=own.fingerprint,
        form=form,
    )


def _choose(path: Path, content: Any, held: Held, *, format: str, backbone: str | None, part: str) -> _Choice:
    """The first row of the table that loads all of one backbone, by its best branch."""
    found = candidates_in(held, asked=backbone)
    rules = rules_for(held, format)
    tried: list[tuple[Candidate, Rule]] = []
    for rule in rules:
        branches = rule.online if part == "online" else rule.target
        if format != "auto" and part == "online" and "" not in branches:
            branches = (*branches, "")  # the backbone alone, as projects release it
        for branch in branches:
            here = [one for one in found if one.naming in rule.namings and one.branch == branch]
            tried += [(one, rule) for one in here]
            whole = [one for one in here if one.problem(rule) is None]
            if len(whole) > 1:
                where = ", ".join(repr(one.root) for one in whole)
                raise InputError(f"{path} holds several whole backbones ({where}); save the one you mean alone")
            if whole:
                _require_name(path, whole[0], rule, backbone)
                return _Choice(whole[0], rule, left_out(held, whole[0], found), _which(whole[0], rule, found))
    told = refusal(path, content, held, found, tried, rules=rules, format=format, backbone=backbone, part=part)
    raise InputError(told)


def _require_name(path: Path, candidate: Candidate, rule: Rule, backbone: str | None) -> None:
    assert candidate.form is not None
    if backbone is None or candidate.form.name == backbone:
        return
    raise InputError(f"{path} is a whole {candidate.form.name}, not {backbone} as {rule.name}; ask for what it is")


def _which(candidate: Candidate, rule: Rule, found: list[Candidate]) -> tuple[str, ...]:
    """A note where the file has other networks that the row knows."""
    known = {*rule.online, *rule.target}
    others = sorted({one.branch or "the other" for one in found if one.branch in known and one.root != candidate.root})
    if not others:
        return ()
    return (f"took {candidate.root.rstrip('./') or 'the outermost'}; the file also has {', '.join(others)}",)


def _finished(path: Path, content: Any, held: Held, choice: _Choice) -> LoadedBackbone:
    candidate, rule = choice.candidate, choice.rule
    assert candidate.form is not None
    pixels = pixels_of(path, content, held, rule, candidate.naming)
    form = _form(path, candidate.form, candidate, rule, pixels)
    weights, changed = _float32(path, candidate)
    if pixels.bgr:
        weights["conv1.weight"] = weights["conv1.weight"].flip(1)
    counters = [key for key in candidate.shapes if key.endswith(COUNTER)]
    begun = {key: torch.zeros((), dtype=torch.long) for key in counters if key not in weights}
    notes = [*choice.notes, *pixels.notes, *changed]
    if begun and candidate.naming is not CAFFE2:
        notes.append("counters of batch norm's batches are not in the file and begin at 0")
    if candidate.naming is CAFFE2:
        notes.append("batch norm is a scale and a bias in the file: mean 0, and a variance that divides by 1")
    weights = {key: {**weights, **begun}[key] for key in candidate.shapes}
    return LoadedBackbone(
        name=form.name,
        weights=weights,
        mean=pixels.mean,
        std=pixels.std,
        format=rule.name,
        sha256=sha256_of(path),
        loaded=candidate.share,
        left_out=choice.left_out,
        notes=tuple(notes),
        fingerprint=_fingerprint(content, rule),
        form=form,
    )


def _form(path: Path, form: Form, candidate: Candidate, rule: Rule, pixels: Pixels) -> Form:
    """With what names and shapes do not tell."""
    unclear = form.name.startswith("vit_s") and rule.name not in ("mocov3", "dino", "mae", "r2o_checkpoint")
    if unclear and _sin_cos(candidate.weights[POSITIONS]):
        raise InputError(
            f"{path} is a ViT-S with a sine and cosine position embedding: MoCo v3's has 12 heads and others 6, which "
            "no file tells; name its format: mocov3 (12), dino or mae (6)"
        )
    return dataclasses.replace(
        form,
        heads=rule.heads.get(form.name),
        same_padding=rule.same_padding,
        stride_in_1x1=pixels.stride_in_1x1,
    )


def _sin_cos(embedding: Tensor) -> bool:
    """Whether a position embedding is the fixed one of MoCo v3 and MAE: sin² + cos² = 1, and 0 for the class token."""
    quarters = embedding[0, 1:].float().square().unflatten(1, (2, 2, -1)).sum(2)
    return not embedding[0, 0].any() and torch.allclose(quarters, torch.ones_like(quarters), atol=1e-2)


def _float32(path: Path, candidate: Candidate) -> tuple[dict[str, Tensor], list[str]]:
    """All weights as float32 (counters int64), finite, and what was changed for it."""
    weights, kinds = {}, set()
    for key in candidate.expected:
        value, wanted = candidate.weights[key], candidate.expected[key].dtype
        if value.dtype != wanted:
            kinds.add(str(value.dtype).removeprefix("torch."))
        weights[key] = value.to(wanted).contiguous()
        if not bool(weights[key].isfinite().all()):
            raise InputError(f"{path}: {candidate.paths.get(key, key)} holds values that are not finite")
    return weights, [f"made float32 of {', '.join(sorted(kinds))}"] if kinds else []


def _fingerprint(content: Any, rule: Rule) -> str | None:
    """Of the run, where the file is a checkpoint of ours."""
    told = content.get("fingerprint") if rule.name == "r2o_checkpoint" else None
    return told if isinstance(told, str) else None
