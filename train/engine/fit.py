"""Whether the state in a checkpoint is one that this very training can have had."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from train.engine.build import Training, unwrapped

MOMENTUM = "momentum_buffer"


def misfit(state: Mapping[str, Any], training: Training) -> str | None:
    """The first way in which a checkpoint's members do not fit a training's; None where they do.

    torch finds some of it itself, after having loaded the rest, and takes momenta of any shape.
    """
    if state["seed"] != training.settings.seed:
        return f"its seed is {state['seed']}"
    return (
        _of_tensors(state["model"], unwrapped(training.model).state_dict(), "weight")
        or _of_optimizer(state["optimizer"], training)
        or _of_scaler(state["scaler"], training)
    )


def _of_tensors(given: Mapping[Any, Any], expected: Mapping[Any, Tensor], what: str) -> str | None:
    if missing := [key for key in expected if key not in given]:
        return f"{what} {missing[0]} is missing"
    if extra := [key for key in given if key not in expected]:
        return f"{what} {extra[0]} is not of it"
    for key, value in expected.items():
        found = given[key]
        if not isinstance(found, Tensor):
            return f"{what} {key} is no tensor"
        if found.shape != value.shape or found.dtype != value.dtype:
            kinds = [f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in (found, value)]
            return f"{what} {key} is {kinds[0]}, not {kinds[1]}"
    return None


def _of_optimizer(given: Mapping[str, Any], training: Training) -> str | None:
    """The groups but for their learning rate, which every step sets, and the momenta, of which some or all may lack."""
    groups, momenta = given.get("param_groups"), given.get("state")
    if set(given) != {"param_groups", "state"} or not isinstance(groups, Sequence) or not isinstance(momenta, Mapping):
        return "its optimizer has other members"
    expected = training.optimizer.state_dict()["param_groups"]
    if not all(isinstance(group, Mapping) and _is_number(group.get("lr")) for group in groups):
        return "its optimizer has a group without learning rate"
    if _but_for_lr(groups) != _but_for_lr(expected):
        return "its optimizer has other groups"
    if not all(isinstance(one, Mapping) and set(one) == {MOMENTUM} for one in momenta.values()):
        return "its optimizer has other state than momenta"
    learned = dict(enumerate(p for group in training.optimizer.param_groups for p in group["params"]))
    known: dict[Any, Tensor] = {number: p for number, p in learned.items() if number in momenta}
    return _of_tensors({number: one[MOMENTUM] for number, one in momenta.items()}, known, "momentum")


def _but_for_lr(groups: Sequence[Mapping[str, Any]]) -> str | None:
    """Groups as text that can be compared, whatever they hold; None where they hold something else than JSON."""
    try:
        return json.dumps([{**group, "lr": 0} for group in groups], sort_keys=True)
    except (TypeError, ValueError):
        return None


def _of_scaler(given: Mapping[str, Any] | None, training: Training) -> str | None:
    if training.scaler is None or given is None:
        both_without = training.scaler is None and given is None
        return None if both_without else "one of them scales its loss, the other does not"
    if set(given) != set(training.scaler.state_dict()) or not all(map(_is_number, given.values())):
        return "its loss scaler has other members"
    return None if given["scale"] > 0 else f"its loss scale is {given['scale']}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
