"""One line on a file whose weights cannot be loaded: what it holds, what was looked for, what came nearest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from train.models.backbone import resnet_blocks
from train.models.weights.detect import Candidate, Held, candidates_in, group_of
from train.models.weights.form import Form, form_named
from train.models.weights.names import as_tensor
from train.models.weights.pickles import Inert, inert_names
from train.models.weights.rules import Rule

_SHOWN_NAMES, _SHOWN_GROUPS = 3, 6
_MODULE_STATE = {"_parameters", "_modules", "_buffers"}  # what every pickled torch.nn.Module has


def refusal(
    path: Path,
    content: Any,
    held: Held,
    found: Sequence[Candidate],
    tried: Sequence[tuple[Candidate, Rule]],
    *,
    rules: Sequence[Rule],
    format: str,
    backbone: str | None,
    part: str,
) -> str:
    """What to say of a file of which no row loads a whole backbone.

    Args:
        found: all parts of it that may be a backbone. tried: with the rows that know where they lie.
    """
    if module := _whole_module(content):
        return (
            f"{path} is a whole pickled model ({module}), whose code r2o does not run; save model.state_dict() instead"
        )
    if not any(isinstance(name, str) and not name.isdigit() for name in held.arrays):
        named = inert_names(content)
        if isinstance(content, (dict, list)) and named:
            return f"{path} is not a file of weights (it holds {_listed(named)}, which r2o does not make)"
        return f"{path} holds no state dict: tensors by name"
    if tried:
        candidate, rule = max(tried, key=lambda one: _nearness(*one))
        return f"{path} is not {_nearest(held, candidate, rule, backbone)}; {_holds(held)}"
    if found:
        return _somewhere(path, held, found, rules=rules, format=format, part=part)
    looked = "a ResNet or a ViT" if format == "auto" else f"a backbone as {format} names it"
    return f"{path} holds no backbone that r2o knows: looked for {looked}; {_holds(held)}"


def _nearness(candidate: Candidate, rule: Rule) -> tuple[float, int]:
    return candidate.share, -len(candidate.extra_of(rule))


def _nearest(held: Held, candidate: Candidate, rule: Rule, backbone: str | None) -> str:
    """`resnet18 as torchvision (99 % there): 1 weights are missing, …`, against the backbone that was asked for."""
    form: Form | None = candidate.form
    if form is None or (backbone is not None and form.name != backbone):
        form = form_named(backbone or _likely(candidate), own_layers=False)
        again = candidates_in(held, form=form)
        candidate = next(one for one in again if (one.naming, one.root) == (candidate.naming, candidate.root))
    problem = candidate.problem(rule) or "it is another backbone"
    return f"{form.name} as {rule.name} ({100 * candidate.share:.1f} % there): {problem}"


def _likely(candidate: Candidate) -> str:
    """The backbone that shares most names with weights of none."""
    if any(key.startswith("encoder.") for key in candidate.weights):
        return "vit_b_16"
    return max(resnet_blocks(), key=lambda name: _common(form_named(name).shapes(), candidate.weights))


def _common(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> int:
    same = sum(key in other and other[key].shape == value.shape for key, value in one.items())
    return same - len(one.keys() ^ other.keys())


def _somewhere(
    path: Path, held: Held, found: Sequence[Candidate], *, rules: Sequence[Rule], format: str, part: str
) -> str:
    """A backbone lies where no row looks for one."""
    best = max(found, key=lambda one: one.share)
    name = best.form.name if best.form else "part of a backbone"
    where = f"{100 * best.share:.1f} % of a {name} lie under {best.root.rstrip('./')!r}"
    if part == "target":
        return f"{path} has no target network that r2o knows: {where}; leave part='target' out; {_holds(held)}"
    if format != "auto":
        looked = " or ".join(sorted({repr(branch) for rule in rules for branch in rule.online if branch}))
        return f"{path} is not {format}: looked for {looked or 'other names'}, but {where}; {_holds(held)}"
    return f"{path}: {where}, where no format has one; save that part alone; {_holds(held)}"


def _holds(held: Held) -> str:
    """`it holds 122 tensors (encoder_q 102, queue 1), the first are conv1.weight (64, 3, 7, 7), …`."""
    groups = Counter(group_of(path) for path in held.arrays).most_common()
    told = ", ".join(f"{group} {count}" for group, count in groups[:_SHOWN_GROUPS])
    more = f" and {len(groups) - _SHOWN_GROUPS} more" if len(groups) > _SHOWN_GROUPS else ""
    first = [f"{path} {tuple(as_tensor(held.arrays[path]).shape)}" for path in [*held.arrays][:_SHOWN_NAMES]]
    return f"it holds {len(held.arrays)} tensors ({told}{more}), the first are {', '.join(first)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN_NAMES]) + (" and more" if len(names) > _SHOWN_NAMES else "")


def _whole_module(content: Any) -> str | None:
    """The class of a pickled torch.nn.Module, which is the content or one of its members."""
    for one in (content, *(content.values() if isinstance(content, dict) else ())):
        if isinstance(one, Inert) and any(isinstance(s, dict) and s.keys() >= _MODULE_STATE for s in one.given):
            return one.named
    return None
